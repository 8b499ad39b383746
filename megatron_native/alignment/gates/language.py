"""Gates of the language a passage is in: language, dialect, script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from megatron_native.alignment.gates.alignment import ALIGNED, NO_SOURCE, RELATED
from megatron_native.alignment.gates.gate import Judgement, NewWord, Pair, register, shown
from megatron_native.alignment.gates.lexicon import dialect_words, values_of
from megatron_native.corpus.survey import survey

_FEW_NEW = 3
_FROM_DIALECT = 3
_PRESENT = 2
"""Worth of a verb that got the ب of the dialects' present."""
"""Worth of markers from which a passage is taken to be in a dialect."""


@register
class Language:
    """The language of the two texts; score 1 where it differs."""

    name, cost = "language", 3

    def __init__(self, settings: Mapping[str, Any]) -> None:
        pass

    def judge(self, pair: Pair) -> Judgement:
        """Texts that share their words are not looked at: their language can't differ."""
        new = len(pair.new_words)
        if new < _FEW_NEW or new < 0.2 * len(pair.b.hashes):
            return Judgement(self.name, 0.0, True)
        identify = pair.readers.languages.identify
        before, after = identify(pair.origin), identify(pair.rewritten)
        same = before.code == after.code and (before.bucket == "ar-latn") == (after.bucket == "ar-latn")
        if same or "und" in (before.code, after.code):
            return Judgement(self.name, 0.0, True)
        return Judgement(self.name, 1.0, False, f"{before.bucket} became {after.bucket}")


@register
class Script:
    """New words in a script that the origin is not mainly in; the score is their number."""

    name, cost = "script", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._most = settings["most_new"]

    def judge(self, pair: Pair) -> Judgement:
        """One word is enough: a name in Latin letters is in the origin in Latin letters."""
        if not pair.new_words:
            return Judgement(self.name, 0.0, True)
        found = survey(pair.a.codes)
        latin = found.latin > found.arabic
        strange = [word for word in pair.new_words if _is_latin(pair, word) is not latin]
        if not strange or (latin and found.arabic) > 0.3 * found.latin:
            return Judgement(self.name, 0.0, True)
        words = [pair.b.word(word.place) for word in strange]
        return Judgement(
            self.name, float(len(words)), len(words) <= self._most, f"words in another script: {shown(words)}"
        )


def _is_latin(pair: Pair, word: NewWord) -> bool:
    return int(pair.b.letters[pair.b.starts[word.place]]) < 0x250


@register
class Dialect:
    """Words of dialects that came or went.

    The score is the worth of the markers that are new (a strong one is worth 3, a weak one 1), or, of a passage in a
    dialect, the share of its markers' worth that is gone, times ten.
    """

    name, cost = "dialect", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._most_gained, self._most_lost = settings["most_gained"], settings["most_lost_share"]

    def judge(self, pair: Pair) -> Judgement:
        """Markers whose sentence was allowed to go do not count."""
        if pair.same_words:
            return Judgement(self.name, 0.0, True)
        table = dialect_words()
        worth_a, worth_b = values_of(pair.a.hashes, table), values_of(pair.b.hashes, table)
        source = pair.aligned.source
        new = (worth_b > 0) & ((source == NO_SOURCE) | ((source == RELATED) & (worth_b >= _FROM_DIALECT)))
        gained = int(worth_b[new].sum())
        for place in np.flatnonzero(source == RELATED).tolist():
            if self._is_present(pair, place):
                new[place] = True
                gained += _PRESENT
        if gained > self._most_gained:
            words = [pair.b.word(place) for place in np.flatnonzero(new).tolist()]
            return Judgement(self.name, float(gained), False, f"words of a dialect came in: {shown(words)}")
        if worth_a.sum() < _FROM_DIALECT:
            return Judgement(self.name, float(gained), True)
        had = worth_a * ~pair.allowed
        if had.sum() >= _FROM_DIALECT:
            gone = had * (pair.aligned.kept != ALIGNED)
            share = float(gone.sum() / had.sum())
            if share > self._most_lost and np.count_nonzero(gone) > 1:
                words = [pair.a.word(place) for place in np.flatnonzero(gone).tolist()]
                return Judgement(self.name, 10 * share, False, f"words of the dialect went: {shown(words)}")
        return Judgement(self.name, float(gained), True)

    def _is_present(self, pair: Pair, place: int) -> bool:
        word = pair.b.folded(place)
        if len(word) < 5 or word[0] != "ب" or word[1] not in "يتن":
            return False
        begin, end = int(pair.aligned.gap_begins[place]), int(pair.aligned.gap_ends[place])
        return any(pair.a.folded(index) == word[1:] for index in range(begin, min(end, begin + 64)))
