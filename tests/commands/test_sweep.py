"""`sweep`: real trials of a tiny model, and the rules by which a table of trials is read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.cli import main
from megatron_native.config.load import load_run_config
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.training import sweep
from megatron_native.training.sweep import (
    SweepSettings,
    Trial,
    rate_overrides,
    read_trial,
    run_sweep,
    scatter,
    shared_overrides,
    summarise,
)
from tests.tiny_models import TEXTS, make_tiny_model
from tests.training.conftest import run_config, write_token_dataset

STEPS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's file over an imported checkpoint, with a phase, a long warm-up and a held-out set; a small model beside it."""
    folder = tmp_path_factory.mktemp("sweep")
    import_hf(make_tiny_model(folder / "hf", "llama2"), folder / "imported", reference_logits=False)
    make_tiny_model(folder / "small", "llama2", num_hidden_layers=2, tokenizer=False)
    prefix = write_token_dataset(folder / "tokens_text_document", seed=3)
    (folder / "heldout.jsonl").write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in TEXTS))
    config = run_config(
        folder / "run", folder / "imported", prefix, optimizer={"lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 30},
        evaluation={"heldout": [{"name": "mixed", "path": str(folder / "heldout.jsonl")}], "interval": 1},
    )  # fmt: skip
    del config["training"]["steps"]
    config["phases"] = [{"name": "main", "steps": 100}]
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def of_kind(path: Path, kind: str) -> list[dict[str, Any]]:
    return [record for line in path.read_text().splitlines() if kind in (record := json.loads(line))]


def test_a_sweep_of_a_stand_in(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--config", str(base), "--steps", str(STEPS), "--output", str(tmp_path / "s"),
             "--model", str(base.parent / "small"), "--json", "data.seq_length=32", "--lr", "1e-3", "1e3"]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    good, bad = found["trials"]
    assert (good["lr"], good["status"]) == (1e-3, "done")
    assert (bad["lr"], bad["status"]) == (1e3, "diverged")
    assert found["best"] == 1e-3

    folder = tmp_path / "s" / "lr_0.001"
    steps, evaluations = of_kind(folder / "metrics.jsonl", "loss"), of_kind(folder / "metrics.jsonl", "heldout")
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert good["loss"] == steps[-1]["loss"]  # the last tenth of four steps is one
    assert [record["step"] for record in evaluations] == [0, STEPS]
    assert good["heldout"] == {"mixed": evaluations[-1]["heldout"]["mixed"]["bits_per_byte"]}
    # a warm-up of a quarter of the steps, so the peak is reached at the first; the end keeps its proportion to the peak
    assert steps[0]["lr"] == pytest.approx(1e-3)
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["optimizer"]["min_lr"] == pytest.approx(1e-4)
    assert resolved["data"]["seq_length"] == 32
    assert not (folder / "checkpoints").exists()

    for remark in ("phases are left out", "warm-up of 1 steps instead of 30", "does not carry over one to one"):
        assert any(remark in line for line in found["remarks"])
    kept = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert kept["trials"] == found["trials"]

    def untouched() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("lr_*/**/*")}

    before = untouched()
    assert main([word for word in words if word != "--json"]) == 0
    table = capsys.readouterr().out
    assert untouched() == before
    assert "lr 0.001: done already, skipped" in table
    assert f"{good['loss']:.4f}*" in table and "diverged: " in table
    row = next(line for line in table.splitlines() if line.startswith("0.001 "))
    assert row.endswith("best")

    assert main([*words, "data.seq_length=16"]) == 2  # of another setting: not to be mixed
    assert "run.data.seq_length: 32 there, 16 asked for" in capsys.readouterr().err


# --- what a trial's metrics say ---


