"""Blends: which dataset, and which of its sequences, the i-th sample is.

A weight is the share of *sequences* drawn from its dataset. The choice is the divisor method of Webster and
Sainte-Laguë: the m-th sequence of a dataset of weight w is due at (m + ½)/w, and samples come as they are due. It is
deterministic, needs no history (any sample is found from its number alone, so a resume costs nothing), does not depend
on how many samples are asked for, and keeps every dataset's count c after i samples close to its share:
|c − w·i| ≤ ½ + w·D/2 for D datasets, since all counts are w·t rounded at one common t with |t − i| ≤ D/2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from megatron_native.errors import UserError


class Shares:
    """The order in which datasets of some weights take turns, without end.

    Args:
        weights: they need not sum to 1, and a weight of 0 is never drawn.

    Raises:
        UserError: a weight that is negative or not finite, or no weight above 0.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        weights = [float(weight) for weight in weights]
        for weight in weights:
            if not math.isfinite(weight) or weight < 0:
                raise UserError(f"a blend weight is {weight}; weights are shares of sequences, 0 or more.")
        if not any(weights):
            raise UserError(f"the blend's weights are {weights}: at least one must be above 0.")
        # a float is a fraction with a power of two below: scaled to integers, every comparison is exact
        fractions = [Fraction(weight) for weight in weights]
        scale = math.lcm(*(fraction.denominator for fraction in fractions))
        self._weights = [int(fraction * scale) for fraction in fractions]
        self._total = sum(self._weights)
        self._position = 0
        self._counts = [0] * len(weights)

    @property
    def weights(self) -> list[float]:
        """Each dataset's share of sequences; they sum to 1."""
        return [weight / self._total for weight in self._weights]

    def counts(self, i: int) -> list[int]:
        """How many of the first i samples come from each dataset."""
        if i < 0:
            raise IndexError(f"sample {i}: samples are numbered from 0")
        if i < self._position or i - self._position > 4 * len(self._weights):
            self._counts = self._counts_before(i)
            self._position = sum(self._counts)
        while self._position < i:
            self._counts[self._next(self._counts)] += 1
            self._position += 1
        return list(self._counts)

    def locate(self, i: int) -> tuple[int, int]:
        """(dataset, n): the i-th sample is the n-th sequence of that dataset."""
        counts = self.counts(i)
        dataset = self._next(counts)
        return dataset, counts[dataset]

    def when(self, dataset: int, n: int) -> int:
        """i: the n-th sequence of `dataset`, whose weight is above 0, is the i-th sample."""
        low, high = n, n + 1
        while self.counts(high)[dataset] <= n:
            low, high = high, 2 * high
        while high - low > 1:  # counts before `low` are at most n, before `high` more
            middle = (low + high) // 2
            low, high = (middle, high) if self.counts(middle)[dataset] <= n else (low, middle)
        return low

    def _next(self, counts: list[int]) -> int:
        """The dataset whose next sequence, its c-th, is due first at (c + ½)/w; ties go by the order of the datasets."""
        best = -1
        for dataset, (count, weight) in enumerate(zip(counts, self._weights)):
            if weight and (best < 0 or (2 * count + 1) * self._weights[best] < (2 * counts[best] + 1) * weight):
                best = dataset
        return best

    def _counts_before(self, i: int) -> list[int]:
        """Counts at a moment when at most i and at least i − D samples have come: all that was due by t = i − D/2.

        By t a dataset has had the m with (m + ½)/w ≤ t, which is ⌊w·t + ½⌋ of them; summed, at most t + D/2 = i.
        """
        twice_t = 2 * i - len(self._weights)
        if twice_t <= 0:
            return [0] * len(self._weights)
        return [(weight * twice_t + self._total) // (2 * self._total) for weight in self._weights]
