"""Where the time of a step goes: data, forward, backward, communication that is waited for, optimizer, checkpoint.

megatron-core marks the parts of a step with timers (`config.timers`) where the caller gives it some. `StepClock` is such a
set of timers. It is handed over for measured steps only, so that other steps pay nothing. Marks are nested; a moment belongs
to the innermost, so the parts of a step add up to it.

On CUDA a mark is an event in the stream: the device is waited for at the beginning and the end of a measured step and
nowhere between, so overlaps stay as they are. Host time in which the stream is empty counts to the part that kept it so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist

Part = Literal[
    "data",
    "forward",
    "backward",
    "communication",
    "optimizer",
    "checkpoint",
    "evaluation",
    "garbage",
    "schedule",
    "other",
]
PARTS: tuple[Part, ...] = get_args(Part)

# megatron-core's timers that aren't communication; all others of the schedule and of gradients and weights are.
_BY_TIMER: dict[str, Part] = {
    "forward-compute": "forward",
    "backward-compute": "backward",
    "forward-backward": "schedule",
    "optimizer-copy-to-main-grad": "optimizer",
    "optimizer-unscale-and-check-inf": "optimizer",
    "optimizer-clip-main-grad": "optimizer",
    "optimizer-count-zeros": "optimizer",
    "optimizer-inner-step": "optimizer",
    "optimizer-copy-main-to-model-params": "optimizer",
}
_WHOLE: frozenset[Part] = frozenset({"checkpoint", "evaluation"})
"""Parts whose inner marks are not told apart: an evaluation's forward passes are evaluation."""


@dataclass(frozen=True)
class StepTime:
    """One measured step: from its beginning to the beginning of the next, evaluation and checkpoint included."""

    step: int
    seconds: float
    """Wall time, by the host's clock."""
    parts: dict[Part, float]
    """Seconds by part; parts that did not come are left out."""

    @property
    def remainder(self) -> float:
        """Wall time that the parts leave out, in seconds: launching and waiting at both ends on CUDA, nothing on the CPU."""
        return self.seconds - sum(self.parts.values())


@dataclass(frozen=True)
class StepTimes:
    """One measured step over all ranks."""

    step: int
    seconds: float
    """Wall time, mean over the ranks."""
    parts: dict[Part, float]
    """Seconds, mean over the ranks."""
    slowest: dict[Part, float]
    """Seconds on the rank that spent most on the part."""
    remainder: float
    """Seconds that the parts leave out, mean over the ranks."""


class _Timer:
    """One of megatron-core's timers."""

    def __init__(self, clock: StepClock, name: str) -> None:
        self._clock, self._name = clock, name

    def start(self, barrier: bool = False) -> None:
        self._clock.enter(self._name)

    def stop(self, barrier: bool = False) -> None:
        self._clock.leave(self._name)


class StepClock:
    """Timers for megatron-core and the trainer that say how long each part of a step took.

    Args:
        device: CUDA measures by events, the CPU by its clock.
        now: seconds by a clock that never goes back.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._now = device, now
        self.annotate: Callable[[str], Any] | None = None
        """Gives a context for a part by its name, entered while the part lasts, such as an NVTX range."""
        self._stack: list[tuple[str, Part, Any]] = []
        self._marks: list[tuple[Part, Any]] = []
        self._step: int | None = None
        self._began = 0.0

    @property
    def measuring(self) -> bool:
        """Whether a step is being measured."""
        return self._step is not None

    def begin(self, step: int) -> None:
        """Measure from here on; waits for the device."""
        self._wait()
        self._step, self._marks = step, []
        self._began = self._now()
        self._mark()

    def end(self) -> StepTime:
        """Stop measuring; waits for the device.

        Raises:
            RuntimeError: no step was begun.
        """
        if self._step is None:
            raise RuntimeError("StepClock.end without begin")
        self._mark()
        self._wait()
        cuda = self._device.type == "cuda"
        ended = self._now() if cuda else self._marks[-1][1]
        parts: dict[Part, float] = {}
        for (part, since), (_, until) in zip(self._marks, self._marks[1:]):
            seconds = since.elapsed_time(until) / 1000 if cuda else until - since
            parts[part] = parts.get(part, 0.0) + seconds
        result = StepTime(self._step, ended - self._began, {part: parts[part] for part in PARTS if part in parts})
        self._step, self._marks = None, []
        return result

    def enter(self, name: str) -> None:
        """A part begins inside the one that lasts; `name` is a part's, or a timer's of megatron-core."""
        part = name if name in PARTS else _BY_TIMER.get(name, "communication")
        for _, outer, _ in self._stack:
            if outer in _WHOLE:
                part = outer
        annotation = self.annotate(name) if self.annotate is not None else nullcontext()
        annotation.__enter__()
        self._stack.append((name, part, annotation))
        self._mark()

    def leave(self, name: str) -> None:
        """The innermost part ends.

        Raises:
            RuntimeError: it is another.
        """
        if not self._stack or self._stack[-1][0] != name:
            raise RuntimeError(
                f"the part '{name}' ends, and the innermost is {self._stack[-1][0] if self._stack else 'none'}"
            )
        _, _, annotation = self._stack.pop()
        annotation.__exit__(None, None, None)
        self._mark()

    def __call__(self, name: str, log_level: int | None = None) -> _Timer:
        """megatron-core's way to a timer."""
        return _Timer(self, name)

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """A part of the trainer's own."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave(name)

    def _mark(self) -> None:
        """From now on time belongs to the innermost part."""
        if self._step is None:
            return
        part: Part = self._stack[-1][1] if self._stack else "other"
        at: Any
        if self._device.type == "cuda":
            at = torch.cuda.Event(enable_timing=True)
            at.record()
        else:
            at = self._began if not self._marks else self._now()
        self._marks.append((part, at))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def over_ranks(time_here: StepTime, device: torch.device) -> StepTimes:
    """A step's times over all ranks, which measured the same step; collective."""
    here = [time_here.seconds, time_here.remainder, *(time_here.parts.get(part, 0.0) for part in PARTS)]
    total = torch.tensor(here, dtype=torch.float64, device=device)
    most = total.clone()
    dist.all_reduce(total)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    seconds, remainder, *means = (total / dist.get_world_size()).tolist()
    slowest = most.tolist()[2:]
    return StepTimes(
        time_here.step,
        seconds,
        {part: mean for part, mean in zip(PARTS, means) if mean},
        {part: value for part, value in zip(PARTS, slowest) if value},
        remainder,
    )


def timers_of(chunks: Sequence[Any]) -> Any:
    """The timers that are set on model chunks' configuration; None on steps that nobody measures."""
    return chunks[0].config.timers


@contextmanager
def timed(timers: Any, name: Part) -> Iterator[None]:
    """A part under `timers`, or nothing where they are None."""
    if timers is None:
        yield
        return
    timers(name).start()
    try:
        yield
    finally:
        timers(name).stop()
