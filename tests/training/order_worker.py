"""Training jobs that note the hash of every sample that is read; started by `tests.distributed.run_jobs`."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from tests.distributed import leave_groups


def main(description: Path) -> None:
    """Train each job's configuration; a rank's readings go to `samples-<rank>.jsonl` in the run folder."""
    from megatron_native.platform import start_platform

    platform = start_platform("cpu")

    from megatron_native.config.load import check_run_config
    from megatron_native.training.trainer import Trainer

    for job in json.loads(description.read_text(encoding="utf-8")):
        trainer = Trainer(check_run_config(job["train"], "test"), platform)
        read, out = trainer.data.sample, Path(job["train"]["run_dir"]) / f"samples-{platform.rank}.jsonl"

        def noted(number: int, read: Any = read, out: Path = out, trainer: Trainer = trainer) -> Any:
            sample = read(number)
            digest = hashlib.sha256(sample.tokens.tobytes() + sample.labels.tobytes() + sample.loss_mask.tobytes())
            with open(out, "a", encoding="utf-8") as file:
                file.write(json.dumps([trainer.progress.step + 1, number, digest.hexdigest()]) + "\n")
            return sample

        trainer.data.sample = noted  # type: ignore[method-assign]  # reads, and notes what
        trainer.fit()
        leave_groups()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
