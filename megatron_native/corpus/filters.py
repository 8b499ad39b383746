"""Quality filters: a registry of small tests over one pass of statistics, with thresholds that are data.

A filter is a function from a document's statistics and its threshold to the reason for refusing it, or None. To add
one, write it here and register it under the key of its threshold in `presets/*.yaml`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import regex
import yaml

from megatron_native.errors import UserError

# Letters with their marks, or digits: the `regex` module keeps vocalised words whole, Python's own `re` does not.
_WORDS = regex.compile(r"[\p{L}\p{M}]+(?:['’\-][\p{L}\p{M}]+)*|\p{N}+")
_MARKS = regex.compile(r"\p{M}+")
_SYMBOLS = regex.compile(r"#|…|\.\.\.|\p{So}|[|<>{}\[\]\\^~*=_]")


@dataclass(frozen=True)
class Statistics:
    """What filters look at; each part is worked out once, when it is first asked for."""

    text: str

    @cached_property
    def words(self) -> list[str]:
        """Words and numbers, in order."""
        return _WORDS.findall(self.text)

    @cached_property
    def bare_words(self) -> list[str]:
        """The words without diacritics."""
        return [_MARKS.sub("", word) for word in self.words]

    @cached_property
    def lines(self) -> list[str]:
        """Lines with something on them."""
        return [line for line in self.text.split("\n") if line.strip()]


_SAMPLE = Statistics("جملة قصيرة للتجربة في سطر واحد")
Filter = Callable[[Statistics, Any], str | None]
_FILTERS: dict[str, tuple[Filter, tuple[str, ...]]] = {}


def _register(key: str, *companions: str) -> Callable[[Filter], Filter]:
    def register(function: Filter) -> Filter:
        _FILTERS[key] = (function, companions)
        return function

    return register


@_register("min_words")
def _too_short(statistics: Statistics, threshold: int) -> str | None:
    return "too few words" if len(statistics.words) < threshold else None


@_register("max_words")
def _too_long(statistics: Statistics, threshold: int) -> str | None:
    return "too many words" if len(statistics.words) > threshold else None


@_register("mean_word_length")
def _word_length(statistics: Statistics, bounds: tuple[float, float]) -> str | None:
    words = statistics.bare_words
    mean = sum(map(len, words)) / max(1, len(words))
    return None if bounds[0] <= mean <= bounds[1] else "mean word length"


@_register("min_alphabetic_words")
def _alphabetic_words(statistics: Statistics, threshold: float) -> str | None:
    words = statistics.words
    share = sum(1 for word in words if word[0].isalpha()) / max(1, len(words))
    return "too few alphabetic words" if share < threshold else None


@_register("max_duplicate_lines")
def _duplicate_lines(statistics: Statistics, threshold: float) -> str | None:
    lines = statistics.lines
    share = 1 - len(set(lines)) / max(1, len(lines))
    return "repeated lines" if share > threshold else None


@_register("max_top_ngram")
def _top_ngram(statistics: Statistics, thresholds: Mapping[int, float]) -> str | None:
    words = statistics.bare_words
    characters = sum(map(len, words))
    for size, threshold in thresholds.items():
        counts = Counter(zip(*(words[start:] for start in range(size))))
        if not counts:
            continue
        ngram, count = max(counts.items(), key=lambda item: (item[1] * sum(map(len, item[0])), item[0]))
        if count > 1 and count * sum(map(len, ngram)) > threshold * characters:
            return "repeated phrases"
    return None


@_register("max_symbols_per_word")
def _symbols(statistics: Statistics, threshold: float) -> str | None:
    share = len(_SYMBOLS.findall(statistics.text)) / max(1, len(statistics.words))
    return "too many symbols" if share > threshold else None


@_register("min_stop_words", "stop_words")
def _stop_words(statistics: Statistics, setting: tuple[int, frozenset[str]]) -> str | None:
    threshold, stop_words = setting
    found = sum(1 for word in statistics.bare_words if word.casefold() in stop_words)
    return "too few stop words" if found < threshold else None


def _word_set(words: Any, key: str, source: str) -> frozenset[str]:
    """Words of a YAML list; YAML reads an unquoted on, off, yes or no as true or false, which must not pass unseen."""
    if not isinstance(words, list) or not words:
        raise UserError(f"{source}: {key} must be a list of words, it is {words!r}.")
    for word in words:
        if not isinstance(word, str):
            raise UserError(f"{source}: {key} holds {word!r}, which is no word; put quotes around it ('on', 'no', '1').")
    return frozenset(word.casefold() for word in words)


class QualityFilters:
    """The filters of one language with their thresholds, in the order of the registry."""

    def __init__(self, thresholds: Mapping[str, Any], source: str) -> None:
        known = {key for key, (_, more) in _FILTERS.items() for key in (key, *more)}
        if not isinstance(thresholds, Mapping):
            raise UserError(f"{source}: {thresholds!r} where thresholds ('min_words: 25', …) belong.")
        unknown = sorted(set(map(str, thresholds)) - known)
        if unknown:
            raise UserError(f"{source}: unknown filters {unknown}; known are {sorted(known)}.")
        self._steps: list[tuple[Filter, Any]] = []
        for key, (function, companions) in _FILTERS.items():
            if key not in thresholds:
                continue
            setting = thresholds[key]
            if companions:
                setting = (setting, *(_word_set(thresholds.get(name), name, source) for name in companions))
            try:
                function(_SAMPLE, setting)
            except (TypeError, ValueError, LookupError, AttributeError):
                raise UserError(f"{source}: {key} can't be {thresholds[key]!r}; see presets/msa.yaml for its form.") from None
            self._steps.append((function, setting))

    def refuse(self, text: str) -> str | None:
        """The first filter's reason to refuse the text, or None to keep it."""
        statistics = Statistics(text)
        for function, setting in self._steps:
            reason = function(statistics, setting)
            if reason is not None:
                return reason
        return None


def load_preset(name_or_path: str) -> dict[str, Any]:
    """A preset by name (`msa`, `none`) or from a YAML file: `{"languages": {language: thresholds}}`.

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
