"""Blocks of a text that are laid out by lines: fences of code, display mathematics, tables; and what is never rewritten."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from megatron_native.alignment.sentence_bounds import BLANK

Span = tuple[int, int]
# Groups are atomic, not possessive: Python up to 3.11.4 finds nothing with a possessive one that has choices inside.
_FENCE = re.compile(r"^[ \t>]*(```|~~~)[^\n]*\n(?>(?:(?![ \t>]*\1)[^\n]*\n)*)[ \t>]*\1[`~]*[ \t\r]*$", re.MULTILINE)
_MATHEMATICS = re.compile(r"^[ \t]*\$\$(?:[^$]|\$(?!\$)){1,4000}\$\$[ \t\r]*$", re.MULTILINE)
_ROW = re.compile(r"^(?:[ \t]*\|[^\n]*|[^\n|]*\|[^\n|]*\|[^\n]*|[^\n\t]+\t[^\n\t]+\t[^\n]*)$", re.MULTILINE)
_LETTER = re.compile(r"[^\W\d_]")
_REFERENCE = re.compile(r"[\[(][^\])\n]{1,40}[\])]")
_ADDRESS = re.compile(rf"[^{BLANK}]*(?:://|www\.|@)[^{BLANK}]*")


class Blocks(NamedTuple):
    """Whole lines of a text that belong together: (begin, end), ascending, the last line break not included.

    Attributes:
        fences: code between ``` or ~~~, and mathematics between $$: never cut.
        tables: rows that follow each other.
        rows: the rows of all tables.
    """

    fences: list[Span]
    tables: list[Span]
    rows: list[Span]

    @property
    def whole(self) -> list[Span]:
        """Fences and tables."""
        return sorted(self.fences + self.tables)


def blocks_of(text: str) -> Blocks:
    """The blocks of a text; a fence that is never closed is none."""
    fences: list[Span] = []
    if "```" in text or "~~~" in text:
        fences = [match.span() for match in _FENCE.finditer(text)]
    if "$$" in text:
        fences = merged(fences + [match.span() for match in _MATHEMATICS.finditer(text)])
    rows: list[Span] = []
    if "|" in text or "\t" in text:
        rows = [match.span() for match in _ROW.finditer(text)]
        rows = [row for row in rows if not any(begin <= row[0] < end for begin, end in fences)]
    tables: list[Span] = []
    for begin, end in rows:
        if tables and text[tables[-1][1] : begin] in ("\n", "\r\n"):
            tables[-1] = (tables[-1][0], end)
        else:
            tables.append((begin, end))
    return Blocks(fences, tables, rows)


def merged(spans: list[Span]) -> list[Span]:
    """Spans ascending and apart from each other; those that overlap become one."""
    apart: list[Span] = []
    for begin, end in sorted(spans):
        if apart and begin < apart[-1][1]:
            apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
        else:
            apart.append((begin, end))
    return apart


def inside(place: int, spans: Sequence[Span]) -> bool:
    """Whether an offset lies inside one of the spans, which are ascending and apart; their ends are outside."""
    number = bisect_left(spans, place, key=itemgetter(0)) - 1
    return number >= 0 and place < spans[number][1]


def frozen_reason(text: str, start: int, stop: int, fences: Sequence[Span], verses: Sequence[Span]) -> str | None:
    """Why `text[start:stop]` is not to be rewritten, or None: nothing in it but one of these."""
    if _LETTER.search(text, start, stop) is None:
        return "no words"
    if fences and not _has_words(text, start, stop, fences):
        return "code"
    if verses and not _has_words(text, start, stop, verses):
        return "scripture"
    if _ADDRESS.fullmatch(text, start, stop):
        return "address"
    if ("|" in text or "\t" in text) and all(_ROW.match(line) for line in text[start:stop].splitlines()):
        signs = text[start:stop]
        if sum(map(str.isdecimal, signs)) > sum(map(str.isalpha, signs)):
            return "table"
    return None


def _has_words(text: str, start: int, stop: int, spans: Sequence[Span]) -> bool:
    """Whether there are letters outside the spans and outside references to suras."""
    rest, last = [], start
    first = bisect_right(spans, start, key=itemgetter(1))
    for begin, end in spans[first:]:
        if begin >= stop:
            break
        rest.append(text[last : max(begin, last)])
        last = max(end, last)
    if last == start:
        return True
    rest.append(text[last : max(stop, last)])
    return any(_LETTER.search(_REFERENCE.sub("", part)) for part in rest)
