"""Training under a real Slurm: stopped, queued again and resumed; chains; runs that get nowhere; bad nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_native.training.line_file import read_json_lines
from megatron_native.training.restarts import last_step
from tests.slurm.conftest import TinyRun, write_run
from tests.slurm.one_machine import Slurm

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")


def ended(job: dict[str, str]) -> bool:
    return job["JobState"] in ENDED


def wait_for_step(slurm: Slurm, run: TinyRun, job: str, step: int) -> None:
    slurm.wait_for(job, lambda state: last_step(run.run_dir) >= step or ended(state))
    assert last_step(run.run_dir) >= step, run.said()


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of a run that nothing happens to."""
    run = write_run(tmp_path_factory.mktemp("undisturbed"))
    [job] = run.launch(slurm, "--nodes", "2")
    state = slurm.wait_for(job, ended)
    assert state["JobState"] == "COMPLETED", run.said()
    losses = run.losses()
    assert sorted(losses) == list(range(1, 61))
    return losses


def test_a_run_that_is_signalled_is_queued_again_and_ends_with_the_same_losses(
    slurm: Slurm, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    run = write_run(tmp_path)
    [job] = run.launch(slurm, "--nodes", "2")
    wait_for_step(slurm, run, job, 3)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    state = slurm.wait_for(job, ended)
    assert state["JobState"] == "COMPLETED", run.said()
    assert state["Restarts"] == "1", run.said()
    incidents = read_json_lines(run.run_dir / "incidents.jsonl")
    assert [incident["kind"] for incident in incidents] == ["stop_requested"]
    assert "SIGUSR1 came" in incidents[0]["message"]
    assert run.losses() == undisturbed
    logs = run.run_dir / "logs" / "slurm" / job
    assert sorted(path.name for path in logs.iterdir()) == ["attempt-0", "attempt-1"]
    kept = {path.name for path in (logs / "attempt-0").iterdir()}
    assert {"job.sbatch", "environment.txt", "packages.txt", "commit.txt", "stderr", "outcomes", "health"} <= kept
    assert (logs / "attempt-0" / "job.sbatch").read_text() == (run.run_dir / "slurm" / "pretrain.sbatch").read_text()
    assert len(list((logs / "attempt-0" / "stderr").iterdir())) == 2
