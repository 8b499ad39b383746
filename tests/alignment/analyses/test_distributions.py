"""Intervals and distributions against theory and hand calculation."""

import math

import numpy as np
import pytest

from megatron_native.alignment.analyses.distributions import (
    distribution,
    edges_of,
    mean_interval,
    relative_change,
)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(3.0, 2.0, 900)
    found = mean_interval(values)
    half = 1.959964 * values.std(ddof=1) / math.sqrt(900)
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert mean_interval(values) == found  # the seed decides


def test_the_relative_change_is_of_the_means_and_pairs_stay_together():
    before = np.array([0.0, 0.2, 0.4, 0.6])
    found = relative_change(before, before / 2)
    assert found is not None
    assert found.value == pytest.approx(-50.0)  # mean 0.3 → 0.15
    assert found.low == pytest.approx(-50.0) and found.high == pytest.approx(-50.0)  # in every draw of pairs
    assert relative_change(np.zeros(4), before) is None
    with pytest.raises(ValueError):
        mean_interval([])


def test_every_finite_value_is_in_a_bin():
    values = [1.0, 2.0, 2.0, 100.0, math.nan, math.inf]
    found = distribution(values, np.linspace(0, 4, 5))
    assert (found.count, found.mean) == (4, 26.25)
    assert [count for _, _, count in found.bins] == [0, 1, 2, 1]  # what lies outside counts in the last
    assert found.quantiles[50] == 2.0
    assert distribution([]).bins == []
    assert len(edges_of([[5.0], [5.0]])) == 41  # equal values have an axis too
