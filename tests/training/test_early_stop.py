"""Early stop: when a run ends for want of improvement, what it keeps, and that a resume decides as the undisturbed run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.layout import check_complete
from megatron_native.config.load import check_run_config, load_run_config
from megatron_native.config.run import EarlyStopRule
from megatron_native.errors import UserError
from megatron_native.training import launch
from megatron_native.training.early_stop import EarlyStop, read_best
from megatron_native.training.incidents import EARLY_STOP
from megatron_native.training.launch import run_rank
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.retention import checkpoints_of
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config, write_token_dataset

TEXT = "تشرق الشمس كل صباح فتوقظ الطيور، ويبدأ الناس يومهم بالعمل والأمل."


def judged(monitor: EarlyStop, losses: list[float], first: int = 1) -> list[bool]:
    return [monitor.judge(step, {"ar": loss, "en": 0.0}) for step, loss in enumerate(losses, first)]


def test_patience_counts_evaluations_since_the_best() -> None:
    monitor = EarlyStop(EarlyStopRule(set="ar", patience=3))
    assert judged(monitor, [3.0, 2.0, 2.0, 2.1, 1.9, 2.0, 1.9]) == [True, True, False, False, True, False, False]
    assert (monitor.best_step, monitor.best_loss, monitor.waited, monitor.exhausted) == (5, 1.9, 2, False)
    assert judged(monitor, [1.95], first=8) == [False]
    assert monitor.exhausted
    for part in ("step 8", "'ar'", "3 evaluations", "step 5", "1.9000"):
        assert part in monitor.message


def test_an_improvement_smaller_than_asked_for_is_none() -> None:
    monitor = EarlyStop(EarlyStopRule(set="ar", patience=2, min_improvement=0.1))
    assert judged(monitor, [2.0, 1.81, 1.79, 1.62]) == [True, False, True, False], "2.0 × 0.9 = 1.8, 1.79 × 0.9 = 1.611"


def test_a_loss_that_is_no_number_is_no_improvement() -> None:
    monitor = EarlyStop(EarlyStopRule(set="ar", patience=2))
    assert judged(monitor, [math.nan, math.inf]) == [False, False]
    assert monitor.exhausted and monitor.best_step is None
    assert "since the beginning" in monitor.message


def test_without_patience_the_best_is_known_and_the_run_goes_on() -> None:
    monitor = EarlyStop(EarlyStopRule(set="ar", patience=None))
    judged(monitor, [3.0, 2.0, *[2.5] * 20])
    assert (monitor.best_step, monitor.exhausted) == (2, False)


def test_without_a_rule_or_without_its_set_nothing_is_judged() -> None:
    assert not EarlyStop(None).judge(1, {"ar": 1.0})
    assert EarlyStop(None).state() == {}
    monitor = EarlyStop(EarlyStopRule(set="ar", patience=1))
    assert not monitor.judge(1, {"en": 1.0}) and not monitor.exhausted


def test_a_best_whose_save_failed_is_none() -> None:
    rule = EarlyStopRule(set="ar", patience=3)
    monitor = EarlyStop(rule)
    judged(monitor, [3.0])
    monitor.not_saved(1)
    assert monitor.best_step is None and monitor.state()["best_loss"] is None
    assert judged(monitor, [3.5], first=2) == [True], "the first that can be kept"
    monitor.saved(2)
    judged(monitor, [2.0, 2.5], first=3)
    monitor.not_saved(3)
    assert (monitor.best_step, monitor.best_loss, monitor.waited) == (2, 3.5, 1)
    monitor.not_saved(4)
    assert monitor.best_step == 2, "step 4 was no best"
    judged(monitor, [1.5, 1.0], first=5)
    monitor.saved(5)
    monitor.not_saved(6)
    assert (monitor.best_step, monitor.best_loss) == (5, 1.5), "saved while step 6 was judged"
    resumed = EarlyStop(rule)
    resumed.restore(monitor.state())
    resumed.not_saved(5)
    assert resumed.best_step is None


def test_a_restored_monitor_goes_on_and_judges_no_step_twice() -> None:
    rule = EarlyStopRule(set="ar", patience=2)
    monitor = EarlyStop(rule)
    judged(monitor, [2.0, 1.0, 1.5])
    resumed = EarlyStop(rule)
    resumed.restore(json.loads(json.dumps(monitor.state())))
    assert resumed.state() == monitor.state()
    assert not resumed.judge(3, {"ar": 0.5}), "step 3 has been judged"
    assert not resumed.exhausted
    resumed.judge(4, {"ar": 1.0})
    assert resumed.exhausted
    other = EarlyStop(EarlyStopRule(set="en", patience=2))
    other.restore(monitor.state())
    assert other.best_step is None, "another set begins anew"


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"early_stop": {"set": "fr"}, "interval": 2}, "'fr', which evaluation.heldout does not have (ar)"),
        ({"early_stop": {"set": "ar"}}, "evaluation.interval is 0"),
        ({"early_stop": {"set": "ar", "patience": 0}, "interval": 2}, "patience"),
    ],
)
def test_a_rule_that_can_not_work_is_refused(
    tmp_path: Path, token_dataset: Path, evaluation: dict[str, Any], said: str
) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"id": "1", "text": TEXT}) + "\n")
    sections = {"heldout": [{"name": "ar", "path": str(heldout)}], **evaluation}
    config = run_config(tmp_path / "run", tmp_path, token_dataset, evaluation=sections)
    with pytest.raises(UserError) as error:
        check_run_config(config, "test")
    assert said in str(error.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whose held-out loss rises from some step on: undisturbed; stopped, resumed and given again; on two processes."""
    folder = tmp_path_factory.mktemp("early_stop")
    prefix = write_token_dataset(folder / "tokens_text_document", seed=3)
    import_hf(make_tiny_model(folder / "hf", "tied-llama"), folder / "imported", reference_logits=False)
    heldout = folder / "heldout.jsonl"
    heldout.write_text(json.dumps({"id": "1", "text": TEXT}) + "\n")

    def job(name: str, stop: int | None = None) -> dict[str, Any]:
        config = run_config(
            folder / name, folder / "imported", prefix,
            training={"steps": 30, "stop_after": stop}, optimizer={"lr": 1e-3, "min_lr": 1e-3, "adam_eps": 1e-5},
            evaluation={
                "heldout": [{"name": "ar", "path": str(heldout)}], "interval": 2,
                "early_stop": {"set": "ar", "patience": 3, "min_improvement": 0.002},
            },
            checkpointing={"save_interval": 3, "keep_last": 1},
        )  # fmt: skip
        return {"train": config}

    (folder / "job.yaml").write_text(json.dumps(job("undisturbed")["train"]))
    run_jobs(folder, 1, [job("undisturbed"), job("resumed", 5), job("resumed"), job("resumed")])
    run_jobs(folder, 2, [job("two processes")])
    return folder


