"""Traces of chosen steps and ranks by torch's profiler, for chrome://tracing or Perfetto.

Steps are chosen by `profiling.steps`, or while the run goes on by a file `profile.request` in the run folder. It holds step
numbers and ranges, such as `1200 1300-1302`; what it names of the past is ignored, and a changed file is read again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

REQUEST_FILE = "profile.request"
FOLDER = "profile"
_LONGEST = 1000
"""Steps of a range, at most: a trace is tens of megabytes and more."""


def parse_request(text: str) -> set[int]:
    """The steps that a request names.

    Raises:
        ValueError: a word is neither a step nor a range of at most a thousand.
    """
    steps: set[int] = set()
    for word in re.split(r"[\s,]+", text.strip()):
        if not word:
            continue
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if match is None:
            raise ValueError(f"'{word}' is neither a step (120) nor a range of steps (120-122)")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if not first <= last < first + _LONGEST:
            raise ValueError(f"'{word}' must go upwards, over at most {_LONGEST} steps")
        steps.update(range(first, last + 1))
    return steps


class StepProfiler:
    """Profiles one rank's chosen steps; each makes a file `profile/step_XXXXXXXX.rank_N.json` in the run folder.

    On ranks that aren't chosen it does nothing. A trace that can't be written is said, and the run goes on.

    Args:
        run_dir: the run's folder.
        steps: steps to profile.
        ranks: ranks that profile.
        rank: this one.
        cuda: record the device too.
        say: gets a line a trace.
    """

    def __init__(
        self,
        run_dir: Path,
        steps: Collection[int],
        ranks: Collection[int],
        rank: int,
        cuda: bool,
        say: Callable[[str], None],
    ) -> None:
        self.run_dir, self.rank, self._cuda, self._say = run_dir, rank, cuda, say
        self._steps = set(steps)
        self._chosen = rank in ranks
        self._requested: set[int] = set()
        self._read: tuple[int, int] | None = None
        self._running: Any = None
        self._step = 0

    @property
    def recording(self) -> bool:
        """Whether a step is being recorded here."""
        return self._running is not None

    def begin(self, step: int) -> bool:
        """Record from here on if `step` is chosen; whether it is."""
        if not self._chosen:
            return False
        self._read_request()
        if step not in self._steps and step not in self._requested:
            return False
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        self._running, self._step = profile(activities=activities, acc_events=True), step
        self._running.start()
        return True

    def end(self) -> Path | None:
        """Stop recording and write the trace; its file, or None where nothing was recorded or it can't be written."""
        if self._running is None:
            return None
        running, self._running = self._running, None
        if self._cuda:
            torch.cuda.synchronize()
        running.stop()
        path = self.run_dir / FOLDER / f"step_{self._step:08d}.rank_{self.rank}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            running.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            self._say(f"the trace of step {self._step} can't be written to {path}: {' '.join(str(error).split())}")
            return None
        self._say(f"trace of step {self._step} on rank {self.rank}: {path}")
        return path

    def _read_request(self) -> None:
        """Take in `profile.request` where it is new or has changed."""
        path = self.run_dir / REQUEST_FILE
        with suppress(OSError):
            status = path.stat()
            seen = (status.st_mtime_ns, status.st_size)
            if seen == self._read:
                return
            self._read = seen
            try:
                self._requested = parse_request(path.read_text(encoding="utf-8"))
            except ValueError as error:
                self._say(f"{path} is not followed: {error}")
