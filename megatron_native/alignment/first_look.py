"""The first look: whether a passage is clean, so that it may pass through the worker unchanged, decided at little cost.

In go a passage as the rules left it and the edits they made; out comes a verdict with a score and a reason. Signs
(`first_look_statistics`) are held against limits; a classifier trained on seed pairs (`first_look_classifier`) can be
asked besides, and then a passage must please both. A doubt costs one rewrite, so doubts are settled against clean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from megatron_native.alignment.first_look_classifier import Classifier
from megatron_native.alignment.first_look_statistics import Observer, Signs, lexicon
from megatron_native.errors import UserError
from megatron_native.manifest import parameters_hash

LIMITS: Mapping[str, float] = {
    "residue": 0.5, "edits": 6.0, "symbols": 0.01, "latin": 0.3, "broken_lines": 0.5, "elongated": 0.5, "strange": 0.5,
    "harm": 0.5, "offers": 3.5, "mixed_digits": 0.5, "unpunctuated": 45.0, "colloquial": 1.5, "misspelt": 1.5,
    "repeated": 0.1,
}  # fmt: skip
"""Of every sign the most that a clean passage has. Counts have limits between two numbers."""
VERSION = 1


@dataclass(frozen=True)
class FirstLookSettings:
    """What is clean.

    Attributes:
        limits: of the signs that shall have other limits than `LIMITS`; a negative one turns a sign off.
        classifier: the file of a classifier, or "" for none.
        threshold: the classifier's probability of a needed rewrite from which a passage is not clean; None takes the
            one that was chosen when it was trained.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    classifier: str = ""
    threshold: float | None = None


class Look(NamedTuple):
    """What the first look says.

    Attributes:
        clean: whether the passage may stay as it is.
        score: how much speaks for a rewrite, from 0 to 1: of signs value / (value + limit), so that 0.5 is the limit; of a
            classifier its probability, where that alone decides.
        reason: the sign that is furthest over its limit, `classifier`, or `clean`.
    """

    clean: bool
    score: float
    reason: str


class FirstLook:
    """Looks at one passage after another; not to be shared by threads.

    Raises:
        UserError: a limit has an unknown name or is no number, the threshold is no probability, or the classifier can't be
            read.
    """

    def __init__(self, settings: FirstLookSettings | None = None) -> None:
        self.settings = settings or FirstLookSettings()
        for name, limit in self.settings.limits.items():
            if name not in LIMITS:
                raise UserError(f"first look: there is no sign '{name}'; the signs are {', '.join(LIMITS)}.")
            if isinstance(limit, bool) or not isinstance(limit, int | float) or limit != limit or limit == 0:
                raise UserError(
                    f"first look: limit {name} = {limit!r}: give a number above 0, or a negative one for off."
                )
        threshold = self.settings.threshold
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(f"first look: threshold = {threshold}: a probability from 0 to 1 belongs here.")
        limits = {**LIMITS, **self.settings.limits}
        self._limits = [(Signs._fields.index(name), name, limit) for name, limit in limits.items() if limit > 0]
        self._observer = Observer()
        self._classifier = Classifier.load(Path(self.settings.classifier)) if self.settings.classifier else None
        if self._classifier is not None:
            self._threshold = self._classifier.threshold if threshold is None else threshold

    @property
    def parameters(self) -> dict[str, Any]:
        """For manifests: limits, words and classifier."""
        values = asdict(self.settings)
        values["limits"] = {name: limit for _, name, limit in self._limits}
        values |= {"version": VERSION, "words": parameters_hash(lexicon())}
        if self._classifier is not None:
            values |= {"classifier": self._classifier.hash, "threshold": self._threshold}
        return values

    def look(self, passage_text: str, rule_edits: Mapping[str, int]) -> Look:
        """Whether a passage is clean.

        Args:
            passage_text: as the rules left it.
            rule_edits: what the rules edited in it, by their names (`RuleResult.edits`).
        """
        signs = self._observer.signs(passage_text, rule_edits)
        worst, reason = 0.0, "clean"
        for index, name, limit in self._limits:
            ratio = signs[index] / limit
            if ratio > worst:
                worst, reason = ratio, name
        score = worst / (1 + worst)
        if worst > 1:
            return Look(False, score, reason)
        if self._classifier is not None:
            probability = self._classifier.probability(passage_text, signs)
            needed = probability >= self._threshold
            return Look(not needed, probability, "classifier" if needed else "clean")
        return Look(True, score, "clean")
