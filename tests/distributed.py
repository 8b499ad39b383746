"""Running jobs on real process groups: a worker script under torchrun, several jobs one after another.

Starting processes and importing Megatron costs seconds, so the jobs of one world size share their processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


def run_jobs(
    folder: Path, world_size: int, jobs: list[dict[str, Any]], timeout: float = 500, module: str = "tests.distributed"
) -> None:
    """Run jobs on `world_size` gloo processes; fails the test with their output if one fails.

    `module` takes the path of their description on its command line; see `worker_main` for this one's jobs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = folder / f"jobs_{world_size}.json"
    description.write_text(json.dumps(jobs), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    worker = ["-m", module, str(description)]
    if world_size == 1:
        command = [sys.executable, *worker]
    else:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}", *worker,
        ]  # fmt: skip
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, timeout=timeout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"


def leave_groups() -> None:
    """Take down the groups of a job, but for that of all processes: each keeps threads and connections of its own."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)


def worker_main(description: Path) -> None:
    """Do the jobs of a file, in order, on this process's place in the group.

    A job is `{"train": RunConfig}`, which builds a Trainer and fits it, or `{"logits": {"checkpoint", "ids",
    "output"}}`, which saves the logits of a checkpoint for sequences of ids.
    """
    from megatron_native.platform import start_platform

    platform = start_platform("cpu")

    for job in json.loads(description.read_text(encoding="utf-8")):
        if "train" in job:
            from megatron_native.config.load import check_run_config
            from megatron_native.training.trainer import Trainer

            Trainer(check_run_config(job["train"], "test"), platform).fit()
        else:
            import torch

            from megatron_native.training.forward import checkpoint_logits

            logits = checkpoint_logits(Path(job["logits"]["checkpoint"]), job["logits"]["ids"], platform)
            torch.save(logits, job["logits"]["output"])
        leave_groups()


if __name__ == "__main__":
    worker_main(Path(sys.argv[1]))
