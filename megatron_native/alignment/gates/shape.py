"""Gates of how much text there is: length, repetition, what was dropped, a broken end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from megatron_native.alignment.gates.alignment import ALIGNED, ELSEWHERE
from megatron_native.alignment.gates.gate import Judgement, Pair, register, shown
from megatron_native.alignment.gates.lexicon import GRAMMAR

_RUN = 3
_MIX = np.uint64(0x9E3779B97F4A7C15)
_FINAL = frozenset(".!?؟…:»”\"')]}﴾*|`؛")


@register
class Length:
    """Words of the rewrite over those of the origin that were to be kept."""

    name, cost = "length", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._least, self._most, self._few = settings["least"], settings["most"], settings["few_words"]

    def judge(self, pair: Pair) -> Judgement:
        """Of a short passage a few words more or fewer are let through; an empty rewrite only where all was to go."""
        had, have = pair.content, len(pair.b.hashes)
        ratio = have / max(1, had)
        if not have and had:
            return Judgement(self.name, 0.0, False, "no words are left")
        bound = self._most if had >= self._few else max(self._most, (had + self._few / 2) / max(1, had))
        least = self._least if had >= self._few else 0.5 * self._least
        if ratio < least:
            return Judgement(self.name, ratio, False, f"{had} words became {have}")
        if ratio > bound:
            return Judgement(self.name, ratio, False, f"{had} words became {have}")
        return Judgement(self.name, ratio, True)


@numba.njit(cache=True, nogil=True)
def _grams(words: Any, digits: Any) -> Any:
    """Hashes of all runs of `_RUN` words, numbers left out, sorted."""
    kept = words[~digits]
    count = max(0, len(kept) - _RUN + 1)
    out = np.empty(count, dtype=np.uint64)
    for first in range(count):
        state = np.uint64(0)
        for place in range(first, first + _RUN):
            state = state * _MIX + kept[place]
        out[first] = state
    out.sort()
    return out


@numba.njit(cache=True, nogil=True)
def _surplus(a: Any, b: Any) -> Any:
    """How much more often runs occur in `b` than in `a` (or than once)."""
    total, first = 0, 0
    while first < len(b):
        last = first + 1
        while last < len(b) and b[last] == b[first]:
            last += 1
        if last - first > 1:
            left = np.searchsorted(a, b[first])
            right = np.searchsorted(a, b[first], side="right")
            total += max(0, last - first - max(1, right - left))
        first = last
    return total


@numba.njit(cache=True, nogil=True)
def _are_digits(letters: Any, starts: Any) -> Any:
    out = np.ones(len(starts) - 1, dtype=np.bool_)
    for word in range(len(out)):
        for place in range(starts[word], starts[word + 1]):
            if not 0x30 <= letters[place] <= 0x39:
                out[word] = False
                break
    return out


@register
class Repetition:
    """How many runs of three words come again more often than in the origin."""

    name, cost = "repetition", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._most = settings["most"]

    def judge(self, pair: Pair) -> Judgement:
        """Numbers are left out, so that an item that is counted on is found."""
        if pair.same_words:
            return Judgement(self.name, 0.0, True)
        a, b = (_grams(text.hashes, _are_digits(text.letters, text.starts)) for text in (pair.a, pair.b))
        score = int(_surplus(a, b))
        score = max(score, _longest_letter_run(pair.rewritten, pair.origin))
        if score <= self._most:
            return Judgement(self.name, float(score), True)
        return Judgement(self.name, float(score), False, "words come again and again")


def _longest_letter_run(rewritten: str, origin: str) -> int:
    """A letter written ten times on end or more, where the origin has no such run."""
    for letter in "اههويلر":
        run = letter * 10
        if run in rewritten and run not in origin:
            return 10
    return 0


@register
class Summarised:
    """What is missing.

    The score is the most content words that are lost in one place and nothing took the place of; and, told in the reason,
    the share of all words that are lost. Advertisements, offences, orders to a model and residue of markup may go.
    """

    name, cost = "summarised", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._run, self._share = settings["most_lost_run"], settings["most_lost_share"]

    def judge(self, pair: Pair) -> Judgement:
        """Words that replace others make up for them."""
        lost = pair.lost
        total = int(np.count_nonzero(lost))
        if not total:
            return Judgement(self.name, 0.0, True)
        new = {word.place for word in pair.new_words if word.kind != GRAMMAR}
        worst, where = 0, (0, 0)
        for begin, end, b_begin, b_end in pair.gaps:
            net = int(np.count_nonzero(lost[begin:end])) - sum(place in new for place in range(b_begin, b_end))
            if net > worst:
                worst, where = net, (begin, end)
        share = (total - len(new)) / max(1, pair.content)
        gone = [pair.a.word(place) for place in range(*where) if lost[place]]
        if worst > self._run:
            return Judgement(self.name, float(worst), False, f"missing: {shown(gone)}")
        if share > self._share and total - len(new) > 2:
            return Judgement(self.name, float(worst), False, f"{share:.0%} of the words are missing: {shown(gone)}")
        return Judgement(self.name, float(worst), True)


@register
class CutOff:
    """Content words and numbers that are lost at the very end; 100 where the last word is broken off."""

    name, cost = "cut_off", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._most = settings["most_lost"]

    def judge(self, pair: Pair) -> Judgement:
        """One word less is let through only where the rewrite ends as a sentence does."""
        if pair.same_words or not len(pair.a.hashes) or not len(pair.b.hashes):
            return Judgement(self.name, 0.0, True)
        places = np.flatnonzero(pair.aligned.partner >= 0)
        last = int(pair.aligned.partner[places[-1]]) if len(places) else -1
        tail = pair.b.word(len(pair.b.hashes) - 1)
        broken = pair.rewritten.rstrip()[-1:] not in _FINAL and pair.aligned.source[-1] != ALIGNED
        if broken and _is_beginning(pair, len(pair.b.hashes) - 1, last):
            return Judgement(self.name, 100.0, False, f"the last word is broken off: {tail}")
        lost = np.flatnonzero(pair.lost[last + 1 :] | _fewer(pair, last + 1)) + last + 1
        new = len(pair.b.hashes) - 1 - (int(places[-1]) if len(places) else -1)
        score = max(0, len(lost) - new)
        open_end = pair.rewritten.rstrip()[-1:] not in _FINAL and pair.origin.rstrip()[-1:] in _FINAL
        dangling = pair.aligned.kept[-1] != ALIGNED and not pair.allowed[-1] and open_end and new == 0
        if score > self._most or (dangling and len(pair.a.hashes) - 1 > last):
            gone = pair.a.slice(last + 1, len(pair.a.hashes))
            return Judgement(self.name, float(max(score, 1)), False, f"the end is missing: {gone[:60]}")
        return Judgement(self.name, float(score), True)


def _fewer(pair: Pair, first: int) -> NDArray[np.bool_]:
    """Bool [origin words from `first`]: words that the rewrite has elsewhere, but less often than the origin."""
    fewer = pair.aligned.kept[first:] == ELSEWHERE
    for place in np.flatnonzero(fewer).tolist():
        value = pair.a.hashes[first + place]
        fewer[place] = not pair.allowed[first + place] and np.count_nonzero(pair.b.hashes == value) < np.count_nonzero(
            pair.a.hashes == value
        )
    return fewer


def _is_beginning(pair: Pair, place: int, last: int) -> bool:
    """Whether the rewrite's last word is the beginning of an origin's word that should stand there."""
    word = pair.b.folded(place)
    return any(
        len(found := pair.a.folded(index)) > len(word) and found.startswith(word)
        for index in range(last + 1, min(last + 4, len(pair.a.hashes)))
    )
