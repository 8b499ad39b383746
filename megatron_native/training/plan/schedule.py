"""The pipeline's schedule: what every pipeline rank computes in which order, and when, given how long each piece takes.

The orders are megatron-core's: its table of (micro-batch, model chunk) and its count of warm-up passes, asked as its own
schedules ask them. The times come from a simulation: a pass starts when its rank is free and its input has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Literal, NamedTuple

Direction = Literal["forward", "backward"]


class Pass(NamedTuple):
    """One micro-batch through one model chunk, in one direction."""

    direction: Direction
    chunk: int
    micro_batch: int


class Span(NamedTuple):
    """When a pass is computed; seconds from the beginning of the step."""

    direction: Direction
    chunk: int
    micro_batch: int
    start: float
    end: float


@dataclass(frozen=True)
class ChunkTimes:
    """Seconds of one micro-batch through every model chunk: `forward[pipeline_rank][chunk]`, `backward` likewise."""

    forward: Sequence[Sequence[float]]
    backward: Sequence[Sequence[float]]
    transfer: float = 0.0
    """Seconds from the end of a pass until its result has arrived at the next stage."""
    blocking: bool = False
    """The sender waits for the transfer; otherwise it computes on."""


@dataclass(frozen=True)
class Timeline:
    """The simulated pipeline of one step."""

    spans: tuple[tuple[Span, ...], ...]
    """By pipeline rank, in time."""
    seconds: float
    """Until the last pass has ended."""

    @property
    def ranks(self) -> int:
        """Pipeline ranks."""
        return len(self.spans)

    def busy(self, rank: int) -> float:
        """Seconds that a pipeline rank computes."""
        return sum(span.end - span.start for span in self.spans[rank])

    @property
    def bubble(self) -> float:
        """Share of the pipeline's time in which a rank waits, over all ranks: 0 … 1."""
        return 1 - sum(map(self.busy, range(self.ranks))) / (self.ranks * self.seconds)


@lru_cache(maxsize=256)
def rank_order(pipeline_size: int, rank: int, chunks: int, micro_batches: int) -> tuple[Pass, ...]:
    """What a pipeline rank computes in a step, in megatron-core's order.

    Args:
        pipeline_size: pipeline ranks.
        rank: which of them.
        chunks: model chunks a rank: 1 for 1F1B, more for the interleaved schedule.
        micro_batches: of a step, for each data-parallel copy.
    """
    from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches, get_schedule_table

    place = SimpleNamespace(
        pp_group=SimpleNamespace(size=lambda: pipeline_size, rank=lambda: rank),
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
    )
    total, _, warm_up, remaining = get_pp_rank_microbatches(
        micro_batches, chunks, pipeline_size, p2p_communicator=place
    )
    # without interleaving the table is the micro-batches in order
    table = get_schedule_table(micro_batches, chunks, pipeline_size if chunks > 1 else micro_batches)
    forward = [Pass("forward", chunk, micro) for micro, chunk in table]
    backward = [Pass("backward", chunks - 1 - chunk, micro) for micro, chunk in table]
    order = forward[:warm_up]
    for index in range(remaining):
        order += (forward[warm_up + index], backward[index])
    return tuple(order + backward[remaining:total])


class Fullest(NamedTuple):
    """The moment of a step at which a rank keeps most: the beginning of a backward pass."""

    in_flight: tuple[int, ...]
    """For each model chunk: micro-batches whose forward pass is done and whose backward pass is not over."""
    chunk: int
    """The model chunk whose backward pass begins."""


def fullest_moment(order: Sequence[Pass], kept: Sequence[int], beside: Sequence[int] | None = None) -> Fullest:
    """When a rank keeps most.

    Args:
        order: what it computes.
        kept: bytes that a micro-batch leaves in each model chunk until its backward pass is over.
        beside: bytes that the backward pass of each chunk needs beside these; none by default.
    """
    live, most = [0] * len(kept), -1
    found = Fullest(tuple(live), 0)
    for direction, chunk, _ in order:
        if direction == "forward":
            live[chunk] += 1
            continue
        now = sum(count * size for count, size in zip(live, kept)) + (0 if beside is None else beside[chunk])
        if now > most:
            most, found = now, Fullest(tuple(live), chunk)
        live[chunk] -= 1
    return found


def simulate(times: ChunkTimes, micro_batches: int) -> Timeline:
    """The step of a pipeline whose passes take `times`."""
    ranks, chunks = len(times.forward), len(times.forward[0])
    orders = [rank_order(ranks, rank, chunks, micro_batches) for rank in range(ranks)]
    last_stage = ranks * chunks - 1
    arrived: dict[tuple[Direction, int, int], float] = {}
    clocks, positions = [0.0] * ranks, [0] * ranks
    spans: list[list[Span]] = [[] for _ in range(ranks)]
    waiting = set(range(ranks))
    while waiting:
        moved = False
        for rank in sorted(waiting):
            order, position, clock = orders[rank], positions[rank], clocks[rank]
            while position < len(order):
                direction, chunk, micro = order[position]
                stage = chunk * ranks + rank
                is_forward = direction == "forward"
                if stage == (0 if is_forward else last_stage):
                    input_at: float | None = 0.0
                else:
                    input_at = arrived.get((direction, stage, micro))
                if input_at is None:
                    break
                start = max(clock, input_at)
                end = start + (times.forward if is_forward else times.backward)[rank][chunk]
                spans[rank].append(Span(direction, chunk, micro, start, end))
                clock, receiver = end, stage + (1 if is_forward else -1)
                if 0 <= receiver <= last_stage:
                    arrived[direction, receiver, micro] = end + times.transfer
                    clock += times.transfer if times.blocking else 0.0
                position, moved = position + 1, True
            positions[rank], clocks[rank] = position, clock
            if position == len(order):
                waiting.discard(rank)
        if not moved:
            raise AssertionError("the schedule waits for itself")
    return Timeline(tuple(map(tuple, spans)), max(clocks))
