"""The Slurm job that trains a worker: when it is put back into the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.distributed import REPOSITORY

JOB = REPOSITORY / "tools" / "posttraining" / "train_worker.sbatch"
WAITS = "touch started; exec sleep 60"
"""As the command before it trains: a signal ends it."""


def run_job(folder: Path, command: str, signalled: bool) -> tuple[int, bool]:
    """Exit code of the job, and whether it was requeued; `command` is a shell line in place of the program."""
    for name, line in (("megatron-native", command), ("scontrol", 'echo "$@" > requeued')):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    process = subprocess.Popen(["bash", str(JOB), "seeds", "base", "worker"], cwd=folder, env=environment)
    try:
        deadline = time.monotonic() + 30
        while signalled and not (folder / "started").exists():
            assert time.monotonic() < deadline, "the command was never started"
            time.sleep(0.02)
        if signalled:
            process.send_signal(signal.SIGUSR1)
        code = process.wait(timeout=30)
    finally:
        process.kill()
    requeued = folder / "requeued"
    assert not requeued.exists() or requeued.read_text() == "requeue 7\n"
    return code, requeued.exists()


@pytest.mark.parametrize(
    ("command", "signalled", "outcome"),
    [
        ("exit 0", False, (0, False)),
        ("exit 1", False, (1, False)),
        ("exit 75", False, (75, True)),
        (WAITS, True, (128 + signal.SIGUSR1, True)),
        ("trap 'exit 75' USR1; touch started; while :; do sleep 0.02; done", True, (75, True)),
    ],
)
def test_what_goes_on_later_is_requeued(
    tmp_path: Path, command: str, signalled: bool, outcome: tuple[int, bool]
) -> None:
    assert run_job(tmp_path, command, signalled) == outcome
