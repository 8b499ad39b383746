"""One rank of short runs, one after another, in a process of its own that may be told to die: `resume.py` starts it."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any


def main() -> None:
    """Train every configuration to its end, or die in a step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--die-at", type=int, default=0)
    arguments = parser.parse_args()
    from megatron_native.config.environment import cuda_environment
    from megatron_native.config.load import load_run_config
    from megatron_native.platform import start_platform, stop_platform

    runs = [load_run_config(path, []) for path in arguments.configs]
    platform = start_platform(runs[0].platform, cuda_environment=cuda_environment(runs[0]))
    from megatron_native.training.qualify import session
    from megatron_native.training.trainer import Trainer

    if arguments.die_at:
        take = Trainer._take

        def dies(self: Trainer, plan: Any) -> Any:
            if plan.step == arguments.die_at:
                self.checkpointer.wait()  # so that there is a checkpoint to come back to
                os.kill(os.getpid(), signal.SIGKILL)
            return take(self, plan)

        setattr(Trainer, "_take", dies)  # noqa: B010 (a method of the class, for this process alone)
    for run in runs:
        session.train(run, platform)
    stop_platform()


if __name__ == "__main__":
    main()
