"""Quality filters: a registry of small tests over the statistics of one pass, with thresholds that are data.

A filter is a function from a document's statistics and its threshold to the reason for refusing it, or None. To add
one, write it here and register it under the key of its threshold in `presets/*.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from megatron_native.corpus.folding import word_hash
from megatron_native.corpus.statistics import (
    DUPLICATE_NGRAMS,
    NO_LEXICONS,
    TOP_NGRAMS,
    Lexicons,
    Statistics,
    hash_set,
    measure_text,
)  # fmt: skip
from megatron_native.errors import UserError

Filter = Callable[[Statistics, Any], str | None]
_FILTERS: dict[str, Filter] = {}
_LEAST_LIST_LINES = 5
_MOST_LIST_WORDS = 20
"""Words a line from which lines with bullets are paragraphs."""
_STOP_WORDS = "stop_words"
"""The one key that is a list and no threshold: the words that `min_stop_words` counts."""


def _register(key: str) -> Callable[[Filter], Filter]:
    def register(function: Filter) -> Filter:
        _FILTERS[key] = function
        return function

    return register


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@_register("min_words")
def _too_short(statistics: Statistics, threshold: int) -> str | None:
    return "too few words" if statistics.words < threshold else None


@_register("max_words")
def _too_long(statistics: Statistics, threshold: int) -> str | None:
    return "too many words" if statistics.words > threshold else None


@_register("mean_word_length")
def _word_length(statistics: Statistics, bounds: tuple[float, float]) -> str | None:
    low, high = bounds
    return None if low <= _share(statistics.letters, statistics.words) <= high else "mean word length"


@_register("min_alphabetic_words")
def _alphabetic_words(statistics: Statistics, threshold: float) -> str | None:
    return "too few alphabetic words" if _share(statistics.alphabetic_words, statistics.words) < threshold else None


@_register("min_letters_share")
def _letters(statistics: Statistics, threshold: float) -> str | None:
    """Of what is printed, without marks and tatweel."""
    printed = statistics.characters - statistics.blanks - statistics.marks - statistics.tatweel
    return "too few letters" if _share(statistics.letters - statistics.digits, printed) < threshold else None


@_register("max_duplicate_lines")
def _duplicate_lines(statistics: Statistics, threshold: float) -> str | None:
    return "repeated lines" if _share(statistics.duplicate_lines, statistics.lines) > threshold else None


@_register("max_duplicate_line_characters")
def _duplicate_line_characters(statistics: Statistics, threshold: float) -> str | None:
    share = _share(statistics.duplicate_line_characters, statistics.characters)
    return "repeated lines" if share > threshold else None


@_register("max_top_ngram")
def _top_ngram(statistics: Statistics, thresholds: Mapping[int, float]) -> str | None:
    found = dict(zip(TOP_NGRAMS, statistics.top_ngrams))
    return "repeated phrases" if any(found[size] > threshold for size, threshold in thresholds.items()) else None


@_register("max_duplicate_ngrams")
def _duplicate_ngrams(statistics: Statistics, thresholds: Mapping[int, float]) -> str | None:
    found = dict(zip(DUPLICATE_NGRAMS, statistics.duplicate_ngrams))
    return "repeated passages" if any(found[size] > threshold for size, threshold in thresholds.items()) else None


@_register("min_punctuated_lines")
def _punctuated_lines(statistics: Statistics, threshold: float) -> str | None:
    """A text whose writer uses no punctuation at all is not worse for it (AraMix): none is as good as enough."""
    share = _share(statistics.punctuated_lines, statistics.lines)
    return "too few punctuated lines" if 0 < share < threshold else None


@_register("max_line_breaks_per_word")
def _line_breaks(statistics: Statistics, threshold: float) -> str | None:
    return "too many line breaks" if _share(statistics.line_breaks, statistics.words) > threshold else None


@_register("max_ellipsis_lines")
def _ellipsis_lines(statistics: Statistics, threshold: float) -> str | None:
    return (
        "too many lines end in an ellipsis" if _share(statistics.ellipsis_lines, statistics.lines) > threshold else None
    )


@_register("max_bullet_lines")
def _bullet_lines(statistics: Statistics, threshold: float) -> str | None:
    """A list; a dash or a dot before each paragraph, or before a few lines, is a habit of newspapers and makes none."""
    if statistics.lines < _LEAST_LIST_LINES or statistics.words > _MOST_LIST_WORDS * statistics.lines:
        return None
    return "too many bullet lines" if _share(statistics.bullet_lines, statistics.lines) > threshold else None


@_register("max_symbols_per_word")
def _symbols(statistics: Statistics, threshold: float) -> str | None:
    return "too many symbols" if _share(statistics.symbols, statistics.words) > threshold else None


@_register("min_stop_words")
def _stop_words(statistics: Statistics, threshold: int) -> str | None:
    return "too few stop words" if statistics.stop_words < threshold else None


@_register("max_unsafe_words")
def _unsafe_words(statistics: Statistics, limits: Mapping[str, float]) -> str | None:
    """Refused where both limits are passed: `count` words, and their `share` of all."""
    found = statistics.unsafe_words
    many, dense = found > limits["count"], _share(found, statistics.words) > limits["share"]
    return "unsafe words" if many and dense else None


_SAMPLE = Statistics._make([8] * (len(Statistics._fields) - 2) + [(-1.0,) * len(TOP_NGRAMS), (-1.0,) * len(DUPLICATE_NGRAMS)])
"""Statistics on which every filter looks at its threshold, so that one of another form is found before the first text."""


def _word_hashes(words: Any, key: str, source: str) -> NDArray[np.uint64]:
    """Words of a YAML list; YAML reads an unquoted on, off, yes or no as true or false, which must not pass unseen."""
    if not isinstance(words, list) or not words:
        raise UserError(f"{source}: {key} must be a list of words, it is {words!r}.")
    for word in words:
        if not isinstance(word, str):
            raise UserError(
                f"{source}: {key} holds {word!r}, which is no word; put quotes around it ('on', 'no', '1')."
            )
    try:
        return hash_set(map(word_hash, words))
    except ValueError as error:
        raise UserError(f"{source}: {key} must hold single words; {error}.") from None


@cache
def _unsafe_hashes() -> NDArray[np.uint64]:
    raw = resources.files("megatron_native.corpus").joinpath("lexicons/unsafe.yaml").read_text(encoding="utf-8")
    return _word_hashes(yaml.safe_load(raw)["words"], "words", "lexicons/unsafe.yaml")


class QualityFilters:
    """The filters of one language with their thresholds, in the order of the registry.

    `lexicons` are the words to count when a text is measured for these filters.
    """

    def __init__(self, thresholds: Mapping[str, Any], source: str) -> None:
        if not isinstance(thresholds, Mapping):
            raise UserError(f"{source}: {thresholds!r} where thresholds ('min_words: 25', …) belong.")
        unknown = sorted(set(map(str, thresholds)) - {*_FILTERS, _STOP_WORDS})
        if unknown:
            raise UserError(f"{source}: unknown filters {unknown}; known are {sorted({*_FILTERS, _STOP_WORDS})}.")
        none = NO_LEXICONS.stop
        stop = (
            _word_hashes(thresholds.get(_STOP_WORDS), _STOP_WORDS, source) if "min_stop_words" in thresholds else none
        )
        self.lexicons = Lexicons(stop, _unsafe_hashes() if "max_unsafe_words" in thresholds else none)
        self._steps: list[tuple[Filter, Any]] = []
        for key, function in _FILTERS.items():
            if key not in thresholds:
                continue
            try:
                function(_SAMPLE, thresholds[key])
            except (TypeError, ValueError, LookupError, AttributeError):
                raise UserError(
                    f"{source}: {key} can't be {thresholds[key]!r}; see presets/msa.yaml for its form."
                ) from None
            self._steps.append((function, thresholds[key]))

    def refuse(self, statistics: Statistics) -> str | None:
        """The first filter's reason to refuse a text of these statistics, or None to keep it."""
        for function, setting in self._steps:
            reason = function(statistics, setting)
            if reason is not None:
                return reason
        return None

    def refuse_text(self, text: str) -> str | None:
        """`refuse` of a text that is not measured yet."""
        return self.refuse(measure_text(text, self.lexicons))


def load_preset(name_or_path: str) -> dict[str, Any]:
    """A preset by name (`msa`, `dialect`, `classical`, `none`) or from a YAML file: `{"languages": {language: thresholds}}`.

    Raises:
        UserError: there is no such preset or file, or it has no languages.
    """
    path = Path(name_or_path)
    folder = resources.files("megatron_native.corpus").joinpath("presets")
    known = sorted(
        item.name.removesuffix(".yaml") for item in folder.iterdir()
        if item.name.endswith(".yaml") and item.name != "boilerplate.yaml"
    )  # fmt: skip
    if name_or_path in known:
        raw = folder.joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif path.is_file():
        try:
            raw = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name_or_path} can't be read: {error}.") from None
    else:
        raise UserError(f"there is no preset '{name_or_path}'; known are {', '.join(known)}, or give a YAML file.")
    try:
        preset = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise UserError(f"{name_or_path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(preset, dict) or not isinstance(preset.get("languages"), dict):
        raise UserError(f"{name_or_path} is no preset: it needs 'languages:' with thresholds for each.")
    for language, thresholds in preset["languages"].items():
        QualityFilters(thresholds or {}, f"{name_or_path}, {language}")
    return preset
