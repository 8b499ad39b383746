"""Calls to action: whole sentences and whole lines that `advertisements.yaml`, or a team's own file, describes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from megatron_native.alignment.rules.punctuation import HIDDEN, Edited
from megatron_native.alignment.rules.triggers import STOPS, beginnings, places_of
from megatron_native.alignment.sentence_bounds import bounds
from megatron_native.corpus.folding import WordFolder, code_points, word_hash
from megatron_native.corpus.statistics import hash_set
from megatron_native.errors import UserError

SHIPPED = Path(__file__).with_name("advertisements.yaml")
_PHONE = r"(?<![0-9٠-٩])(?:\+|00|0|٠|920|800)[0-9٠-٩](?:[ -]?[0-9٠-٩]){5,12}(?![0-9٠-٩])"
_LINK = rf"(?:[{HIDDEN}]|https?://|www\.|\bt\.me\b)"
_NOW = r"(?:(?:الآن|الان) )?"
_END = r"(?=[^\w\n]*(?:\n|\Z))"
_KEPT_BEFORE = STOPS + '»”")]}'
_KEYS = {"max_words", "first_words", "patterns"}


class Advertisements(NamedTuple):
    """Advertisements of one file.

    Attributes:
        pattern: matches where a sentence begins.
        max_words: of a sentence that goes.
        first_words: a table of the words that a match begins with, as `hash_set` makes it.
        content: what the file says, for manifests.
    """

    pattern: re.Pattern[str]
    max_words: int
    first_words: NDArray[np.uint64]
    content: dict[str, Any]

    def remove(self, text: str, addresses: frozenset[str]) -> Edited:
        """The text without the sentences and lines that are advertisements; `addresses` are placeholders that may go."""
        codes = code_points(text)
        words = _folder().words_of_codes(codes)
        taken: list[tuple[int, int]] = []
        last = 0
        for place in beginnings(codes, words.begins[places_of(words.hashes, self.first_words)]).tolist():
            if place < last:
                continue
            found = self._at(text, place, addresses)
            if found is not None:
                taken.append(found)
                last = found[1]
        if not taken:
            return text, 0
        pieces, last = [], 0
        for begin, end in taken:
            pieces.append(text[last:begin])
            last = end
        return "".join([*pieces, text[last:]]), len(taken)

    def _at(self, text: str, place: int, addresses: frozenset[str]) -> tuple[int, int] | None:
        """What goes with the word at `place`: its line, its sentence, or nothing."""
        if self.pattern.match(text, place) is None:
            return None
        line = text.rfind("\n", 0, place) + 1
        before = text[line:place]
        if before.count("«") > before.count("»") or before.count("“") > before.count("”") or before.count('"') % 2:
            return None  # somebody's words
        line_end = text.find("\n", place)
        line_end = len(text) if line_end < 0 else line_end
        end = bounds(text, place, line_end).places[0]
        begin = place
        while begin > line and not (text[begin - 1].isalnum() or text[begin - 1] in _KEPT_BEFORE):
            begin -= 1
        if not self._may_go(text[begin:end], addresses):
            return None
        rest = text[end:line_end].strip()
        if not any(map(str.isalnum, text[line:begin])) and not rest:
            return (line, line_end + 1) if line_end < len(text) else (max(0, line - 1), line_end)
        while end < line_end and text[end] in " \u00a0":
            end += 1
        return (begin, line_end) if not rest else (begin if begin == line else _blank(text, begin), end)

    def _may_go(self, sentence: str, addresses: frozenset[str]) -> bool:
        if len(sentence.split()) > self.max_words:
            return False
        return not any(sign >= "\U00100000" and sign not in addresses for sign in sentence)


def _blank(text: str, place: int) -> int:
    """An offset after the blanks at `place`, of which the sentence before keeps one."""
    while place < len(text) and text[place] in " \u00a0":
        place += 1
    return place


@cache
def _folder() -> WordFolder:
    return WordFolder()


@cache
def load_advertisements(path: Path = SHIPPED) -> Advertisements:
    """The advertisements that a YAML file describes.

    Raises:
        UserError: the file can't be read, has an unknown key, or a pattern that is no regular expression.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"advertisements {path}: {error}; give a YAML file in the form of {SHIPPED.name}.") from error
    if not isinstance(raw, dict) or set(raw) != _KEYS or not isinstance(raw["patterns"], Mapping):
        raise UserError(f"advertisements {path}: it must have the keys {', '.join(sorted(_KEYS))}, and no others.")
    parts = []
    for group, patterns in raw["patterns"].items():
        for written in patterns:
            pattern = str(written)
            for name, meaning in (("phone", _PHONE), ("link", _LINK), ("now", _NOW), ("end", _END)):
                pattern = pattern.replace("{" + name + "}", meaning)
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"advertisements {path}: {group}: {written!r} is no pattern: {error}.") from error
            parts.append(f"(?:{pattern})")
    try:
        first_words = hash_set(word_hash(str(word)) for word in raw["first_words"])
    except ValueError as error:
        raise UserError(f"advertisements {path}: first_words: {error}; give single words.") from error
    whole = re.compile("|".join(parts), re.IGNORECASE)
    return Advertisements(whole, int(raw["max_words"]), first_words, raw)
