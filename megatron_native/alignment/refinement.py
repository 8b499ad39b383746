"""Pieces of a text that exceed a budget, cut where a text is cut unwillingly: at semicolons, commas, words, characters."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import regex

from megatron_native.alignment.layout_blocks import Span, inside, merged
from megatron_native.alignment.sentence_bounds import (
    BLANKS,
    CHARACTER,
    WEAK,
    WORD,
    bounds,
    trimmed,
    weaker,
    word_ends,
)

Piece = tuple[int, int, int]
"""Where a piece ends, how strong the bound is, how many tokens the piece has."""
_GRAPHEME = regex.compile(r"\X")
_ADDRESS = ("://", "www.", "@")


class Refiner:
    """Cuts pieces of one text.

    Args:
        text: the text.
        budget: tokens of a piece at most, where it can be cut.
        count: tokens of a text.
        hard: spans that are never cut: ascending, apart.
        soft: spans that are cut only where they exceed the budget themselves: ascending, one may hold others.
    """

    def __init__(self, text: str, budget: int, count: Callable[[str], int], hard: list[Span], soft: list[Span]) -> None:
        self._text, self._budget, self._count = text, budget, count
        self._hard, self._soft = hard, soft

    def pieces(self, begin: int, end: int, strength: int, size: int) -> list[Piece]:
        """The piece from `begin` to `end`, or finer ones where its tokens (`size`) exceed the budget."""
        if size <= self._budget:
            return [(end, strength, size)]
        kept: list[Span] = []
        opened = False
        for first, last in self._soft:
            if last <= begin or first >= end or (kept and last <= kept[-1][1]):
                continue
            if self._count(self._text[first:last]) > self._budget:
                opened = True
            else:
                kept.append((first, last))
        return self._refine(begin, end, strength, merged([*self._hard, *kept]), WEAK + 1 if opened else WEAK)

    def _refine(self, begin: int, end: int, strength: int, kept: list[Span], level: int) -> list[Piece]:
        """Cut at bounds of this level, those above `WEAK` being sentences and lines inside spans that were opened."""
        last = trimmed(self._text, begin, end)[1]
        if level <= WORD:
            return self._by_words(begin, end, strength, kept)
        if level > WEAK:
            found = bounds(self._text, begin, end, guarded=False)
            cuts = list(zip(found.places, found.strengths))
        else:
            cuts = [(place, level) for place in weaker(self._text, begin, end, level)]
        cuts = [(place, kind) for place, kind in cuts if begin < place < last and not inside(place, kept)]
        pieces: list[Piece] = []
        for place, kind in [*cuts, (end, strength)]:
            size = self._size(begin, place)
            if size <= self._budget:
                pieces.append((place, kind, size))
            else:
                pieces += self._refine(begin, place, kind, kept, level - 1)
            begin = place
        return pieces

    def _by_words(self, begin: int, end: int, strength: int, kept: list[Span]) -> list[Piece]:
        last = trimmed(self._text, begin, end)[1]
        places = [place for place in word_ends(self._text, begin, end) if place < last and not inside(place, kept)]
        pieces: list[Piece] = []
        for place, kind, size in self._halves(begin, end, strength, places, WORD):
            if size <= self._budget:
                pieces.append((place, kind, size))
            elif any(first < place and begin < after and (first, after) not in self._hard for first, after in kept):
                pieces += self._refine(begin, place, kind, self._hard, WEAK + 1)
            else:
                pieces += self._by_characters(begin, place, kind, size)
            begin = place
        return pieces

    def _by_characters(self, begin: int, end: int, strength: int, size: int) -> list[Piece]:
        first, last = trimmed(self._text, begin, end)
        word = self._text[first:last]
        hard = any(start < last and first < stop for start, stop in self._hard)
        if hard or any(sign in word for sign in _ADDRESS):
            return [(end, strength, size)]
        places = [first + found.end() for found in _GRAPHEME.finditer(word)]
        places = [place for place in places if place < last and self._text[place - 1] not in BLANKS]
        return self._halves(begin, end, strength, places, CHARACTER)

    def _halves(self, begin: int, end: int, strength: int, places: list[int], kind: int) -> list[Piece]:
        """Cut in two, at the place nearest to the middle, again and again."""
        size = self._size(begin, end)
        if size <= self._budget or not places:
            return [(end, strength, size)]
        middle = (begin + end) // 2
        number = min(bisect_left(places, middle), len(places) - 1)
        if number and middle - places[number - 1] < places[number] - middle:
            number -= 1
        place = places[number]
        left = self._halves(begin, place, kind, places[:number], kind)
        return left + self._halves(place, end, strength, places[number + 1 :], kind)

    def _size(self, begin: int, end: int) -> int:
        """Tokens of a piece, with the white space before it or without, whichever are more."""
        first, last = trimmed(self._text, begin, end)
        return max(self._count(self._text[begin:end]), self._count(self._text[first:last]))
