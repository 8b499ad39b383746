"""Training jobs to which something happens, such as another loss in some steps; started by `tests.distributed.run_jobs`."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.distributed import leave_groups


def main(description: Path) -> None:
    """Train each job's configuration.

    `planted` has step → losses that its computations report, one after another; `signals` has step → a signal that this
    process gets while it computes; with `damaged`, the newest checkpoint is cut before the run starts.
    """
    from megatron_native.platform import start_platform

    platform = start_platform("cpu")

    from megatron_native.config.load import check_run_config
    from megatron_native.errors import RunStoppedError
    from megatron_native.training import trainer as module
    from megatron_native.training.retention import checkpoints_of

    compute = module.compute_gradients
    for job in json.loads(description.read_text(encoding="utf-8")):
        if job.get("damaged"):
            newest = checkpoints_of(Path(job["train"]["run_dir"]))[-1]
            victim = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
            os.truncate(victim, victim.stat().st_size // 2)
        trainer = module.Trainer(check_run_config(job["train"], "test"), platform)

        def other(*arguments: Any, trainer: Any = trainer, job: dict[str, Any] = job) -> Any:
            result, step = compute(*arguments), str(trainer.progress.step + 1)
            if step in job.get("signals", {}):
                os.kill(os.getpid(), signal.Signals[job["signals"].pop(step)])
            losses: list[float] = job.get("planted", {}).get(step, [])
            return replace(result, loss=float(losses.pop(0))) if losses else result

        module.compute_gradients = other
        try:
            code = trainer.fit()
        except RunStoppedError as stop:
            code = stop.exit_code
        with open(Path(job["train"]["run_dir"], "exit_code"), "a", encoding="utf-8") as codes:
            codes.write(f"{code} ")
        leave_groups()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
