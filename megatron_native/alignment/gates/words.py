"""Gates of words that the origin does not have: names, misspellings and nonsense, invented content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from megatron_native.alignment.gates.alignment import NO_SOURCE
from megatron_native.alignment.gates.gate import Judgement, NewWord, Pair, register, shown
from megatron_native.alignment.gates.lexicon import DIALECT, GRAMMAR, NAME, UNKNOWN, kinds_of


def is_misspelling(pair: Pair, word: NewWord) -> bool:
    """Whether an unknown word is most likely a misspelling of the origin's word in its place."""
    if word.kind != UNKNOWN or word.nearest < 0:
        return False
    size = int(pair.b.starts[word.place + 1] - pair.b.starts[word.place])
    return size >= 3 and word.edits <= 1 + (size - 1) // 4


@register
class Names:
    """Names that the origin does not have; the score is their number.

    A name is one of the list (`lexicons/names.yaml`), or a word that is not known and stands where the origin has another
    that is neither.
    """

    name, cost = "names", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._most = settings["most_new"]

    def judge(self, pair: Pair) -> Judgement:
        """A word that is spelt almost like the origin's is left to the gate of spelling."""
        found = [word for word in pair.new_words if self._is_name(pair, word) or self._replaces(pair, word)]
        words = [_told(pair, word) for word in found]
        if not words and pair.new_words:
            words = self._replaced(pair)
        return Judgement(
            self.name, float(len(words)), len(words) <= self._most, f"other names: {shown(words)}" if words else ""
        )

    def _replaced(self, pair: Pair) -> list[str]:
        """Names of the list in whose place one other word stands, known though it may be."""
        lost = np.flatnonzero(pair.lost)
        if not len(lost):
            return []
        names = set(lost[kinds_of(pair.a, lost) == NAME].tolist())
        new = {word.place for word in pair.new_words}
        return [
            f"{pair.b.word(b_begin)} (for {pair.a.word(begin)})"
            for begin, end, b_begin, b_end in pair.gaps
            if names and end - begin == b_end - b_begin == 1 and begin in names and b_begin in new
        ]

    def _is_name(self, pair: Pair, word: NewWord) -> bool:
        """A name of the list, unless it repairs a word that nobody knows."""
        if word.kind != NAME:
            return False
        size = int(pair.b.starts[word.place + 1] - pair.b.starts[word.place])
        if word.nearest < 0 or word.edits > (2 if size > 5 else 1):
            return True
        return int(kinds_of(pair.a, np.array([word.nearest]))[0]) != UNKNOWN

    def _replaces(self, pair: Pair, word: NewWord) -> bool:
        if word.kind != UNKNOWN or word.nearest < 0 or is_misspelling(pair, word):
            return False
        begin, end = int(pair.aligned.gap_begins[word.place]), int(pair.aligned.gap_ends[word.place])
        sums = pair.unknown_lost
        return bool(sums[end] > sums[begin])


@register
class Spelling:
    """Words that nobody knows and that are almost the origin's; the score is their number."""

    name, cost = "spelling", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._most = settings["most_new"]

    def judge(self, pair: Pair) -> Judgement:
        """A word that is known is taken for a correction."""
        words = [_told(pair, word) for word in pair.new_words if is_misspelling(pair, word)]
        return Judgement(
            self.name, float(len(words)), len(words) <= self._most, f"misspelt: {shown(words)}" if words else ""
        )


@register
class Invented:
    """Content without a source.

    The score is the most content words that were added in one place beyond those they replace; `most_unknown` words of no
    common stock are let through, and a share `most_share` of new content words in all.
    """

    name, cost = "invented", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._unknown, self._surplus, self._share = (
            settings["most_unknown"], settings["most_surplus"], settings["most_share"],
        )  # fmt: skip

    def judge(self, pair: Pair) -> Judgement:
        """Grammar costs nothing."""
        new = [word for word in pair.new_words if word.kind != GRAMMAR]
        if not new:
            return Judgement(self.name, 0.0, True)
        unknown = [word for word in new if word.kind in (UNKNOWN, DIALECT) and not is_misspelling(pair, word)]
        places = {word.place for word in new}
        gone = pair.aligned.kept == NO_SOURCE
        worst, where = 0, (0, 0)
        for begin, end, b_begin, b_end in pair.gaps:
            came = sum(place in places for place in range(b_begin, b_end))
            if came and not pair.allowed[begin:end].any():
                surplus = came - min(came, int(np.count_nonzero(gone[begin:end] & ~pair.allowed[begin:end])))
                if surplus > worst:
                    worst, where = surplus, (b_begin, b_end)
        share = len(new) / max(1, len(pair.b.hashes))
        if len(unknown) > self._unknown:
            words = [pair.b.word(word.place) for word in unknown]
            return Judgement(self.name, float(max(worst, 1)), False, f"words without a source: {shown(words)}")
        if worst > self._surplus:
            return Judgement(self.name, float(worst), False, f"added: {pair.b.slice(*where)[:80]}")
        if share > self._share and len(new) > self._surplus:
            return Judgement(self.name, float(worst), False, f"{share:.0%} of the words are new")
        return Judgement(self.name, float(worst), True)


def _told(pair: Pair, word: NewWord) -> str:
    written = pair.b.word(word.place)
    return f"{written} (for {pair.a.word(word.nearest)})" if word.nearest >= 0 else written
