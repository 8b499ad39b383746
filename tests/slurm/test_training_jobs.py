"""Training under a real Slurm: stopped, queued again and resumed; chains; runs that get nowhere; bad nodes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_native.training.line_file import read_json_lines
from megatron_native.training.restarts import last_step
from megatron_native.training.retention import checkpoints_of
from tests.distributed import REPOSITORY
from tests.slurm.conftest import TinyRun, write_run
from tests.slurm.one_machine import Slurm
from tests.tiny_models import make_tiny_model

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")


def ended(job: dict[str, str]) -> bool:
    return job["JobState"] in ENDED


def wait_for_step(slurm: Slurm, run: TinyRun, job: str, step: int) -> None:
    slurm.wait_for(job, lambda state: last_step(run.run_dir) >= step or ended(state))
    assert last_step(run.run_dir) >= step, run.said()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of the same run on two local processes that nothing happens to."""
    run = write_run(tmp_path_factory.mktemp("undisturbed"))
    subprocess.run(
        [sys.executable, "-m", "megatron_native", "pretrain", "--nproc", "2", "--config", run.config], check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    losses = run.losses()
    assert sorted(losses) == list(range(1, 61))
    return losses


def test_a_run_that_is_signalled_is_queued_again_and_ends_with_the_same_losses(
    slurm: Slurm, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    run = write_run(tmp_path, {"health": {"free_gb": {str(tmp_path): 0.001}}})
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


PLANT = """
import os, threading, time
from pathlib import Path

def die_when_it_is_there(path):
    while not path.is_dir():
        time.sleep(0.01)
    print("planted: out of luck", file=__import__("sys").stderr, flush=True)
    os._exit(9)

if os.environ.get("RANK") == "1":
    threading.Thread(target=die_when_it_is_there, args=(Path(os.environ["PLANTED"]),), daemon=True).start()
"""


def test_a_dead_rank_is_named_and_a_run_that_gets_nowhere_is_not_queued_again(slurm: Slurm, tmp_path: Path) -> None:
    """Rank 1 dies once step 20 is saved: that job made progress, the next one makes none."""
    (tmp_path / "sitecustomize.py").write_text(PLANT)
    environment = {
        "PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "OMP_NUM_THREADS": "1",
        "PLANTED": str(tmp_path / "run" / "checkpoints" / "step_00000020"),
    }  # fmt: skip
    run = write_run(
        tmp_path, {"environment": environment}, checkpointing={"save_interval": 20, "asynchronous": False},
        training={"steps": 5000, "global_batch_size": 4, "precision": "fp32"},
    )  # fmt: skip
    [job] = run.launch(slurm, "--nodes", "2")
    state = slurm.wait_for(job, ended)
    assert (state["JobState"], state["Restarts"]) == ("FAILED", "1"), run.said()
    incidents = read_json_lines(run.run_dir / "incidents.jsonl")
    assert [incident["kind"] for incident in incidents] == ["rank_died", "restart", "rank_died", "gave_up"]
    assert incidents[0]["message"].startswith("rank 1 ended with exit code 9 first, on ")
    assert "planted: out of luck" in incidents[0]["message"]
    assert "failure 1 of 3 that are allowed in a row" in incidents[1]["message"]
    assert "no progress: the last job made no step that was saved" in incidents[3]["message"]
    assert (run.run_dir / "slurm" / "stopped").read_text().startswith("no progress")
    assert "rank 1 ended" in (run.run_dir / "logs" / "slurm" / job / "attempt-1" / "failure.txt").read_text()


def wait_until_idle(slurm: Slurm, node: str) -> None:
    """Slurm takes the first node that is idle; one that was resumed or has just ended a job is none for a moment."""
    deadline = time.monotonic() + 60
    while " State=IDLE " not in slurm.run("scontrol", "--oneliner", "show", "node", node):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("drain", [True, False])
def test_a_bad_node_is_named_and_the_job_goes_elsewhere(slurm: Slurm, tmp_path: Path, drain: bool) -> None:
    """node1 lacks a folder that node2 has. Where it may not be drained, the job keeps away from it."""
    (tmp_path / "disk-of-node2").mkdir()
    health = {"compute": False, "drain": drain, "free_gb": {f"{tmp_path}/disk-of-$SLURMD_NODENAME": 0.001}}
    run = write_run(tmp_path, {"health": health}, training={"steps": 2, "global_batch_size": 4, "precision": "fp32"})
    wait_until_idle(slurm, "node1")
    [job] = run.launch(slurm, "--nodes", "1")
    try:
        state = slurm.wait_for(job, ended)
        assert state["JobState"] == "COMPLETED", run.said()
        assert (state["Restarts"], state["NodeList"]) == ("1", "node2")
        node = slurm.run("scontrol", "--oneliner", "show", "node", "node1")
        assert ("DRAIN" in node) == drain
        if drain:
            assert "Reason=megatron-native: " in node
            assert "disk-of-node1: No such file or directory" in node
        assert "bad node node1: " in run.said()
    finally:
        if drain:
            slurm.run("scontrol", "update", "NodeName=node1", "State=RESUME")


def test_where_every_node_fails_none_is_drained(slurm: Slurm, tmp_path: Path) -> None:
    run = write_run(tmp_path, {"health": {"compute": False, "free_gb": {"/there/is/no/such/folder": 1}}})
    [job] = run.launch(slurm, "--nodes", "2")
    assert slurm.wait_for(job, ended)["JobState"] == "FAILED"
    assert "every node failed" in run.said()
    assert "DRAIN" not in slurm.run("scontrol", "--oneliner", "show", "nodes")


def test_a_chain_of_jobs_where_none_may_be_queued_again(
    slurm: Slurm, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    run = write_run(tmp_path, {"requeue": False, "chain_jobs": 3})
    first, second, third = run.launch(slurm, "--nodes", "2")
    wait_for_step(slurm, run, first, 3)
    assert (slurm.job(second)["JobState"], slurm.job(second)["Reason"]) == ("PENDING", "Dependency")
    slurm.run("scancel", "--batch", "--signal=USR1", first)
    state = slurm.wait_for(first, ended)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "75:0"), run.said()
    assert slurm.wait_for(second, ended)["JobState"] == "COMPLETED", run.said()
    assert slurm.wait_for(third, ended)["JobState"] == "COMPLETED", run.said()
    assert run.losses() == undisturbed
    assert "the run is through" in (run.run_dir / "logs" / "slurm" / f"{third}.log").read_text()


def test_a_cancelled_run_is_saved_and_stays_cancelled(slurm: Slurm, tmp_path: Path) -> None:
    run = write_run(tmp_path, training={"steps": 5000, "global_batch_size": 4, "precision": "fp32"})
    [job] = run.launch(slurm, "--nodes", "1")
    wait_for_step(slurm, run, job, 3)
    slurm.run("scancel", job)
    state = slurm.wait_for(job, ended)
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0"), run.said()
    slurm.wait_for(job, lambda _: bool(checkpoints_of(run.run_dir)), seconds=30)


def test_import_training_and_export_follow_one_another(slurm: Slurm, tmp_path: Path) -> None:
    hf = make_tiny_model(tmp_path / "hf", "llama2")
    run = write_run(
        tmp_path, model={"checkpoint": str(tmp_path / "imported")},
        training={"steps": 3, "global_batch_size": 4, "precision": "fp32"},
    )  # fmt: skip
    imported, trained, exported = run.launch(slurm, "--nodes", "2", "--what", "all", "--hf", str(hf))
    assert slurm.job(exported)["Reason"] == "Dependency"
    for job in (imported, trained, exported):
        assert slurm.wait_for(job, ended)["JobState"] == "COMPLETED", run.said()
    assert (run.run_dir / "hf" / "config.json").is_file()
