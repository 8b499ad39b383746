"""A rank of a training run that meets a number which is none: in one step, once or always; or a disk that is full.

Started by the launcher in place of `megatron_native pretrain`, with the same arguments. `FAULT` in the environment is JSON:
`{"nan_at": step, "times": n}`: the loss of that step is not a number in the first n computations of it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Plant the fault, then be a rank."""
    from megatron_native.training import launch

    fault = json.loads(os.environ.get("FAULT", "{}"))
    arguments = sys.argv[1:]
    config, overrides = Path(arguments[arguments.index("--config") + 1]), arguments[arguments.index("--config") + 2 :]
    if "nan_at" in fault:
        plant_nan(fault["nan_at"], fault.get("times", 1))
    return launch.run_rank(config, overrides)


def plant_nan(at: int, times: int) -> None:
    """Make the loss of a step no number; `times` is counted in this process."""
    from megatron_native.platform import cpu

    cpu.install()  # before Megatron is imported
    from megatron_native.training import trainer as trainer_module

    compute, left = trainer_module.compute_gradients, [times]
    take = trainer_module.Trainer._take

    def planted(chunks: Any, optimizer: Any, batches: Any, device: Any) -> Any:
        from dataclasses import replace

        if current[0] == at and left[0] > 0:
            left[0] -= 1
            batches = [replace(batch, loss_mask=batch.loss_mask * float("nan")) for batch in batches]
        return compute(chunks, optimizer, batches, device)

    current = [0]

    def noted(self: Any, plan: Any) -> Any:
        current[0] = plan.step
        return take(self, plan)

    trainer_module.compute_gradients = planted
    trainer_module.Trainer._take = noted  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
