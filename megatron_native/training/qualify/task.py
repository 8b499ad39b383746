"""What a rung is given: the slice's run, perhaps the run's own, and the place it runs in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_native.config.run import RunConfig
from megatron_native.platform import Platform


@dataclass(frozen=True)
class Task:
    """Everything that a rung needs."""

    run: RunConfig
    """A short run of the slice, without overlaps."""
    overlapped: RunConfig
    """The same with the overlaps that the run asks for."""
    own: RunConfig | None
    """The run that is to be qualified, where its own checkpoint can be looked at here."""
    fp8: bool
    """Whether that run is to train in FP8; the other two are BF16."""
    folder: Path
    """Of the ladder's files; every rank sees it."""
    platform: Platform

    @property
    def weights(self) -> str:
        """Whose weights the rungs about weights look at."""
        return "the run's own checkpoint" if self.own is not None else "a slice with random weights"
