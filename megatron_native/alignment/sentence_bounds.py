"""Where a text may be cut, and how willingly: paragraphs, lines and sentences of Arabic mixed with English.

One compiled alternation looks at the few characters at which something can end or open and jumps over what is never cut
inside: verses, quotations, parentheses. Whether a full stop ends a sentence is decided from the word before it and the
character after it, since Arabic has no capitals to go by. Rules only, so equal texts have equal bounds on every machine;
what the rules are, with examples, is in `docs/concepts/passages.md`.

Bidirectional controls and marks are transparent: they stand between a word and its full stop and change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

CHARACTER, WORD, COMMA, WEAK, SENTENCE, LINE, PARAGRAPH = range(1, 8)
"""Strengths of a bound, the weakest first; `WEAK` is ؛ ; : and an ellipsis."""
QUOTATION, PARENTHESIS, VERSE = 400, 300, 4000
"""Characters inside « » or quotation marks, inside brackets, inside ﴿ ﴾ at most; a longer one protects nothing."""
BIDI = "\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069"
"""Bidirectional controls, to stand inside a class of a regular expression."""
BLANK = "\t\n\x0b\x0c\r\x1c-\x1f \x85\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff" + BIDI
"""White space, and what is invisible and stands between words: never part of a sentence's edge."""
BLANKS = frozenset(chr(code) for code in range(0x10000) if re.match(f"[{BLANK}]", chr(code)))
"""The characters of `BLANK`."""
_STOPS = ".!?؟…۔。！？"
_BREAKS = "\n\r\x0b\x0c\x85\u2028\u2029"
_MARKS = "\u064b-\u065f\u0670\u06d6-\u06ed\ufe0f"
_CLOSING = rf"(?:[»”’›)\]}}﴾{_MARKS}{BIDI}]|[\"'](?![^\s.,،؛:»)\]}}])|\[[0-9٠-٩]{{1,3}}\])"
# Groups are atomic, not possessive: Python up to 3.11.4 finds nothing with a possessive one that has choices inside.
_SPANS = (
    rf"|(?<=﴿)(?P<verse>[^﴿﴾]{{1,{VERSE}}}+﴾)"
    rf"|(?<=﴾)(?P<mirrored_verse>(?<![^\s:(]﴾)[^﴿﴾]{{1,{VERSE}}}+﴿)"
    rf"|(?<=«)(?P<quotation>[^«»\n]{{1,{QUOTATION}}}+»)"
    rf"|(?<=»)(?P<mirrored>(?<![^\s(]»)(?=\w)[^«»\n]{{1,{QUOTATION}}}+«(?!\w))"
    rf"|(?<=“)(?P<curly>[^“”\n]{{1,{QUOTATION}}}+”)"
    rf"|(?<=”)(?P<mirrored_curly>(?<![^\s(]”)(?=\w)[^“”\n]{{1,{QUOTATION}}}+[“”])"
    rf"|(?<=\")(?P<straight>(?<![^\s(\[«وفبلكـ]\")(?=[\w«(])[^\"\n]{{1,{QUOTATION}}}+\"(?!\w))"
    rf"|(?<=\()(?P<parenthesis>[^()\n]{{0,{PARENTHESIS}}}+(?>(?:\([^()\n]{{0,99}}+\)[^()\n]{{0,{PARENTHESIS}}}+){{0,3}})\))"
    rf"|(?<=\[)(?P<bracket>[^\[\]\n]{{1,{PARENTHESIS}}}+\])"
    rf"|(?<={{)(?P<brace>[^{{}}\n]{{1,{PARENTHESIS}}}+}})"
)


def _events(openers: str, spans: str) -> re.Pattern[str]:
    """The alternation: a set of characters to stop at, then what may follow each."""
    return re.compile(
        rf"[{_STOPS}{_BREAKS}{openers}](?:(?<=[{_STOPS}])(?P<stop>[{_STOPS}]*+)(?>{_CLOSING}*)"
        rf"|(?<=[{_BREAKS}])(?P<line>[{BLANK}]*+){spans})"
    )


