"""The pipeline's schedule: orders, the bubble, what is in flight."""

from __future__ import annotations

from itertools import pairwise

import pytest

from megatron_native.training.plan.schedule import ChunkTimes, Direction, Pass, fullest_moment, rank_order, simulate


def equal_times(ranks: int, chunks: int, forward: float = 1.0, backward: float = 2.0, **more: float) -> ChunkTimes:
    return ChunkTimes([[forward / chunks] * chunks] * ranks, [[backward / chunks] * chunks] * ranks, **more)


def test_1f1b_of_two_ranks_and_three_micro_batches_written_out() -> None:
    directions: tuple[Direction, ...] = ("forward", "backward")
    f, b = [[Pass(direction, 0, n) for n in range(3)] for direction in directions]
    assert rank_order(2, 0, 1, 3) == (f[0], f[1], b[0], f[2], b[1], b[2])
    assert rank_order(2, 1, 1, 3) == (f[0], b[0], f[1], b[1], f[2], b[2])


def test_interleaved_order_of_two_ranks_written_out() -> None:
    """Two chunks, two micro-batches: the last rank runs both chunks' forwards but the last before its first backward."""
    order = rank_order(2, 1, 2, 2)
    assert [(one.direction[0], one.chunk, one.micro_batch) for one in order] == [
        ("f", 0, 0), ("f", 0, 1), ("f", 1, 0), ("b", 1, 0), ("f", 1, 1), ("b", 1, 1), ("b", 0, 0), ("b", 0, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("ranks, chunks, micro_batches", [(4, 1, 4), (4, 1, 16), (8, 5, 64), (4, 2, 8), (1, 1, 3)])
def test_every_pass_is_done_once_and_backward_after_forward(ranks: int, chunks: int, micro_batches: int) -> None:
    for rank in range(ranks):
        order = rank_order(ranks, rank, chunks, micro_batches)
        places = {one: place for place, one in enumerate(order)}
        assert len(places) == len(order) == 2 * chunks * micro_batches
        for one, place in places.items():
            if one.direction == "backward":
                assert places[one._replace(direction="forward")] < place


@pytest.mark.parametrize("ranks, chunks, micro_batches", [(4, 1, 8), (4, 1, 2), (4, 3, 8), (1, 1, 4), (8, 5, 16)])
def test_orders_are_those_of_the_papers(ranks: int, chunks: int, micro_batches: int) -> None:
    """Written again from Narayanan et al., 2021: groups of as many micro-batches as ranks, warm-up, then one by one."""
    forward = [
        chunk
        for start in range(0, micro_batches, ranks)
        for chunk in range(chunks)
        for _ in range(start, min(start + ranks, micro_batches))
    ]
    backward = [chunks - 1 - chunk for chunk in forward]
    for rank in range(ranks):
        warm_up = ranks - rank - 1 if chunks == 1 else 2 * (ranks - rank - 1) + (chunks - 1) * ranks
        warm_up = min(warm_up, len(forward))
        expected = [(True, chunk) for chunk in forward[:warm_up]]
        for one, other in zip(forward[warm_up:], backward):
            expected += [(True, one), (False, other)]
        expected += [(False, chunk) for chunk in backward[len(forward) - warm_up :]]
        order = rank_order(ranks, rank, chunks, micro_batches)
        assert [(one.direction == "forward", one.chunk) for one in order] == expected


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("micro_batches", [4, 8])
def test_the_order_of_a_step_is_megatron_cores(stages: int, chunks: int, micro_batches: int) -> None:
    from megatron.core.pipeline_parallel.schedules import get_schedule_table

    table = [chunk for _, chunk in get_schedule_table(micro_batches, chunks, stages)]
    for stage in range(stages):
        order = [(one.direction == "forward", one.chunk) for one in rank_order(stages, stage, chunks, micro_batches)]
        assert [chunk for forward, chunk in order if forward] == table
        assert [chunk for forward, chunk in order if not forward] == [chunks - 1 - chunk for chunk in table]
        before = next(index for index, (forward, _) in enumerate(order) if not forward)
        warm_up = stages - stage - 1 if chunks == 1 else 2 * (stages - stage - 1) + (chunks - 1) * stages
        assert before == min(len(table), warm_up + 1)


@pytest.mark.parametrize("ranks, chunks, micro_batches", [(4, 1, 8), (8, 1, 8), (2, 2, 8), (8, 5, 128), (16, 5, 32)])
def test_the_bubble_of_equal_stages_is_the_textbook_one(ranks: int, chunks: int, micro_batches: int) -> None:
    """(p - 1) / (v·m + p - 1) of the time: Narayanan et al., 2021."""
    timeline = simulate(equal_times(ranks, chunks), micro_batches)
    assert timeline.bubble == pytest.approx((ranks - 1) / (chunks * micro_batches + ranks - 1))
    assert timeline.seconds == pytest.approx(3.0 * (micro_batches + (ranks - 1) / chunks))


@pytest.mark.parametrize("ranks, chunks, micro_batches", [(4, 1, 8), (4, 1, 2), (4, 2, 8), (8, 5, 64)])
def test_passes_of_a_rank_do_not_overlap_and_inputs_have_arrived(ranks: int, chunks: int, micro_batches: int) -> None:
    timeline = simulate(equal_times(ranks, chunks, transfer=0.125), micro_batches)
    ends = {}
    for rank, spans in enumerate(timeline.spans):
        for before, after in pairwise(spans):
            assert before.end <= after.start + 1e-9
        for span in spans:
            ends[span.direction, span.chunk * ranks + rank, span.micro_batch] = span.end
    for rank, spans in enumerate(timeline.spans):
        for span in spans:
            stage = span.chunk * ranks + rank
            sender = stage - 1 if span.direction == "forward" else stage + 1
            if 0 <= sender < ranks * chunks:
                assert span.start >= ends[span.direction, sender, span.micro_batch] + 0.125 - 1e-9


def test_1f1b_keeps_as_many_micro_batches_as_stages_follow() -> None:
    assert [fullest_moment(rank_order(4, rank, 1, 16), [1]).in_flight for rank in range(4)] == [(4,), (3,), (2,), (1,)]
    assert [fullest_moment(rank_order(4, rank, 1, 2), [1]).in_flight for rank in range(4)] == [(2,), (2,), (2,), (1,)]


def test_interleaving_keeps_more() -> None:
    """2·(p - r - 1) + (v - 1)·p of warm-up, and one more: Korthikanti et al., 2022."""
    assert [sum(fullest_moment(rank_order(4, rank, 3, 16), [1, 1, 1]).in_flight) for rank in range(4)] == [
        2 * (3 - rank) + 2 * 4 + 1 for rank in range(4)
    ]


def test_the_fullest_moment_is_by_bytes_and_by_what_a_backward_pass_needs_beside() -> None:
    """Two ranks, two chunks, two micro-batches; the last rank's order is written out above: f0 f0 f1 b1 f1 b1 b0 b0."""
    order = rank_order(2, 1, 2, 2)
    assert fullest_moment(order, [10, 1]) == ((2, 1), 1)
    assert fullest_moment(order, [10, 1], [5, 0]) == ((2, 0), 0)


def test_waiting_for_transfers_costs_time() -> None:
    free, beside, waited = (
        simulate(equal_times(4, 1, transfer=transfer, blocking=blocking), 16).seconds
        for transfer, blocking in ((0.0, False), (0.1, False), (0.1, True))
    )
    assert free < beside < waited


def test_a_slow_stage_makes_the_others_wait() -> None:
    times = ChunkTimes([[1.0], [1.0], [1.5]], [[2.0], [2.0], [3.0]])
    timeline = simulate(times, 32)
    assert timeline.seconds == pytest.approx(32 * 4.5 + 2 * 3.0)
    assert timeline.busy(0) == pytest.approx(96)
