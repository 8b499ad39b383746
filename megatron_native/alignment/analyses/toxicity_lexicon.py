"""The Arabic lexicon as a classifier: 1 where a text has something of a category, 0 elsewhere.

It sees forms of address, threats, calls to harm and explicit offers, by the patterns of `lexicons/toxicity.yaml`; words
that reports, law, medicine and scripture use are never enough, and verses of the Qur'an are taken out first. It is a
measure of change with known errors (docs/rewrite-report.md), no filter of a corpus and no judgement of a text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from megatron_native.alignment.gates.lexicon import folded_pattern
from megatron_native.corpus.folding import code_points, fold_character
from megatron_native.corpus.scripture import ScriptureFinder

WINDOW = 80
"""Characters on either side in which an entry's `unless` is looked for."""
_NAMED_WINDOW = 30
_PACKAGE = "megatron_native.alignment.analyses"


class _Entry(NamedTuple):
    match: re.Pattern[str]
    unless: re.Pattern[str] | None


class _Folding(dict[int, str]):
    """The matching view, a character at a time, for `str.translate`."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = fold_character(chr(code))
        return folded


class LexiconClassifier:
    """Scores texts by the lexicon. Not to be shared by threads.

    Attributes:
        categories: hate, harassment, violence, sexual.
    """

    def __init__(self) -> None:
        raw = _lexicon()
        self.categories = tuple(raw["categories"])
        self._entries = [[_entry(entry) for entry in raw["categories"][name]] for name in self.categories]
        self._any = [
            _compiled("|".join(f"(?:{entry['match']})" for entry in raw["categories"][name]))
            for name in self.categories
        ]
        self._named = _compiled(raw["named"])
        self._finder = ScriptureFinder()
        self._folding = _Folding()

    def identity(self) -> dict[str, Any]:
        """What scored: the lexicon's source, licence and hash."""
        raw = _lexicon()
        return {
            "classifier": "lexicon", "source": raw["source"], "licence": raw["licence"],
            "sha256": hashlib.sha256(_written()).hexdigest(),
        }  # fmt: skip

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """0 or 1, float64 [texts, categories]."""
        scores = np.zeros((len(texts), len(self.categories)))
        for row, text in enumerate(texts):
            folded = self._folded(text)
            for column, entries in enumerate(self._entries):
                if self._any[column].search(folded):
                    scores[row, column] = any(self._uses(entry, folded) for entry in entries)
        return scores

    def _folded(self, text: str) -> str:
        """The matching view without verses."""
        spans = self._finder.spans(code_points(text))
        for begin, end in reversed(spans):
            text = f"{text[:begin]} \n {text[end:]}"
        return " ".join(text.translate(self._folding).split())

    def _uses(self, entry: _Entry, folded: str) -> bool:
        for found in entry.match.finditer(folded):
            begin, end = found.span()
            if self._named.search(folded, max(0, begin - _NAMED_WINDOW), begin):
                continue
            around = folded[max(0, begin - WINDOW) : begin], folded[end : end + WINDOW]
            if entry.unless is None or not any(map(entry.unless.search, around)):
                return True
        return False


def _entry(raw: dict[str, str]) -> _Entry:
    return _Entry(_compiled(raw["match"]), _compiled(raw["unless"]) if "unless" in raw else None)


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\S)[وف]?(?:{folded_pattern(pattern)})(?!\S)")


@cache
def _written() -> bytes:
    return resources.files(_PACKAGE).joinpath("lexicons/toxicity.yaml").read_bytes()


@cache
def _lexicon() -> dict[str, Any]:
    return dict(yaml.safe_load(_written()))
