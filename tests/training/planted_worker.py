"""Training jobs whose loss is something else in some steps; started by `tests.distributed.run_jobs`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.distributed import leave_groups


def main(description: Path) -> None:
    """Train each job's configuration; `planted` has step → losses that its computations report, one after another."""
    from megatron_native.platform import start_platform

    platform = start_platform("cpu")

    from megatron_native.config.load import check_run_config
    from megatron_native.errors import RunStoppedError
    from megatron_native.training import trainer as module

    compute = module.compute_gradients
    for job in json.loads(description.read_text(encoding="utf-8")):
        trainer = module.Trainer(check_run_config(job["train"], "test"), platform)
        planted: dict[str, list[float]] = job["planted"]

        def other(*arguments: Any, trainer: Any = trainer, planted: dict[str, list[float]] = planted) -> Any:
            result = compute(*arguments)
            losses = planted.get(str(trainer.progress.step + 1), [])
            return replace(result, loss=float(losses.pop(0))) if losses else result

        module.compute_gradients = other
        try:
            code = trainer.fit()
        except RunStoppedError as stop:
            code = stop.exit_code
        Path(job["train"]["run_dir"], "exit_code").write_text(str(code), encoding="utf-8")
        leave_groups()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
