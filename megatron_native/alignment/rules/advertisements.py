"""Calls to action: whole sentences and whole lines that `advertisements.yaml`, or a team's own file, describes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from megatron_native.alignment.rules.punctuation import HIDDEN, Edited
from megatron_native.alignment.sentence_bounds import bounds
from megatron_native.corpus.folding import WordFolder, word_hash
from megatron_native.errors import UserError

SHIPPED = Path(__file__).with_name("advertisements.yaml")
_PHONE = r"(?:\(?(?:\+|00)?[0-9٠-٩][0-9٠-٩()\-\s]{5,16}[0-9٠-٩])"
_LINK = rf"(?:[{HIDDEN}]|https?://|www\.|\bt\.me\b)"
_NOW = r"(?:(?:الآن|الان) )?"
_BEFORE = rf"[^\w{HIDDEN}«\"“]*"
_KEYS = {"max_words", "triggers", "patterns"}


class Advertisements(NamedTuple):
    """Advertisements of one file.

    Attributes:
        pattern: matches at the beginning of a sentence, or of a line.
        max_words: of a sentence that goes.
        triggers: hashes of the words of which every match has at least one.
        content: what the file says, for manifests.
    """

    pattern: re.Pattern[str]
    max_words: int
    triggers: frozenset[int]
    content: dict[str, Any]

    def remove(self, text: str, addresses: frozenset[str]) -> Edited:
        """The text without the sentences and lines that are advertisements; `addresses` are placeholders that may go."""
        taken: list[tuple[int, int]] = []
        words = _folder().words(text)
        places = [begin for begin, value in zip(words.begins.tolist(), words.hashes.tolist()) if value in self.triggers]
        line_end = -1
        for place in places:
            if place < line_end:
                continue
            begin = text.rfind("\n", 0, place) + 1
            line_end = text.find("\n", place)
            line_end = len(text) if line_end < 0 else line_end
            taken += self._in_line(text, begin, line_end, addresses)
        if not taken:
            return text, 0
        pieces, last = [], 0
        for begin, end in taken:
            pieces.append(text[last:begin])
            last = end
        return "".join([*pieces, text[last:]]), len(taken)

    def _in_line(self, text: str, begin: int, end: int, addresses: frozenset[str]) -> list[tuple[int, int]]:
        if self._is_one(text[begin:end], addresses):
            whole = begin, min(end + 1, len(text))
            if whole[1] == end and begin:
                whole = begin - 1, end
            return [whole]
        taken, start = [], begin
        for place in bounds(text, begin, end).places:
            sentence = text[start:place]
            if self._is_one(sentence, addresses):
                taken.append((start, place))
            start = place
        return taken

    def _is_one(self, sentence: str, addresses: frozenset[str]) -> bool:
        if self.pattern.match(sentence) is None or len(sentence.split()) > self.max_words:
            return False
        return not any(sign >= "\U00100000" and sign not in addresses for sign in sentence)


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
            pattern = written.replace("{phone}", _PHONE).replace("{link}", _LINK).replace("{now}", _NOW)
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"advertisements {path}: {group}: {written!r} is no pattern: {error}.") from error
            parts.append(f"(?:{pattern})")
    try:
        triggers = frozenset(word_hash(str(word)) for word in raw["triggers"])
    except ValueError as error:
        raise UserError(f"advertisements {path}: triggers: {error}; give single words.") from error
    pattern = re.compile(f"{_BEFORE}(?:{'|'.join(parts)})", re.IGNORECASE)
    return Advertisements(pattern, int(raw["max_words"]), triggers, raw)
