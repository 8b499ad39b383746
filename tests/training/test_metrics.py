"""`metrics.jsonl`: one line a step, none twice after a resume, whatever a kill left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_native.training.metrics import Metrics, read_metrics
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
    assert [record["step"] for record in read_metrics(path)] == list(range(1, 11))


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
