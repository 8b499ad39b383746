"""How much longer or shorter rewrites are: characters, words, sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_native.alignment.analyses.distributions import Distribution, Interval, distribution, mean_interval
from megatron_native.alignment.analyses.pairs import RewritePair
from megatron_native.alignment.sentence_bounds import sentence_ends
from megatron_native.corpus.folding import WordFolder

UNITS = ("characters", "words", "sentences")
_EDGES = np.linspace(0.0, 2.0, 41)


@dataclass(frozen=True, slots=True)
class LengthShift:
    """One unit over the pairs.

    Attributes:
        unit: of `UNITS`.
        before, after: sums over all pairs.
        ratio: after/before of each pair that has any before.
        mean_ratio: with its interval; None without pairs.
        shorter, same, longer: pairs.
    """

    unit: str
    before: int
    after: int
    ratio: Distribution
    mean_ratio: Interval | None
    shorter: int
    same: int
    longer: int


def length_shift(pairs: Iterable[RewritePair], seed: int = 0) -> list[LengthShift]:
    """The shift in each unit. Words are those of the matching view; a line is a sentence of its own."""
    folder = WordFolder()
    counted = [(counts(pair.origin, folder), counts(pair.rewritten or "", folder)) for pair in pairs]
    return [_shift(unit, [(a[n], b[n]) for a, b in counted], seed) for n, unit in enumerate(UNITS)]


def counts(text: str, folder: WordFolder) -> tuple[int, int, int]:
    """(characters, words, sentences) of a text."""
    return len(text), len(folder.words(text).hashes), len(sentence_ends(text))


def _shift(unit: str, counted: Sequence[tuple[int, int]], seed: int) -> LengthShift:
    ratios = [after / before for before, after in counted if before]
    return LengthShift(
        unit, sum(before for before, _ in counted), sum(after for _, after in counted),
        distribution(ratios, _EDGES), mean_interval(ratios, seed) if ratios else None,
        sum(after < before for before, after in counted), sum(after == before for before, after in counted),
        sum(after > before for before, after in counted),
    )  # fmt: skip
