"""Progress of long work: a bar with rate and ETA on a terminal, a line every ten seconds elsewhere.

`with progress("clean", total=bytes, unit="B") as bar: bar.advance(n)`. It writes to stderr, so that results on stdout
stay clean.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LINE_SECONDS = 10.0


class Progress:
    """What the work reports to: `advance(n)` as it goes, `total` may be set once it is known."""

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self._started = time.monotonic()

    def advance(self, amount: float = 1.0) -> None:
        """Report `amount` more units as done."""
        self.done += amount

    def finish(self, completed: bool) -> None:
        """Say the closing line; `completed` is False when the work was broken off."""

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return max(1e-9, time.monotonic() - self._started)

    def summary(self) -> str:
        """Done, rate and time in words."""
        return f"{_amount(self.done, self.unit)} in {self.seconds:.1f} s ({_amount(self.done / self.seconds, self.unit)}/s)"


class _Lines(Progress):
    """For logs and pipes: a line every ten seconds and one at the end of work that took as long."""

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        super().__init__(label, total, unit)
        self._said = self._started

    def advance(self, amount: float = 1.0) -> None:
        super().advance(amount)
        now = time.monotonic()
        if now - self._said < _LINE_SECONDS:
            return
        self._said = now
        of = f" of {_amount(self.total, self.unit)}" if self.total else ""
        left = f", {_clock((self.total - self.done) * self.seconds / self.done)} left" if self.total and self.done else ""
        rate = _amount(self.done / self.seconds, self.unit)
        print(f"{self.label}: {_amount(self.done, self.unit)}{of} ({rate}/s{left})", file=sys.stderr, flush=True)

    def finish(self, completed: bool) -> None:
        if completed and self.seconds >= _LINE_SECONDS:
            print(f"{self.label}: {self.summary()}", file=sys.stderr, flush=True)


class _Bar(Progress):
    """For terminals: rich's bar with rate and remaining time."""

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        super().__init__(label, total, unit)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar: Any = RichProgress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._bar.start()
        self._task = self._bar.add_task(label, total=total, rate="")

    def advance(self, amount: float = 1.0) -> None:
        super().advance(amount)
        rate = f"{_amount(self.done, self.unit)}, {_amount(self.done / self.seconds, self.unit)}/s"
        self._bar.update(self._task, completed=self.done, total=self.total, rate=rate)

    def finish(self, completed: bool) -> None:
        self._bar.stop()
        if completed:
            print(f"{self.label}: {self.summary()}", file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: float | None = None, unit: str = "documents") -> Iterator[Progress]:
    """Show the progress of a block of work of `total` units (None: not known); `unit` "B" is shown as kB, MB, GB."""
    bar: Progress = (_Bar if sys.stderr.isatty() else _Lines)(label, total, unit)
    completed = False
    try:
        yield bar
        completed = True
    finally:
        bar.finish(completed)


def _amount(value: float, unit: str) -> str:
    if unit != "B":
        return f"{value:,.0f} {unit}"
    for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:,.1f} {name}"
    return f"{value:,.0f} B"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
