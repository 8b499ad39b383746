"""What is due at the border of every step: garbage collection, the profiler, the measurement of a step's time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch

from megatron_native.config.run import RunConfig
from megatron_native.platform import Platform
from megatron_native.training.garbage import AlignedCollections
from megatron_native.training.metrics import Metrics
from megatron_native.training.model import TrainableModel
from megatron_native.training.profiler import StepProfiler
from megatron_native.training.step_time import Part, StepClock, over_ranks


class StepDuties:
    """Called before each step of a run, entered around its loop.

    A step lasts until the next begins: evaluation and checkpoint after it are part of it.

    Args:
        run: the configuration.
        model: whose schedule and optimizer are timed.
        platform: this process's place.
        metrics: gets the breakdowns.
        say: gets a line about traces; the profiling rank's own, whatever rank it is.
    """

    def __init__(
        self, run: RunConfig, model: TrainableModel, platform: Platform, metrics: Metrics, say: Callable[[str], None]
    ) -> None:
        self._interval, self._platform, self._metrics = run.profiling.breakdown_interval, platform, metrics
        self._nvtx = run.profiling.nvtx and platform.name == "cuda"
        self._collections = AlignedCollections(run.training.gc_interval)
        profiling, cuda = run.profiling, platform.name == "cuda"
        self._profiler = StepProfiler(run.run_dir, profiling.steps, profiling.ranks, platform.rank, cuda, say)
        self._clock = StepClock(platform.device)
        inner = getattr(model.optimizer, "chained_optimizers", [model.optimizer])
        self._configs: list[Any] = [model.configs.transformer, model.configs.optimizer, *(one.config for one in inner)]
        self._step: int | None = None
        self._inside = ExitStack()

    def __enter__(self) -> StepDuties:
        self._inside.enter_context(self._collections)
        if self._nvtx:
            from megatron.core.utils import configure_nvtx_profiling

            configure_nvtx_profiling(True)  # the layers' own ranges
            self._inside.callback(configure_nvtx_profiling, False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._end()
        self._set_timers(None)
        self._inside.close()

    def begin(self, step: int) -> None:
        """End what lasts of the step before, and begin this one; collective where the step before was measured."""
        self._end()
        self._step = step
        recording = self._profiler.begin(step)
        measured = self._interval > 0 and step % self._interval == 0
        self._clock.annotate = _annotation(self._nvtx, recording)
        self._set_timers(self._clock if measured or recording or self._nvtx else None)
        if measured:
            self._clock.begin(step)

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """A part of the step that megatron-core has no timer for."""
        if self._configs[0].timers is None:
            yield
        else:
            with self._clock.part(name):
                yield

    def _end(self) -> None:
        if self._step is None:
            return
        step, self._step = self._step, None
        with self.part("garbage"):
            self._collections.at(step)
        times = over_ranks(self._clock.end(), self._platform.device) if self._clock.measuring else None
        self._profiler.end()
        if times is not None:
            self._metrics.breakdown(times)

    def _set_timers(self, timers: StepClock | None) -> None:
        for config in self._configs:
            config.timers = timers


def _annotation(nvtx: bool, recording: bool) -> Callable[[str], Any] | None:
    """What marks a part by its name: in the trace that is being recorded, for Nsight Systems, or not at all."""
    if nvtx:
        return torch.cuda.nvtx.range
    return torch.profiler.record_function if recording else None
