"""What the jobs of one run know of each other: files under `RUN/slurm/`.

`progress.json` has the newest checkpoint when the last job began to train and how many jobs in a row added none; `stopped`
the reason why no further job is to train; `done` is there when the run is through. The last two are looked for by the job
scripts; `launch` takes both away when it submits anew.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from megatron_native.manifest import write_json
from megatron_native.training.retention import checkpoints_of


@dataclass
class Progress:
    """How the jobs of a run got on."""

    run_dir: Path
    job: str = ""
    """The job that began to train last, and which of its starts."""
    judged: bool = True
    """Whether that job came to its end, so that what it added is counted."""
    checkpoint: str = ""
    """The newest checkpoint when it began; empty where there was none."""
    fruitless: int = 0
    """Jobs in a row that added no checkpoint."""
    failures: int = 0
    """Jobs in a row that ended because a rank died."""

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """As the jobs before have left it."""
        try:
            record = json.loads((run_dir / "slurm" / "progress.json").read_text(encoding="utf-8"))
            return cls(run_dir, **record)
        except (OSError, ValueError, TypeError):
            return cls(run_dir)

    def newest(self) -> str:
        """Name of the newest finished checkpoint; empty where there is none."""
        return next((folder.name for folder in reversed(checkpoints_of(self.run_dir))), "")

    def begin(self, job: str) -> None:
        """A job begins to train. One before it that did not come to its end is judged now."""
        if not self.judged:
            self.judge()
        self.job, self.judged, self.checkpoint = job, False, self.newest()
        self._write()

    def judge(self, failed: bool = False) -> None:
        """A job has ended: did it add a checkpoint?"""
        self.fruitless = self.fruitless + 1 if self.newest() <= self.checkpoint else 0
        self.failures = self.failures + 1 if failed else 0
        self.judged = True
        self._write()

    def stop(self, reason: str) -> None:
        """No further job is to train."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "stopped").write_text(f"{reason}\n", encoding="utf-8")

    def done(self) -> None:
        """The run is through."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "done").touch()

    @property
    def folder(self) -> Path:
        """Where all of it lies."""
        return self.run_dir / "slurm"

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(
            self.folder / "progress.json", {key: value for key, value in asdict(self).items() if key != "run_dir"}
        )


def begin_anew(run_dir: Path) -> None:
    """Somebody submits the run: what stopped it before is over."""
    for name in ("stopped", "done", "progress.json"):
        (run_dir / "slurm" / name).unlink(missing_ok=True)


def no_progress(progress: Progress, allowed: int) -> str | None:
    """Why no further job is to train, where enough of them have added nothing."""
    if progress.fruitless < allowed:
        return None
    jobs = "the last job" if progress.fruitless == 1 else f"the last {progress.fruitless} jobs"
    where = f"still {progress.newest()}" if progress.newest() else "none yet"
    return (
        f"no progress: {jobs} made no step that was saved (newest checkpoint: {where}), so another would not either. Look at "
        "the logs and at incidents.jsonl, change what is wrong, and launch again."
    )