def heldout_losses(run: Path) -> dict[int, float]:
    records = read_json_lines(run / "metrics.jsonl")
    return {record["step"]: record["heldout"]["ar"]["loss"] for record in records if "heldout" in record}


def test_the_run_ends_after_its_patience_and_keeps_the_best(folder: Path) -> None:
    run = folder / "undisturbed"
    losses = heldout_losses(run)
    last = max(losses)
    assert last < 30, "it ended early"
    best = read_best(run)
    assert best is not None
    assert best.step == last - 3 * 2, "three evaluations after the best"
    assert best.loss == losses[best.step]
    check_complete(best.checkpoint, full=True)
    assert [folder.name for folder in checkpoints_of(run)] == [best.checkpoint.name, f"step_{last:08d}"]
    (event,) = read_json_lines(run / "incidents.jsonl")
    assert (event["kind"], event["step"]) == (EARLY_STOP, last)


def test_a_resumed_run_ends_where_the_undisturbed_one_did(folder: Path) -> None:
    assert heldout_losses(folder / "resumed") == heldout_losses(folder / "undisturbed")
    names = [
        (read_best(run), [checkpoint.name for checkpoint in checkpoints_of(run)])
        for run in (folder / "undisturbed", folder / "resumed")
    ]
    (first, kept), (second, kept_too) = names
    assert first is not None and second is not None
    assert (first.step, first.loss, kept) == (second.step, second.loss, kept_too)
    assert len(read_json_lines(folder / "resumed" / "incidents.jsonl")) == 1, "a run that has ended is not ended again"


def test_layouts_decide_alike(folder: Path) -> None:
    first, second = (read_best(folder / name) for name in ("undisturbed", "two processes"))
    assert first is not None and second is not None
    assert (first.set, first.step) == (second.set, second.step)
    assert second.loss == pytest.approx(first.loss, abs=1e-5)


def test_a_run_that_ended_early_is_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_rank(folder / "job.yaml", []) == 0
    assert "evaluation.early_stop ended the run after step" in capsys.readouterr().out
    assert launch.is_finished(load_run_config(folder / "job.yaml", ["training.steps=40"])), "it ended by the same rule"
    assert not launch.is_finished(load_run_config(folder / "job.yaml", ["evaluation.early_stop.patience=5"]))
    assert not launch.is_finished(load_run_config(folder / "job.yaml", ["evaluation.early_stop=null"]))


def test_with_more_patience_it_goes_on(folder: Path) -> None:
    config = json.loads((folder / "job.yaml").read_text())
    before = heldout_losses(folder / "undisturbed")
    config["evaluation"]["early_stop"]["patience"] = 4
    run_jobs(folder, 1, [{"train": config}])
    after = heldout_losses(folder / "undisturbed")
    assert max(after) == max(before) + 2 and before.items() <= after.items()
    best = read_best(folder / "undisturbed")
    assert best is not None and best.loss == min(loss for step, loss in after.items() if step)
