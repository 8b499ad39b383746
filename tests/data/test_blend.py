import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from megatron_native.data.blend import Shares
from megatron_native.errors import UserError


def blend(*weights):
    return Shares(weights)


def due_times(weights, samples):
    """The definition, by sorting: the m-th sequence of dataset d is due at (m + 1/2) / w; ties by order."""
    total = sum(map(Fraction, weights))
    due = [
        ((m + Fraction(1, 2)) / (Fraction(w) / total), d, m)
        for d, w in enumerate(weights) if w for m in range(samples)
    ]
    return [(d, m) for _, d, m in sorted(due)[:samples]]


WEIGHTS = [(1.0,), (0.7, 0.3), (0.5, 0.5), (0.0, 0.2, 0.0, 0.8), (0.95, 0.05), (3, 2, 1), (0.1,) * 10, (1e-6, 1.0)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_samples_come_as_they_are_due(weights):
    mixture = blend(*weights)
    assert [mixture.locate(i) for i in range(200)] == due_times(weights, 200)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_sample_is_found_from_its_number_alone(weights):
    expected = due_times(weights, 150)
    walked = blend(*weights)
    for i in np.random.default_rng(1).permutation(150):
        assert blend(*weights).locate(int(i)) == walked.locate(int(i)) == expected[i]


def test_shares_follow_the_weights_at_every_moment():
    weights = [0.6, 0.25, 0.1, 0.04, 0.01]
    mixture, counts = blend(*weights), Counter()
    for i in range(20_000):
        counts[mixture.locate(i)[0]] += 1
        for dataset, weight in enumerate(mixture.weights):
            assert abs(counts[dataset] - weight * (i + 1)) <= 0.5 + weight * len(weights) / 2


def test_numbers_of_a_dataset_come_in_order_without_gaps():
    mixture = blend(0.31, 0.27, 0.42)
    seen = [0, 0, 0]
    for i in range(5000):
        dataset, n = mixture.locate(i)
        assert n == seen[dataset]
        seen[dataset] += 1
    assert mixture.counts(5000) == seen


def test_tiny_and_zero_weights():
    mixture = blend(1.0, 1e-6, 0.0)
    counts = mixture.counts(10_000_000)
    assert counts == [9_999_990, 10, 0]
    first = next(i for i in range(499_000, 501_000) if mixture.locate(i)[0] == 1)
    assert abs(first - 500_000) <= 2


def test_a_resume_far_into_a_run_costs_nothing():
    begin = time.perf_counter()
    mixture = blend(0.7, 0.2, 0.1)
    dataset, n = mixture.locate(10**12)
    assert sum(mixture.counts(10**12)) == 10**12
    assert abs(n - mixture.weights[dataset] * 10**12) <= 2
    assert time.perf_counter() - begin < 0.1


@pytest.mark.parametrize("weights", WEIGHTS)
def test_when_a_sequence_comes_is_where_it_was_found(weights):
    mixture = blend(*weights)
    for i in range(200):
        assert mixture.when(*mixture.locate(i)) == i


@pytest.mark.parametrize("weights", [(), (0.0, 0.0), (-1.0, 2.0), (float("nan"),), (float("inf"), 1.0)])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(UserError, match="weight"):
        blend(*weights)
