"""`metrics.jsonl`: one line a step, none twice after a resume, whatever a kill left behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_native.training.evaluation import HeldoutScore
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.metrics import Metrics
from megatron_native.training.norms import LogitFigures, Norms
from megatron_native.training.step import StepResult


def write(path: Path, start: int, steps: range) -> None:
    metrics = Metrics(path, total_steps=10, start_step=start, interval=1, enabled=True)
    for step in steps:
        metrics.step(step, StepResult(float(step), 64, 1.5, True), 1e-3, 0.5, step * 8, step * 64)
    metrics.close()


def test_a_resume_replaces_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, range(1, 8))
    with open(path, "a") as file:
        file.write('{"step": 8, "lo')  # a kill in the middle of a line
    write(path, 5, range(6, 11))
    assert [record["step"] for record in read_json_lines(path)] == list(range(1, 11))


def test_the_console_line_has_loss_rate_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "metrics.jsonl", 0, range(1, 2))
    line = capsys.readouterr().out
    for part in ("step  1/10", "loss 1.0000", "lr 1.00e-03", "grad norm 1.50", "128 tokens/s", "ETA"):
        assert part in line
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["consumed_tokens"] == 64


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", 10, 0, 1, enabled=False)
    metrics.step(1, StepResult(1.0, 64, 1.0, True), 1e-3, 0.5, 8, 64)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert capsys.readouterr().out == ""


def test_a_step_names_its_phase_and_batch(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", 10, 0, 1, enabled=True)
    metrics.step(1, StepResult(1.0, 64, 1.5, True), 1e-3, 0.5, 8, 64, phase="anneal", batch=8)
    metrics.step(2, StepResult(1.0, 64, 1.5, True), 1e-3, 0.5, 16, 128)
    metrics.close()
    first, second = read_json_lines(tmp_path / "metrics.jsonl")
    assert (first["phase"], first["batch"]) == ("anneal", 8)
    assert "phase" not in second
    assert "batch" not in second


def test_the_time_left_is_over_the_remaining_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    metrics = Metrics(tmp_path / "metrics.jsonl", 110, 100, 1, enabled=True)
    now += 60.0
    metrics.step(101, StepResult(1.0, 64, 1.5, True), 1e-3, 0.5, 8, 64)
    assert "ETA 0:09:00" in capsys.readouterr().out, "nine steps of a minute"
    metrics.set_total_steps(221)
    now += 60.0
    metrics.step(102, StepResult(1.0, 64, 1.5, True), 1e-3, 0.5, 8, 64)
    line = capsys.readouterr().out
    assert "step 102/221" in line
    assert "ETA 1:59:00" in line
    metrics.rewind(101)
    now += 30.0
    metrics.step(102, StepResult(2.0, 64, 1.5, True), 1e-3, 0.5, 8, 64)
    assert "ETA 0:59:30" in capsys.readouterr().out, "the pace since the rewind"
    metrics.close()
    lines = [(record["step"], record["loss"]) for record in read_json_lines(tmp_path / "metrics.jsonl")]
    assert lines == [(101, 1.0), (102, 2.0)]


NORMS = Norms(
    weight=5.0, weights={"attention": 3.0, "mlp": 4.0}, gradient=0.5, gradients={"attention": 0.3, "mlp": 0.4},
    logits=LogitFigures(rms=2.0, max_abs=9.0, mean_logsumexp=7.0, positions=64),
)  # fmt: skip


def write_all(folder: Path, start: int, steps: range, loss: float, tensorboard: bool = True) -> None:
    metrics = Metrics(
        folder / "metrics.jsonl", 4, start, 1, enabled=True, tensorboard=folder / "tensorboard" if tensorboard else None
    )
    for step in steps:
        metrics.step(step, StepResult(loss + step, 64, 1.5, True), 1e-3, 0.5, step * 8, step * 64, batch=8)
        metrics.evaluation(step, {"ar": HeldoutScore(loss / 2, 1.0, 10, 20)}, 1.0)
        metrics.norms(step, NORMS)
        metrics.saved(step, folder / f"step_{step}", 12.0, 0.25, 3_000_000_000)
    metrics.close()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_norms_and_saves_have_lines_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_all(tmp_path, 0, range(1, 2), 1.0, tensorboard=False)
    assert not (tmp_path / "tensorboard").exists()
    _, _, norms, saved = read_json_lines(tmp_path / "metrics.jsonl")
    assert norms == {
        "step": 1,
        "norms": {
            "weight": 5.0, "weights": {"attention": 3.0, "mlp": 4.0}, "gradient": 0.5,
            "gradients": {"attention": 0.3, "mlp": 0.4},
            "logits": {"rms": 2.0, "max_abs": 9.0, "mean_logsumexp": 7.0, "positions": 64},
        },
    }  # fmt: skip
    assert saved == {
        "step": 1,
        "saved": {
            "folder": str(tmp_path / "step_1"), "seconds": 12.0, "blocked_seconds": 0.25, "bytes": 3_000_000_000,
        },
    }  # fmt: skip
    assert "(12.0 s, training waited 0.2 s, 3.00 GB)" in capsys.readouterr().out


def test_tensorboard_shows_what_the_lines_say_and_nothing_twice_after_a_resume(tmp_path: Path) -> None:
    write_all(tmp_path, 0, range(1, 4), 10.0)
    write_all(tmp_path, 1, range(2, 5), 20.0)
    shown = curves(tmp_path)
    assert shown["train/loss"] == [(1, 11.0), (2, 22.0), (3, 23.0), (4, 24.0)]
    assert shown["heldout/ar"] == [(1, 5.0), (2, 10.0), (3, 10.0), (4, 10.0)]
    assert shown["train/batch"][0] == (1, 8.0)
    assert shown["norms/weights/mlp"][-1] == (4, 4.0)
    assert shown["norms/gradient"][-1] == (4, 0.5)
    assert shown["logits/rms"][-1] == (4, 2.0)
    assert shown["save/blocked_seconds"][-1] == (4, 0.25)
    assert shown["train/consumed_tokens"][-1] == (4, 256.0)


def test_a_fresh_start_hides_the_curves_of_an_attempt_that_left_no_checkpoint(tmp_path: Path) -> None:
    write_all(tmp_path, 0, range(1, 4), 10.0)
    write_all(tmp_path, 0, range(1, 2), 20.0)
    assert curves(tmp_path)["train/loss"] == [(1, 21.0)]


def test_tensorboard_is_imported_only_where_events_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it raises ImportError
    Metrics(tmp_path / "rank1.jsonl", 1, 0, 1, False, tensorboard=tmp_path / "events").close()
    Metrics(tmp_path / "metrics.jsonl", 1, 0, 1, True).close()
    assert not (tmp_path / "events").exists()
    with pytest.raises(ImportError):
        Metrics(tmp_path / "metrics.jsonl", 1, 0, 1, True, tensorboard=tmp_path / "events")