_GUARDED = _events(r"﴿﴾«»“”\"(\[{", _SPANS)
_PLAIN = _events("", "")
_INNER_STOP = re.compile(rf"[{_STOPS}]+(?=[{_MARKS}{BIDI}»«”“\")\]}}]*\Z)")
_LINE_BREAK = re.compile("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]")
_VISIBLE = re.compile(rf"[^{BLANK}]")
_HEADING = re.compile(r"#{1,6}[ \t]")
_WEAK = re.compile(rf"(?:؛|[;:](?=[{BLANK}])|(?:\.\.+|…)[.…]*(?=[{BLANK}]))[»”)\]{_MARKS}{BIDI}]*")
_COMMA = re.compile(rf"(?:(?<![0-9٠-٩])،|،(?![0-9٠-٩])|,(?=[{BLANK}]))[{_MARKS}{BIDI}]*")
_WORD_END = re.compile(rf"[^{BLANK}](?=[{BLANK}])(?!(?<=[0-9٠-٩])[ \xa0][0-9٠-٩])")
_LEADING = "([{«“\"'–—-•*_/"
_TRANSPARENT = dict.fromkeys([0x640, 0x670, *range(0x64B, 0x660), 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F)])
_LETTERS_APART = re.compile(r"[^\W\d_]{1,2}(?:\.[^\W\d_]{1,2})+\Z")
_NUMBERING = re.compile(r"[0-9٠-٩۰-۹]{1,3}(?:\.[0-9٠-٩۰-۹]{1,3})*\Z")
_ADDRESS = re.compile(r"://|www\.|@")
_LONGEST_WORD = 80
_ABBREVIATIONS = frozenset([
    "ود", "إلخ", "الخ", "ألخ", "وإلخ", "والخ", "تح", "مج", "صص", "dr", "mr", "mrs", "ms", "prof", "st", "vs", "etc", "inc",
    "ltd", "co", "corp", "vol", "fig", "figs", "eq", "sec", "ch", "ed", "eds", "al", "cf", "jr", "sr", "approx", "est",
    "dept", "gen", "col", "capt", "lt", "sgt", "gov", "sen", "rep", "rev", "hon", "messrs", "mt", "ph.d", "u.a.e",
])  # fmt: skip
"""In lower case, without marks; single letters, and letters with full stops between them (أ.د e.g), need no entry."""
_BEFORE_NUMBERS = frozenset(["no", "nos", "pp", "art", "رقم"])


class Bounds(NamedTuple):
    """Where a text, or a stretch of it, may be cut.

    Attributes:
        places: offsets just after what ends there, ascending; white space at a bound comes after it. The last one is
            the end of the last thing that is not blank.
        strengths: `SENTENCE`, `LINE` or `PARAGRAPH`, one for each place.
        spans: (begin, end) of what was jumped over, ascending.
        verses: those of the spans that are ﴿ ﴾.
    """

    places: list[int]
    strengths: list[int]
    spans: list[tuple[int, int]]
    verses: list[tuple[int, int]]


def sentence_ends(text: str) -> list[int]:
    """Offsets just after each sentence, its closing quotation marks and brackets included, white space excluded.

    A line is a sentence of its own: headings, items of lists and lines of verse have no other end. A blank text has none.
    """
    return bounds(text).places


def bounds(
    text: str, begin: int = 0, end: int | None = None, blocks: Iterable[tuple[int, int]] = (), guarded: bool = True
) -> Bounds:
    """The bounds of a text, or of `text[begin:end]`, by sentences and stronger.

    Args:
        text: any text.
        begin: offset of the first character looked at.
        end: offset after the last one; the end of the text by default.
        blocks: (begin, end) of whole lines inside which nothing is looked at, ascending, apart from each other.
        guarded: jump over quotations, brackets and verses.
    """
    stop = len(text) if end is None else end
    scan = _Scan(text, begin, guarded)
    place = begin
    for first, last in blocks:
        scan.look(place, first)
        place = last
    scan.look(place, stop)
    return scan.finish(stop)


def weaker(text: str, begin: int, end: int, strength: int) -> list[int]:
    """Offsets in `text[begin:end]` just after each weak end (`WEAK`) or comma (`COMMA`), wherever they stand."""
    pattern = _WEAK if strength == WEAK else _COMMA
    return [match.end() for match in pattern.finditer(text, begin, end)]


def word_ends(text: str, begin: int, end: int) -> list[int]:
    """Offsets in `text[begin:end]` just after each word that another follows; groups of digits are one word."""
    return [match.end() for match in _WORD_END.finditer(text, begin, end)]


def trimmed(text: str, begin: int, end: int) -> tuple[int, int]:
    """The bounds of `text[begin:end]` without the blanks at its ends."""
    while begin < end and text[begin] in BLANKS:
        begin += 1
    while begin < end and text[end - 1] in BLANKS:
        end -= 1
    return begin, end


