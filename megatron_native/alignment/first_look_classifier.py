"""A small classifier for the first look: would the expert have changed this passage?

Logistic regression on hashed character n-grams and on the signs of `first_look_statistics`, trained with Adagrad on seed
pairs (`origin`, `rewritten`) in one thread, so that equal seeds give equal files. A file is an .npz without pickled
objects: weights and a JSON text.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from math import exp, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_native.alignment.first_look_statistics import BUCKETS, NGRAMS, Ngrams, Observer, Signs
from megatron_native.errors import UserError

FORMAT = "megatron-native first look 1"
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
_NORMAL_95 = 1.959963984540054
_LEAST_PAIRS = 40


class Example(NamedTuple):
    """A passage as the rules left it, what they edited, and whether the expert changed it."""

    text: str
    rule_edits: dict[str, int]
    needed: bool


class Row(NamedTuple):
    """One threshold on held-out pairs.

    Attributes:
        threshold: passages below it pass through.
        skipped: their share of all.
        missed: their share of those that the expert changed.
        missed_low, missed_high: the 95 % interval of `missed` (Wilson).
    """

    threshold: float
    skipped: float
    missed: float
    missed_low: float
    missed_high: float


@dataclass(frozen=True)
class TrainingSettings:
    """How a classifier is trained.

    Attributes:
        min_change: share of words changed from which a rewrite was needed.
        miss_rate: share of needed rewrites that may be missed; chooses the threshold.
        held_out: share of the pairs that are not trained on: one half chooses the threshold, the other is reported.
        epochs, learning_rate, l2: of the training.
        seed: of the split and the order.
    """

    min_change: float = 0.02
    miss_rate: float = 0.02
    held_out: float = 0.3
    epochs: int = 6
    learning_rate: float = 0.3
    l2: float = 1e-6
    seed: int = 1234

    def check(self) -> None:
        """Raise UserError where a setting is out of its range."""
        for name, low, high in (("min_change", 0, 1), ("miss_rate", 0, 1), ("held_out", 0.02, 0.9)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"first look: {name} = {value}: give a share from {low} to {high}.")
        if self.epochs < 1 or self.learning_rate <= 0 or self.l2 < 0:
            raise UserError("first look: give one epoch or more, a learning rate above 0 and an l2 of 0 or more.")


class Trained(NamedTuple):
    """A classifier and how it did on pairs that neither trained it nor chose its threshold."""

    classifier: Classifier
    rows: list[Row]
    chosen: Row
    pairs: int
    needed: int


class Classifier:
    """Gives the probability that a passage needs a rewrite.

    Args:
        weights: float32 [BUCKETS + signs].
        bias: of the logit.
        threshold: the probability from which a rewrite is needed.
        metadata: what is known of the training, JSON-able.
    """

    def __init__(
        self, weights: NDArray[np.float32], bias: float, threshold: float, metadata: dict[str, Any] | None = None
    ) -> None:
        self.weights, self.bias, self.threshold = weights, bias, threshold
        self.metadata = metadata or {}
        self._ngrams = Ngrams()

    @property
    def hash(self) -> str:
        """xxh3_128 of weights, bias and threshold."""
        return xxhash.xxh3_128_hexdigest(self.weights.tobytes() + f"{self.bias!r} {self.threshold!r}".encode())

    def probability(self, text: str, signs: Signs) -> float:
        """The probability that a passage with these signs needs a rewrite."""
        buckets, values = _features(self._ngrams, text, signs)
        return _logistic(self.bias + float(np.dot(self.weights[buckets], values)))

    def save(self, path: Path) -> None:
        """Write the file.

        Raises:
            UserError: it can't be written.
        """
        about = {"format": FORMAT, "buckets": BUCKETS, "ngrams": NGRAMS, "signs": Signs._fields, "bias": self.bias}
        about |= {"threshold": self.threshold, "metadata": self.metadata}
        text = np.frombuffer(json.dumps(about, ensure_ascii=False).encode(), dtype=np.uint8)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            with open(partial, "wb") as file:
                np.savez_compressed(file, weights=self.weights, about=text)
            partial.replace(path)
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror or error}; choose another output.") from error

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Read a file.

        Raises:
            UserError: there is none, or it is no classifier of this version.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(file["about"].tobytes().decode())
                weights = file["weights"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(
                f"{path} is no classifier of the first look ({error}); make one with megatron-native train-first-look."
            ) from error
        made = about.get("format"), about.get("buckets"), tuple(about.get("ngrams", ())), tuple(about.get("signs", ()))
        if made != (FORMAT, BUCKETS, NGRAMS, Signs._fields) or weights.shape != (BUCKETS + len(Signs._fields),):
            raise UserError(f"{path} was made by another version ({about.get('format')}); train it again.")
        return cls(weights.astype(np.float32), float(about["bias"]), float(about["threshold"]), about["metadata"])


def changed_share(before: str, after: str) -> float:
    """Share of the words that differ between two texts: 0 for equal ones, 1 where none is common."""
    first, second = before.split(), after.split()
    if first == second:
        return 0.0
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    return 1 - sum(block.size for block in matcher.get_matching_blocks()) / max(len(first), len(second), 1)


def train(examples: Sequence[Example], settings: TrainingSettings | None = None) -> Trained:
    """Train on most of the examples, choose the threshold on some, report on the rest.

    Raises:
        UserError: a setting is out of its range, or there are too few examples of one kind.
    """
    settings = settings or TrainingSettings()
    settings.check()
    needed = sum(example.needed for example in examples)
    if min(needed, len(examples) - needed) < _LEAST_PAIRS:
        raise UserError(
            f"first look: {len(examples)} pairs, of which the expert changed {needed}: at least {_LEAST_PAIRS} changed and "
            f"{_LEAST_PAIRS} unchanged ones are needed; give more pairs, or another --min-change."
        )
    order = np.random.default_rng(settings.seed).permutation(len(examples)).tolist()
    held = max(2, round(settings.held_out * len(examples)))
    choosing, reporting, learning = order[: held // 2], order[held // 2 : held], order[held:]
    observer, ngrams = Observer(), Ngrams()
    rows = [_features(ngrams, each.text, observer.signs(each.text, each.rule_edits)) for each in examples]
    labels = np.array([example.needed for example in examples], dtype=np.float32)
    weights, bias = _fit([rows[n] for n in learning], labels[learning], settings)
    metadata = {"pairs": len(examples), "needed": needed, "settings": vars(settings)}
    classifier = Classifier(weights, bias, 0.0, metadata)
    probabilities = np.array([_logistic(bias + float(np.dot(weights[b], v))) for b, v in rows])
    classifier.threshold = _choose(probabilities[choosing], labels[choosing], settings.miss_rate)
    of_report = probabilities[reporting], labels[reporting]
    table = [_row(threshold, *of_report) for threshold in THRESHOLDS]
    chosen = _row(classifier.threshold, *of_report)
    metadata |= {"chosen": chosen._asdict(), "table": [row._asdict() for row in table]}
    return Trained(classifier, table, chosen, len(reporting), int(of_report[1].sum()))


def _features(ngrams: Ngrams, text: str, signs: Signs) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    buckets, values = ngrams.features(text)
    own = np.arange(BUCKETS, BUCKETS + len(signs), dtype=np.int32)
    return np.concatenate([buckets, own]), np.concatenate([values, np.log1p(np.array(signs, dtype=np.float32))])


def _fit(
    rows: list[tuple[NDArray[np.int32], NDArray[np.float32]]], labels: NDArray[np.float32], settings: TrainingSettings
) -> tuple[NDArray[np.float32], float]:
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(buckets) for buckets, _ in rows], out=starts[1:])
    buckets = np.concatenate([each for each, _ in rows])
    values = np.concatenate([each for _, each in rows])
    weights = np.zeros(BUCKETS + len(Signs._fields), dtype=np.float64)
    squares = np.full(len(weights) + 1, 1e-6)
    bias = np.zeros(1)
    random = np.random.default_rng(settings.seed)
    for _ in range(settings.epochs):
        order = random.permutation(len(rows))
        _epoch(order, starts, buckets, values, labels, weights, squares, bias, settings.learning_rate, settings.l2)
    return weights.astype(np.float32), float(bias[0])


@numba.njit(cache=True)
def _epoch(
    order: Any,
    starts: Any,
    buckets: Any,
    values: Any,
    labels: Any,
    weights: Any,
    squares: Any,
    bias: Any,
    rate: float,
    l2: float,
) -> None:
    """One pass of Adagrad over the rows in this order."""
    for row in order:
        logit = bias[0]
        for place in range(starts[row], starts[row + 1]):
            logit += weights[buckets[place]] * values[place]
        error = 1.0 / (1.0 + np.exp(-logit)) - labels[row]
        for place in range(starts[row], starts[row + 1]):
            bucket = buckets[place]
            gradient = error * values[place] + l2 * weights[bucket]
            squares[bucket] += gradient * gradient
            weights[bucket] -= rate * gradient / np.sqrt(squares[bucket])
        squares[-1] += error * error
        bias[0] -= rate * error / np.sqrt(squares[-1])


def _logistic(logit: float) -> float:
    return 1 / (1 + exp(-logit)) if logit > -700 else 0.0


def _choose(probabilities: NDArray[np.float64], labels: NDArray[np.float32], miss_rate: float) -> float:
    """The highest threshold that misses no more than the share `miss_rate` of the needed rewrites."""
    of_needed = np.sort(probabilities[labels > 0])
    if not len(of_needed):
        return 0.0
    return float(of_needed[min(int(miss_rate * len(of_needed)), len(of_needed) - 1)])


def _row(threshold: float, probabilities: NDArray[np.float64], labels: NDArray[np.float32]) -> Row:
    below = probabilities < threshold
    needed = int((labels > 0).sum())
    missed = int((below & (labels > 0)).sum())
    low, high = wilson(missed, needed)
    return Row(threshold, float(below.mean()) if len(below) else 0.0, missed / max(1, needed), low, high)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score interval); (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    share, square = successes / trials, _NORMAL_95**2
    middle = share + square / (2 * trials)
    half = _NORMAL_95 * sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    scale = 1 + square / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
