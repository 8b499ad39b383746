"""Perplexity before and after rewriting under a model, as the paper does with Llama-3-8B; bits per byte beside it.

Perplexity is exp(mean negative log-likelihood of a token), so a rewrite that tokenizes otherwise is compared a little
unfairly; bits per byte is not touched by that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from megatron_native.alignment.analyses.distributions import (
    Distribution,
    Interval,
    distribution,
    edges_of,
    mean_interval,
)
from megatron_native.alignment.analyses.pairs import RewritePair


class Scorer(Protocol):
    """What `alignment.perplexity.Perplexity` does."""

    def identity(self) -> dict[str, Any]:
        """What scored."""
        ...

    def score(self, texts: Any, on_scored: Callable[[int], None] = ...) -> Sequence[Any]:
        """`perplexity` and `bits_per_byte` of each text."""
        ...


@dataclass(frozen=True, slots=True)
class MeasureChange:
    """One measure over the pairs.

    Attributes:
        measure: `log perplexity` (nats a token) or `bits per byte`.
        before, after: over the same bins.
        difference: mean of after − before over the pairs, with its interval.
        lower: pairs whose rewrite has less.
    """

    measure: str
    before: Distribution
    after: Distribution
    difference: Interval
    lower: int


@dataclass(frozen=True, slots=True)
class FluencyChange:
    """Both measures; pairs with an empty side are left out (`unscored`)."""

    model: dict[str, Any]
    pairs: int
    unscored: int
    measures: list[MeasureChange]


def fluency_change(
    pairs: Sequence[RewritePair],
    scorer: Scorer,
    seed: int = 0,
    on_scored: Callable[[int], None] = lambda texts: None,
) -> FluencyChange:
    """The change over the pairs; `on_scored` hears how many texts have been scored. Equal texts are scored once."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.origin, pair.rewritten or "")))
    scores = dict(zip(texts, scorer.score(texts, on_scored), strict=True))
    sides = [
        np.array([(np.log(one.perplexity), one.bits_per_byte) for one in side]).reshape(-1, 2)
        for side in (
            [scores[pair.origin] for pair in pairs],
            [scores[pair.rewritten or ""] for pair in pairs],
        )
    ]
    scored = np.isfinite(sides[0]).all(axis=1) & np.isfinite(sides[1]).all(axis=1)
    measures = []
    for column, name in enumerate(("log perplexity", "bits per byte")):
        before, after = sides[0][scored, column], sides[1][scored, column]
        if len(before):
            edges = edges_of([before, after])
            measures.append(
                MeasureChange(
                    name, distribution(before, edges), distribution(after, edges), mean_interval(after - before, seed),
                    int((after < before).sum()),
                )
            )  # fmt: skip
    return FluencyChange(scorer.identity(), int(scored.sum()), len(pairs) - int(scored.sum()), measures)