def write_metrics(path: Path, losses: list[Any], heldout: dict[int, float] | None = None) -> Path:
    lines: list[dict[str, Any]] = [{"step": number, "loss": loss} for number, loss in enumerate(losses, 1)]
    lines += [{"step": step, "heldout": {"ar": {"bits_per_byte": value}}} for step, value in (heldout or {}).items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_beginning_and_end_are_means_over_a_tenth(tmp_path: Path) -> None:
    losses = [float(30 - step) for step in range(20)]
    trial = read_trial(write_metrics(tmp_path / "m", losses, {0: 3.0, 20: 2.5}), 0.1, 20)
    assert trial == Trial(0.1, "done", loss=(12 + 11) / 2, first_loss=(30 + 29) / 2, heldout={"ar": 2.5})


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_loss_that_is_not_finite_is_a_divergence(tmp_path: Path, value: Any) -> None:
    trial = read_trial(write_metrics(tmp_path / "m", [3.0, 2.0, value, value]), 0.1, 4)
    assert (trial.status, trial.loss, trial.first_loss) == ("diverged", None, 3.0)
    assert "from step 3 on" in trial.remark


def test_a_loss_that_ends_far_above_where_it_began_is_a_divergence(tmp_path: Path) -> None:
    trial = read_trial(write_metrics(tmp_path / "m", [3.0] * 5 + [4.0, 6.0, 9.0, 9.5, 9.5]), 0.1, 10)
    assert (trial.status, trial.loss) == ("diverged", 9.5)
    assert "9.5000, above the 3.0000" in trial.remark


def test_an_end_above_the_beginning_within_the_scatter_of_batches_is_none(tmp_path: Path) -> None:
    losses = [3.0, 3.2, 2.9, 3.1, 2.8, 3.2, 3.0, 2.9, 3.1, 3.1]
    assert losses[-1] > losses[0]
    assert read_trial(write_metrics(tmp_path / "m", losses), 0.1, 10).status == "done"


def test_the_scatter_is_the_deviation_of_noise_and_blind_to_a_slow_trend() -> None:
    import numpy as np

    noise = np.random.default_rng(0).normal(0, 0.2, 20_000)
    assert scatter(noise.tolist()) == pytest.approx(0.2, rel=0.03)
    assert scatter((noise + np.linspace(0, 10, 20_000)).tolist()) == pytest.approx(0.2, rel=0.03)
    assert scatter([3.0]) == 0.0


def test_a_run_that_broke_off_failed_and_a_torn_line_is_no_matter(tmp_path: Path) -> None:
    path = write_metrics(tmp_path / "m", [3.0, 2.0])
    path.write_text(path.read_text() + '{"step": 3, "lo')
    trial = read_trial(path, 0.1, 4)
    assert (trial.status, trial.remark) == ("failed", "2 of 4 steps were done")


# --- which is best ---


def done(lr: float, loss: float, **heldout: float) -> Trial:
    return Trial(lr, "done", loss, 5.0, heldout)


def test_the_mean_of_the_held_out_sets_decides_or_the_one_that_was_chosen() -> None:
    trials = [done(3.0, 1.0, ar=1.0, en=3.0), done(1.0, 3.0, ar=2.0, en=1.0), done(2.0, 2.0, ar=1.5, en=1.4)]
    assert summarise(trials, None).best == 2.0
    assert summarise(trials, "ar").best == 3.0
    assert summarise(trials, "en").best == 1.0
    assert [trial.lr for trial in summarise(trials, None).trials] == [1.0, 2.0, 3.0]


def test_without_held_out_sets_the_training_loss_decides_and_it_is_said() -> None:
    found = summarise([done(1.0, 2.0), done(2.0, 1.0), done(3.0, 1.5)], None)
    assert found.best == 2.0
    assert "forgetting is not seen" in found.advice


BROKEN = Trial(9.0, "diverged", None, 5.0, {}, "the loss is not finite from step 3 on")


@pytest.mark.parametrize(
    ("losses", "advice"),
    [
        ({1.0: 1.0, 2.0: 2.0, 3.0: 3.0}, "the lowest that was tried: extend the grid, --lr 0.33 and below"),
        ({1.0: 3.0, 2.0: 2.0, 3.0: 1.0}, "the highest that was tried: extend the grid, --lr 9"),
        ({1.0: 3.0, 2.0: 1.0, 3.0: 2.0}, "between 1 and 3, which are worse"),
        ({2.0: 1.0}, "the only one: try 0.67 and 6 too"),
        ({}, "no trial is done"),
    ],
)
def test_the_advice_looks_at_the_edges(losses: dict[float, float], advice: str) -> None:
    assert advice in summarise([done(lr, loss) for lr, loss in losses.items()], None).advice


def test_a_diverged_rate_is_an_edge_and_a_failed_one_is_not() -> None:
    rates = [done(1.0, 2.0), done(2.0, 1.0)]
    assert "between 1 and 9, which are worse" in summarise([*rates, BROKEN], None).advice
    failed = Trial(9.0, "failed", remark="exit code 1")
    assert "the highest that was tried" in summarise([*rates, failed], None).advice
    assert summarise([BROKEN], None).best is None
    assert "below 9" in summarise([BROKEN], None).advice


# --- what a trial is made of ---


def run_of(**optimizer: float) -> RunConfig:
    return RunConfig.model_validate({
        "run_dir": "r", "model": {"hf_config": "c"}, "data": {"blend": [{"prefix": "p"}]},
        "training": {"steps": 100, "global_batch_size": 1}, "optimizer": optimizer,
    })  # fmt: skip


def test_the_other_rates_keep_their_proportion() -> None:
    texts = rate_overrides(run_of(lr=1e-4, min_lr=1e-5, warmup_start_lr=2e-6), 3e-3)
    values = {name: float(value) for name, value in (text.split("=") for text in texts)}
    assert values == pytest.approx(
        {"optimizer.lr": 3e-3, "optimizer.min_lr": 3e-4, "optimizer.warmup_start_lr": 6e-5}, rel=1e-12
    )


@pytest.mark.parametrize("lr", [1e-5, 0.1, 7e-4, 1 / 3])
def test_a_floor_at_the_peak_never_lands_above_it(lr: float) -> None:
    values = dict(text.split("=") for text in rate_overrides(run_of(lr=3e-5, min_lr=3e-5), lr))
    assert float(values["optimizer.min_lr"]) <= float(values["optimizer.lr"]) == lr


def test_a_warm_up_that_fits_stays(tmp_path: Path) -> None:
    settings = SweepSettings(Path("run.yaml"), [1.0], 40)
    fits, remarks = shared_overrides(settings, run_of(warmup_steps=10), tmp_path)
    assert not any("warmup" in text for text in [*fits, *remarks])
    cut, _ = shared_overrides(settings, run_of(warmup_steps=11), tmp_path)
    assert "optimizer.warmup_steps=10" in cut


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rates": [0.0]}, "--lr 0.0: learning rates are numbers above 0"),
        ({"rates": [math.nan]}, "--lr nan"),
        ({"steps": 0}, "--steps 0"),
        ({"by": "fr"}, "--by fr: evaluation.heldout has mixed"),
        ({"model": Path("/nowhere/config.json")}, "--model /nowhere/config.json does not exist"),
    ],
)
def test_wrong_settings_are_named(base: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    settings = {"config": base, "rates": [1.0], "steps": 3, "output": tmp_path / "s", **change}
    with pytest.raises(UserError) as caught:
        run_sweep(SweepSettings(**settings), lambda line: None)
    assert said in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_a_folder_of_something_else_is_left_alone(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "s" / "lr_1"
    other.mkdir(parents=True)
    (other / "metrics.jsonl").write_text("mine")
    with pytest.raises(UserError, match="is no trial of a sweep"):
        run_sweep(SweepSettings(base, [1.0], 3, output=tmp_path / "s"), lambda line: None)
    assert (other / "metrics.jsonl").read_text() == "mine"


def test_overrides_may_stand_behind_the_rates(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[SweepSettings] = []

    def pretend(settings: SweepSettings, say: Any) -> Any:
        given.append(settings)
        return summarise([], None), 0

    monkeypatch.setattr(sweep, "run_sweep", pretend)
    assert main(["sweep", "--config", str(base), "seed=7", "--steps", "3", "--lr", "1e-5", "3e-5", "data.seq_length=16"]) == 0
    assert (given[0].rates, sorted(given[0].overrides)) == ([1e-5, 3e-5], ["data.seq_length=16", "seed=7"])


def test_a_rate_that_is_no_number_is_named(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--config", str(base), "--steps", "3", "--lr", "1e-5", "fast"]) == 2
    assert "--lr 1e-5 fast: learning rates are numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "losses", "status"),
    [(0, [3.0, 2.0, 1.0], "done"), (1, [3.0, 2.0], "failed"), (1, [3.0, math.nan], "diverged"), (-9, [], "failed")],
)
def test_a_trial_that_breaks_off_does_not_stop_the_others(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, losses: list[float], status: str
) -> None:
    def pretend(command: list[str], log: Path, say: Any) -> tuple[int, str]:
        first = "optimizer.lr=1.0" in command
        write_metrics(log.parent / "metrics.jsonl", losses if first else [3.0, 2.0, 1.0])
        log.write_text("")
        return (code if first else 0), ""

    monkeypatch.setattr(sweep, "_run", pretend)
    settings = SweepSettings(base, [2.0, 1.0], 3, output=tmp_path / "s")
    found, exit_code = run_sweep(settings, lambda line: None)
    assert exit_code == 0
    assert [(trial.lr, trial.status) for trial in found.trials] == [(1.0, status), (2.0, "done")]


def test_a_failed_trial_is_tried_again_and_new_rates_join(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    codes = {"lr_1": 1, "lr_2": 0, "lr_3": 0}

    def pretend(command: list[str], log: Path, say: Any) -> tuple[int, str]:
        tried.append(log.parent.name)
        load_run_config(Path(command[command.index("--config") + 1]), command[command.index("--config") + 2 :])
        write_metrics(log.parent / "metrics.jsonl", [3.0, 2.0, 1.0][: 3 if codes[log.parent.name] == 0 else 1])
        log.write_text("")
        return codes[log.parent.name], ""

    monkeypatch.setattr(sweep, "_run", pretend)
    run_sweep(SweepSettings(base, [1.0, 2.0], 3, output=tmp_path / "s"), lambda line: None)
    codes["lr_1"] = 0
    found, _ = run_sweep(SweepSettings(base, [1.0, 3.0], 3, output=tmp_path / "s"), lambda line: None)
    assert tried == ["lr_1", "lr_2", "lr_1", "lr_3"]
    assert [(trial.lr, trial.status) for trial in found.trials] == [(1.0, "done"), (2.0, "done"), (3.0, "done")]


def test_a_trial_that_is_told_to_stop_stops_the_sweep(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend(command: list[str], log: Path, say: Any) -> tuple[int, str]:
        write_metrics(log.parent / "metrics.jsonl", [3.0])
        log.write_text("")
        return 75, ""

    monkeypatch.setattr(sweep, "_run", pretend)
    said: list[str] = []
    found, code = run_sweep(SweepSettings(base, [1.0, 2.0], 3, output=tmp_path / "s"), said.append)
    assert (code, found.trials) == (75, [])
    assert "the same command goes on" in said[-1]


def test_a_user_error_of_a_trial_is_the_sweeps(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_run", lambda command, log, say: (2, "error: the layout does not fit."))
    with pytest.raises(UserError, match="lr 1: the layout does not fit"):
        run_sweep(SweepSettings(base, [1.0], 3, output=tmp_path / "s"), lambda line: None)
