"""The rung about coming back: a run that is saved, killed and resumed has the losses of an undisturbed one, bit for bit.

The runs are processes of their own, one beside each rank of the ladder: the first dies by SIGKILL in the middle, the second
makes the undisturbed run and resumes the dead one. On CUDA they run in mode `exact`, the only one that promises the same bits.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from megatron_native.config.load import dump_run_config
from megatron_native.config.run import RunConfig
from megatron_native.platform import Platform
from megatron_native.training.launch import with_this_package
from megatron_native.training.launch_folder import FOLDER_VARIABLE
from megatron_native.training.qualify.numerics import with_sections
from megatron_native.training.qualify.session import losses_of
from megatron_native.training.qualify.task import Task
from megatron_native.training.qualify.trial import STEPS
from megatron_native.training.qualify.verdict import Measure, RungResult, judged
from megatron_native.training.run_lock import HELD_VARIABLE

SAVE_AT, DIE_AT = STEPS // 2, STEPS - 1
"""The step that is saved, and the one in which the processes die: what lies between is lost and made again."""
_TIMEOUT_SECONDS = 900


def resume(task: Task) -> RungResult:
    """Save, kill, resume."""
    changes: dict[str, dict[str, object]] = {"training": {"mode": "exact"}, "checkpointing": {"save_interval": SAVE_AT}}
    undisturbed, killed = (with_sections(task.run, f"resume-{name}", **changes) for name in ("undisturbed", "killed"))
    died = _run_beside([killed], task.platform, die_at=DIE_AT)
    lost = max(losses_of(killed.run_dir), default=0)
    ended = _run_beside([undisturbed, killed], task.platform)
    expected, found = losses_of(undisturbed.run_dir), losses_of(killed.run_dir)
    resumed = _resumed_at(killed.run_dir)
    different = sum(found.get(step) != loss for step, loss in expected.items())
    measures = [
        Measure(
            "processes killed", sum(code == -signal.SIGKILL for code in died), task.platform.world_size, at_least=True
        ),
        Measure("processes that failed", sum(code != 0 for code in ended), 0),
        Measure("step resumed from", resumed, SAVE_AT, at_least=True),
        Measure("steps of the undisturbed run", len(expected), STEPS, at_least=True),
        Measure("steps whose loss differs in any bit", different, 0),
    ]
    return judged("resume", measures, f"killed in step {DIE_AT}, after {lost} steps, resumed after {resumed}")


def _resumed_at(run_dir: Path) -> int:
    """After which step the last start of a run went on, by its console."""
    said = (run_dir / "console.0.txt").read_text(encoding="utf-8") if (run_dir / "console.0.txt").is_file() else ""
    steps = [line.split(": ")[1].split(" of ")[0] for line in said.splitlines() if line.startswith("resumed from ")]
    return int(steps[-1]) if steps else 0


def _run_beside(runs: Sequence[RunConfig], platform: Platform, die_at: int = 0) -> list[int]:
    """Every rank starts a process that is the same rank of `runs`, one after another; exit codes of all ranks. Collective."""
    files = []
    for run in runs:
        path = run.run_dir.parent / f"{run.run_dir.name}.yaml"
        if platform.is_main:
            path.write_text(dump_run_config(run), encoding="utf-8")
        files.append(str(path))
    address: list[str | None] = [None, None]
    if platform.is_main:
        with socket.socket() as free:
            free.bind(("", 0))
            address = [os.environ.get("MASTER_ADDR", "127.0.0.1"), str(free.getsockname()[1])]
    dist.broadcast_object_list(address, src=0)
    drop = {FOLDER_VARIABLE, HELD_VARIABLE}  # the launcher's of this ladder, not theirs
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in drop and not name.startswith(("TORCHELASTIC_", "GROUP_"))
    }
    if platform.world_size > 1:
        environment |= {"MASTER_ADDR": str(address[0]), "MASTER_PORT": str(address[1])}
    command = [sys.executable, "-m", "megatron_native.training.qualify.train_process", *files, "--die-at", str(die_at)]
    log = runs[0].run_dir.parent / f"resume.{'killed' if die_at else 'whole'}.rank_{platform.rank}.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, env=with_this_package(environment), stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(timeout=_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    codes: list[int] = [0] * platform.world_size
    dist.all_gather_object(codes, code)
    return codes
