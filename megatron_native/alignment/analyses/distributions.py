"""Distributions of a measure over pairs, and intervals by drawing the pairs again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
"""Draws of a bootstrap; its 95 % interval is from the 2.5th to the 97.5th percentile of them."""
QUANTILES = (1, 10, 25, 50, 75, 90, 99)
_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """A figure with its 95 % interval; pairs are what was drawn, so it holds the sample's chance and no other."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a measure is spread.

    Attributes:
        count: values; those that are no finite number are left out.
        mean: of all of them.
        quantiles: percentile → value.
        bins: (from, below, count), of equal width from the 0.5th to the 99.5th percentile; what lies outside is counted in
            the first and the last.
    """

    count: int
    mean: float
    quantiles: dict[int, float]
    bins: list[tuple[float, float, int]]


def distribution(values: ArrayLike, edges: NDArray[np.float64] | None = None, bins: int = 40) -> Distribution:
    """The distribution of `values`; `edges` are bounds of bins, ascending, those of `edges_of` by default."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return Distribution(0, 0.0, {}, [])
    edges = edges_of([numbers], bins) if edges is None else edges
    counts, _ = np.histogram(np.clip(numbers, edges[0], edges[-1]), edges)
    quantiles = {one: float(value) for one, value in zip(QUANTILES, np.percentile(numbers, QUANTILES))}
    filled = [(float(low), float(high), int(count)) for low, high, count in zip(edges, edges[1:], counts)]
    return Distribution(len(numbers), float(numbers.mean()), quantiles, filled)


def edges_of(groups: Sequence[ArrayLike], bins: int = 40) -> NDArray[np.float64]:
    """Bounds that several groups of values can share, float64 [bins + 1]."""
    numbers = np.concatenate([np.asarray(group, dtype=np.float64).ravel() for group in groups])
    numbers = numbers[np.isfinite(numbers)]
    low, high = np.percentile(numbers, (0.5, 99.5)) if len(numbers) else (0.0, 1.0)
    return np.linspace(low, high if high > low else low + 1.0, bins + 1)


def mean_interval(values: ArrayLike, seed: int = 0) -> Interval:
    """The mean of `values`, with a bootstrap interval.

    Raises:
        ValueError: there are none.
    """
    numbers = np.asarray(values, dtype=np.float64)
    return _resampled([numbers], lambda means: means[0], seed)


def relative_change(before: ArrayLike, after: ArrayLike, seed: int = 0) -> Interval | None:
    """100 · (mean of `after` / mean of `before` − 1), percent, pairs drawn together; None where `before` is all 0."""
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if not len(first) or first.mean() == 0:
        return None

    def change(means: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return 100 * (means[1] / means[0] - 1)

    return _resampled([first, second], change, seed)


def _resampled(
    columns: Sequence[NDArray[np.float64]],
    figure: Callable[[list[NDArray[np.float64]]], NDArray[np.float64]],
    seed: int,
) -> Interval:
    count = len(columns[0])
    if not count:
        raise ValueError("an interval of no values")
    generator = np.random.default_rng(seed)
    drawn: list[list[NDArray[np.float64]]] = [[] for _ in columns]
    left, block = RESAMPLES, max(1, _AT_ONCE // count)
    while left > 0:
        rows = generator.integers(0, count, (min(block, left), count))
        for column, means in zip(columns, drawn):
            means.append(column[rows].mean(axis=1))
        left -= block
    figures = figure([np.concatenate(means) for means in drawn])
    figures = figures[np.isfinite(figures)]
    value = float(figure([np.array([column.mean()]) for column in columns])[0])
    low, high = np.percentile(figures, (2.5, 97.5)) if len(figures) else (value, value)
    return Interval(value, float(low), float(high))
