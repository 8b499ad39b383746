"""Learning rates by hand."""

from __future__ import annotations

import math

import pytest

from megatron_native.config.phases import Schedule
from megatron_native.config.run import ScheduleShape
from megatron_native.training.schedule import learning_rate


def rates(shape: ScheduleShape, lr: float, low: float, warmup: int, total: int, start: float = 0.0) -> list[float]:
    schedule = Schedule(lr, low, shape, warmup, start, decay_fraction=0.5)
    return [learning_rate(schedule, step, total) for step in range(1, total + 1)]


def test_warms_up_linearly_and_ends_at_the_minimum() -> None:
    expected = [0.25, 0.5, 0.75, 1.0, 0.775, 0.55, 0.325, 0.1]
    assert rates("linear", 1.0, 0.1, 4, 8) == pytest.approx(expected)


def test_warms_up_from_where_it_is_told() -> None:
    assert rates("constant", 1.0, 0.0, 4, 5, start=0.2) == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_is_halfway_at_half_the_decay() -> None:
    assert rates("cosine", 1.0, 0.2, 0, 10)[4] == pytest.approx(0.6)
    assert rates("cosine", 1.0, 0.2, 0, 10)[9] == pytest.approx(0.2)


def test_constant_stays_at_the_peak() -> None:
    assert rates("constant", 3.0, 0.0, 2, 10)[::3] == [1.5, 3.0, 3.0, 3.0]


def test_wsd_stays_and_then_falls_by_the_root() -> None:
    expected = [0.5, 1, 1, 1, 1 - math.sqrt(1 / 4), 1 - math.sqrt(2 / 4), 1 - math.sqrt(3 / 4), 0.0]
    assert rates("wsd", 1.0, 0.0, 2, 8) == pytest.approx(expected)


def test_sqrt_falls_from_the_first_step() -> None:
    assert rates("sqrt", 2.0, 1.0, 0, 4) == pytest.approx([2 - math.sqrt(step / 4) for step in (1, 2, 3, 4)])
