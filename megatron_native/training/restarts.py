"""Whether ranks are started again after one has died, and what is said about it."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_native.training.line_file import read_json_lines
from megatron_native.training.retention import checkpoints_of, step_of

_FRUITLESS_RESTARTS = 2
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Death:
    """A rank that ended with something else than 0."""

    rank: int
    exit_code: int
    """Exit code; minus the signal's number where a signal ended it (as in `subprocess`)."""

    def __str__(self) -> str:
        if self.exit_code >= 0:
            return f"rank {self.rank} ended with exit code {self.exit_code}"
        try:
            name = signal.Signals(-self.exit_code).name
        except ValueError:
            name = f"signal {-self.exit_code}"
        hint = " (out of memory, if nobody sent it)" if name == "SIGKILL" else ""
        return f"rank {self.rank} was killed by {name}{hint}"


@dataclass(frozen=True)
class Verdict:
    """What to do after a death."""

    restart: bool
    message: str


class RestartPolicy:
    """Counts restarts, and gives up when they are used up or lead nowhere.

    Args:
        run_dir: where metrics and checkpoints tell how far the run got.
        processes: ranks of the run.
        max_restarts: how often they may be started again.
    """

    def __init__(self, run_dir: Path, processes: int, max_restarts: int) -> None:
        self.run_dir, self.processes, self.max_restarts = run_dir, processes, max_restarts
        self.restarts = 0
        self._furthest: int | None = None
        self._fruitless = 0

    def judge(self, deaths: Sequence[Death]) -> Verdict:
        """Decide after `deaths` (those that came first); restarts are counted here."""
        reached, before = last_step(self.run_dir), self._furthest
        self._furthest = max(reached, before or 0)
        if before is not None:
            self._fruitless = self._fruitless + 1 if reached <= before else 0
        who = _listed(deaths)
        if self.max_restarts == 0:
            return Verdict(False, f"{who}; its traceback, if it left one, is above. {self._kept()}")
        if self._fruitless >= _FRUITLESS_RESTARTS:
            return Verdict(
                False,
                f"{who}, and two restarts in a row got no further than step {self._furthest}: another one would not either, "
                f"so the run ends here. Look at what the ranks said above and at {self.run_dir / 'incidents.jsonl'}. "
                f"{self._kept()}",
            )
        if self.restarts >= self.max_restarts:
            return Verdict(
                False,
                f"{who}, and all {self.max_restarts} restarts (faults.max_restarts) are used up, so the run ends here, at "
                f"step {reached}. Look at what the ranks said above and at {self.run_dir / 'incidents.jsonl'}. "
                f"{self._kept()}",
            )
        self.restarts += 1
        newest = _newest_checkpoint(self.run_dir)
        start = f"checkpoint {newest}" if newest else "the beginning"
        return Verdict(
            True,
            f"{who} at step {reached}; restart {self.restarts} of {self.max_restarts}: all {self.processes} rank(s) start "
            f"again from {start}",
        )

    def _kept(self) -> str:
        newest = _newest_checkpoint(self.run_dir)
        return f"The same command goes on from {f'checkpoint {newest}' if newest else 'the beginning'}."


def last_step(run_dir: Path) -> int:
    """The last step that a run has finished, by the end of its metrics and its checkpoints; of a checkpoint, by its name.

    0 where there is none.
    """
    if run_dir.name.startswith("step_"):
        return step_of(run_dir)
    steps = [step_of(folder) for folder in checkpoints_of(run_dir)[-1:]]
    for record in read_json_lines(run_dir / "metrics.jsonl", _TAIL_BYTES):
        with suppress(ValueError, KeyError, TypeError):  # no line of ours
            steps.append(int(record["step"]))
    return max(steps, default=0)


def _newest_checkpoint(run_dir: Path) -> str | None:
    return next((folder.name for folder in checkpoints_of(run_dir)[-1:]), None)


def _listed(deaths: Sequence[Death]) -> str:
    first = str(deaths[0]) if deaths else "a rank died"
    others = [str(death.rank) for death in deaths[1:]]
    return f"{first} (and with it rank {', '.join(others)})" if others else first
