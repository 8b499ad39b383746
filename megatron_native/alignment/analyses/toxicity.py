"""Toxicity before and after rewriting, by any classifier, as the paper compares it: the mean score of each category."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_native.alignment.analyses.distributions import Interval, mean_interval, relative_change
from megatron_native.alignment.analyses.pairs import RewritePair

AT_ONCE = 256
PAPER = {"sexual": -31.82, "hate": -26.87, "harassment": -20.82, "violence": -16.54}
"""Relative change, percent, of 8,000 pairs of the paper's data by a hosted moderation API (arXiv 2412.03253)."""


class ToxicityClassifier(Protocol):
    """What scores texts.

    Attributes:
        categories: what the columns of `score` are.
    """

    categories: Sequence[str]

    def identity(self) -> dict[str, Any]:
        """What scored, for the record."""
        ...

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """0 (none) to 1, float64 [texts, categories]; a row of nan for a text that could not be scored."""
        ...


@dataclass(frozen=True, slots=True)
class CategoryChange:
    """One category over the pairs.

    Attributes:
        category: as the classifier names it.
        before, after: mean scores.
        flagged_before, flagged_after: texts with 0.5 or more.
        difference: mean of after − before, with its interval.
        relative: percent of the mean before; None where that is 0.
    """

    category: str
    before: float
    after: float
    flagged_before: int
    flagged_after: int
    difference: Interval
    relative: Interval | None


@dataclass(frozen=True, slots=True)
class ToxicityChange:
    """Toxicity of the pairs.

    Attributes:
        classifier: what scored.
        pairs: that both texts of were scored; unscored: others.
        categories: one each.
    """

    classifier: dict[str, Any]
    pairs: int
    unscored: int
    categories: list[CategoryChange] = field(default_factory=list)


def toxicity_change(
    pairs: Sequence[RewritePair],
    classifier: ToxicityClassifier,
    seed: int = 0,
    on_scored: Callable[[int], None] = lambda texts: None,
) -> ToxicityChange:
    """The change over the pairs; `on_scored` hears how many texts have been scored. Equal texts are scored once."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.origin, pair.rewritten or "")))
    scores = np.zeros((len(texts), len(classifier.categories)))
    for start in range(0, len(texts), AT_ONCE):
        batch = texts[start : start + AT_ONCE]
        scores[start : start + len(batch)] = classifier.score(batch)
        on_scored(len(batch))
    places = {text: place for place, text in enumerate(texts)}
    before = scores[[places[pair.origin] for pair in pairs]] if pairs else scores
    after = scores[[places[pair.rewritten or ""] for pair in pairs]] if pairs else scores
    scored = ~(np.isnan(before).any(axis=1) | np.isnan(after).any(axis=1))
    before, after = before[scored], after[scored]
    found = [
        CategoryChange(
            name, float(a.mean()), float(b.mean()), int((a >= 0.5).sum()), int((b >= 0.5).sum()),
            mean_interval(b - a, seed), relative_change(a, b, seed),
        )
        for name, a, b in zip(classifier.categories, before.T, after.T)
        if len(before)
    ]  # fmt: skip
    return ToxicityChange(classifier.identity(), int(scored.sum()), len(pairs) - int(scored.sum()), found)