class _Scan:
    """The bounds of a text as they are found, from left to right."""

    def __init__(self, text: str, begin: int, guarded: bool) -> None:
        self._text = text
        self._last = begin  # the last bound, or where the scan began
        self._begin = begin
        self._events = _GUARDED if guarded else _PLAIN
        self._places: list[int] = []
        self._strengths: list[int] = []
        self._spans: list[tuple[int, int]] = []
        self._verses: list[tuple[int, int]] = []

    def look(self, begin: int, end: int) -> None:
        """Find what ends between two offsets."""
        text = self._text
        for match in self._events.finditer(text, begin, end):
            kind = match.lastgroup
            if kind == "stop":
                first, last = match.span()
                if _ends_sentence(text, self._last, first, match.end("stop"), last):
                    self._add(last, SENTENCE)
            elif kind == "line":
                self._line(match)
            else:
                span = match.span()
                self._spans.append(span)
                if kind in ("verse", "mirrored_verse"):
                    self._verses.append(span)
                elif self._closes_sentence(*span):
                    self._add(span[1], SENTENCE)

    def _add(self, place: int, strength: int) -> None:
        self._places.append(place)
        self._strengths.append(strength)
        self._last = place

    def _line(self, match: re.Match[str]) -> None:
        text, place = self._text, match.start()
        while place > self._last and text[place - 1] in BLANKS:
            place -= 1
        breaks = match.group()
        strength = PARAGRAPH if len(breaks) > 1 and len(_LINE_BREAK.findall(breaks)) > 1 else LINE
        if "#" in text:  # a heading belongs to what follows it
            if _HEADING.match(text, match.end()):
                strength = PARAGRAPH
            elif _HEADING.match(text, self._line_begin(place)):
                strength = SENTENCE
        if place > self._last:
            self._add(place, strength)
        elif self._places and strength > self._strengths[-1]:
            self._strengths[-1] = strength

    def _line_begin(self, place: int) -> int:
        found = _VISIBLE.search(self._text, max(self._text.rfind("\n", self._begin, place) + 1, self._begin))
        return found.start() if found else place

    def _closes_sentence(self, begin: int, end: int) -> bool:
        """Whether a quotation whose last words end a sentence ends the sentence that it stands in."""
        text = self._text
        stop = _INNER_STOP.search(text, max(begin + 1, end - 8), end)
        if stop is None:
            return False
        if text[begin] in "([{" and (stop.group()[-1] not in ".۔" or stop.start() == begin + 1):
            return False  # (!) and (?) say something about a word
        return _ends_sentence(text, begin + 1, *stop.span(), end)

    def finish(self, end: int) -> Bounds:
        """What was found, with the end of the text."""
        place = end
        while place > self._last and self._text[place - 1] in BLANKS:
            place -= 1
        if place > self._last:
            self._add(place, PARAGRAPH)
        elif self._strengths:
            self._strengths[-1] = PARAGRAPH
        return Bounds(self._places, self._strengths, self._spans, self._verses)


def _ends_sentence(text: str, begin: int, first: int, last: int, closed: int) -> bool:
    """Whether the stops at `text[first:last]`, and what closes up to `closed`, end a sentence that began at `begin`."""
    following = text[closed : closed + 1]
    attached = following != "" and following not in BLANKS
    if attached:
        if following not in "«“﴿" and not (following > "\u05ff" and following.isalpha()):
            return False
        after = following
    else:
        visible = _VISIBLE.search(text, closed)
        after = text[visible.start()] if visible else ""
        if after.islower() or (visible and after in _STOPS and text[visible.end() : visible.end() + 1] not in ".…"):
            return False
    stops = text[first:last]
    words = text[max(begin, first - _LONGEST_WORD) : first].split()
    if not words:
        return False  # what opens a line is no end
    word = "" if text[first - 1].isspace() else words[-1]
    if attached and _ADDRESS.search(word):
        return False
    if stops != ".":
        if stops.strip(".…") == "":
            return after.isupper()  # an ellipsis: only a capital tells that a sentence begins
        return not (attached and stops == "?" and word.isascii())
    if not word:
        return words[-1].strip(_STOPS) != ""
    bare = word.lstrip(_LEADING).translate(_TRANSPARENT) if len(word) < 24 else word
    if bare[-1:].isdecimal():
        if attached:
            return False
        return _NUMBERING.match(bare) is None or not (
            _begins_line(text, first - len(word)) or (len(bare) < 3 and after.isdecimal())
        )
    if _is_abbreviation(bare, after):
        return False
    return not attached or (word[-1] > "\u05ff" and len(bare.rpartition(".")[2]) > 2)


def _is_abbreviation(word: str, after: str) -> bool:
    if len(word) == 1:
        return word.isalpha()
    if len(word) > 12:
        return False
    lower = word.lower()
    if lower in _ABBREVIATIONS or (lower in _BEFORE_NUMBERS and after.isdecimal()):
        return True
    return "." in word and _LETTERS_APART.match(word) is not None


def _begins_line(text: str, place: int) -> bool:
    while place and text[place - 1] in " \t\xa0":
        place -= 1
    return place == 0 or text[place - 1] in _BREAKS
