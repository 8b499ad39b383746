"""Learning rates by hand."""

from __future__ import annotations

import pytest

from megatron_native.training.schedule import LearningRate


def test_warms_up_linearly_and_ends_at_the_minimum() -> None:
    rate = LearningRate(1.0, 0.1, warmup_steps=4, total_steps=8, shape="linear")
    assert [rate.at(step) for step in range(1, 9)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.775, 0.55, 0.325, 0.1])


def test_cosine_is_halfway_at_half_the_decay() -> None:
    rate = LearningRate(1.0, 0.2, warmup_steps=0, total_steps=10, shape="cosine")
    assert rate.at(5) == pytest.approx(0.6)
    assert rate.at(10) == pytest.approx(0.2)


def test_constant_stays_at_the_peak() -> None:
    rate = LearningRate(3.0, 0.0, warmup_steps=2, total_steps=10, shape="constant")
    assert [rate.at(1), rate.at(2), rate.at(10)] == [1.5, 3.0, 3.0]
