"""Tasks of a stage run somewhere: the same functions in this process, in local processes, or on a Ray cluster.

A task is a picklable call; results come back as tasks finish, with their number. Which engine runs them never changes
a byte of what they write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_native.errors import UserError
from megatron_native.progress import Progress

OnRead = Callable[[int], None]
Work = Callable[[Any, OnRead], Any]
"""`work(task, on_read)` → its result; both are pickled when tasks run elsewhere."""
ENGINES = ("local", "ray")


class Engine(Protocol):
    """Runs tasks."""

    def run(self, work: Work, tasks: Sequence[Any], bar: Progress) -> Iterator[tuple[int, Any]]:
        """(place in `tasks`, result) as tasks finish; the first error stops all."""
        ...


@dataclass(frozen=True)
class Share:
    """One task of a Slurm job array: it does every `count`-th part, beginning with part `index`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise UserError(
                f"--task-index {self.index} --task-count {self.count}: the index goes from 0 to the count minus 1 "
                "(in a Slurm array: --array=0-N-1, $SLURM_ARRAY_TASK_ID, $SLURM_ARRAY_TASK_COUNT)."
            )

    @property
    def whole(self) -> bool:
        """Whether this run does everything itself."""
        return self.count == 1

    def has(self, number: int) -> bool:
        """Whether the part `number` is this task's."""
        return number % self.count == self.index


def make_engine(name: str, workers: int, address: str | None = None) -> Engine:
    """The engine of this name (`local`, `ray`).

    Raises:
        UserError: there is no such engine, or its package is not installed.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: it must be 1 or more.")
    if name == "local":
        from megatron_native.engine.local import LocalEngine

        return LocalEngine(workers)
    if name == "ray":
        from megatron_native.engine.on_ray import RayEngine

        return RayEngine(address)
    raise UserError(f"--engine {name} is not known; it is one of {', '.join(ENGINES)}.")
