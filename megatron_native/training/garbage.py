"""Python's garbage collection, at the same step on every process.

A collection takes a process some tenths of a second with a large model's objects, at a moment of its own; in a run of many
processes there is then always one that the others wait for.
"""

from __future__ import annotations

import gc
from types import TracebackType


class AlignedCollections:
    """While it is entered, garbage is collected when `at` comes to a multiple of the interval, and only then.

    Args:
        interval: steps between collections; 0 leaves them to Python.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._was_enabled = False

    def __enter__(self) -> AlignedCollections:
        self._was_enabled = gc.isenabled()
        if self.interval:
            gc.collect()
            gc.disable()
        return self

    def at(self, step: int) -> bool:
        """Collect after `step` if it is time to; whether it was."""
        due = self.interval > 0 and step % self.interval == 0
        if due:
            gc.collect()
        return due

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.interval and self._was_enabled:
            gc.enable()
