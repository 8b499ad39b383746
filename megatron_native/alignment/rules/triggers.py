"""One look at a text that says which rules can have anything to do in it; clean text costs no more than this look."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

(
    BLANKS, MARKUP, RESIDUE, TATWEEL, LATIN_SIGNS, BEFORE, AFTER, INSIDE, REPEATED, QUOTES, MIRRORED, BULLETS, WRAPPED,
    SITE_WORDS, CALLS, PROTECTED,
) = (1 << bit for bit in range(16))  # fmt: skip
"""What rules look for, and (`PROTECTED`) whether there may be an address, code, mathematics or a table."""
_ARABIC, _MARK, _DIGIT, _BLANK, _STOP, _OPENING, _CLOSING, _BULLET, _PROTECTING, _ODD = (1 << bit for bit in range(10))
_TABLE_SIZE = 0x10000
_LEAST_WRAPPED, _LONGEST_WRAPPED = 30, 140
ODD_BLANKS = "\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
STOPS = ".!؟?…"
"""What ends a sentence."""
NO_BEGINNING = "،؛,;:«\"“('[/"
"""After these a word goes on with a sentence."""
BULLET_SIGNS = "•●▪◦■□►➤*-–—"


@cache
def _table() -> NDArray[np.uint16]:
    table = np.zeros(_TABLE_SIZE, dtype=np.uint16)
    for code in range(0x600, 0x900):
        character = chr(code)
        if unicodedata.category(character)[0] == "L" and code != 0x640:
            table[code] |= _ARABIC
        elif unicodedata.category(character)[0] == "M":
            table[code] |= _MARK
    for characters, bit in (
        ("0123456789٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹", _DIGIT), (" \t" + ODD_BLANKS, _BLANK), (ODD_BLANKS + "\r\t", _ODD),
        ("،؛؟!:.,;?", _STOP), ("([«“", _OPENING), (")]»”", _CLOSING), (BULLET_SIGNS, _BULLET), ("`$\\|~@\t", _PROTECTING),
    ):  # fmt: skip
        for character in characters:
            table[ord(character)] |= bit
    return table


def look(codes: NDArray[np.uint32]) -> int:
    """The flags of a text of these code points, uint32 [characters], without those of its words."""
    return int(_look(codes, _table()))


@numba.njit(cache=True, nogil=True)
def places_of(hashes: Any, wanted: Any) -> Any:
    """Which of the words, uint64 [words], are in a table made by `statistics.hash_set`: int64 [found]."""
    mask = np.uint64(len(wanted) - 1)
    found = np.empty(len(hashes), dtype=np.int64)
    count = 0
    for index in range(len(hashes)):
        place = hashes[index] & mask
        while wanted[place] != 0:
            if wanted[place] == hashes[index]:
                found[count] = index
                count += 1
                break
            place = (place + np.uint64(1)) & mask
    return found[:count]


@numba.njit(cache=True, nogil=True)
def in_short_line(codes: Any, places: Any, longest: int) -> bool:
    """Whether one of the places is in a line of so many characters at most."""
    for place in places:
        first = place
        while first > 0 and codes[first - 1] != 10 and place - first <= longest:
            first -= 1
        last = place
        while last < len(codes) and codes[last] != 10 and last - first <= longest:
            last += 1
        if last - first <= longest:
            return True
    return False


@cache
def _ending_table() -> NDArray[np.uint8]:
    """uint8 [code points]: 1 for what ends a sentence, 2 for what a sentence can't begin after."""
    table = np.zeros(_TABLE_SIZE, dtype=np.uint8)
    for code in range(_TABLE_SIZE):
        if not 0xD800 <= code < 0xE000 and chr(code).isalnum():
            table[code] = 2
    for character in NO_BEGINNING:
        table[ord(character)] = 2
    for character in "\n" + STOPS:
        table[ord(character)] = 1
    return table


def beginnings(codes: NDArray[np.uint32], places: NDArray[np.int32]) -> NDArray[np.int32]:
    """Those of the places where a line or a sentence begins; after a comma, a colon or a quotation mark none does."""
    chosen: NDArray[np.int32] = _beginnings(codes, places, _ending_table())
    return chosen


@numba.njit(cache=True, nogil=True)
def _beginnings(codes: Any, places: Any, endings: Any) -> Any:
    chosen = np.empty(len(places), dtype=np.int32)
    count = 0
    for place in places:
        index = place - 1
        kind = 0
        while index >= 0:
            code = codes[index]
            kind = endings[code] if code < _TABLE_SIZE else 2 if code >= 0x100000 else 0
            if kind:
                break
            index -= 1
        if kind != 2:
            chosen[count] = place
            count += 1
    return chosen[:count]


@numba.njit(cache=True, nogil=True)
def _look(codes: Any, table: Any) -> Any:
    flags = 0
    before, code = np.uint32(10), np.uint32(10)  # the two characters before
    bits_before, bits = np.int64(0), np.int64(0)
    breaks, quotes, wrapped, line, inked = 1, 0, 0, 0, 0
    length = len(codes)
    for place in range(length + 1):
        before2, bits2 = before, bits_before
        before, bits_before = code, bits
        code = codes[place] if place < length else np.uint32(10)
        bits = np.int64(table[code]) if code < _TABLE_SIZE else np.int64(0)
        first = before == 10
        if code == 10:
            if bits_before & _BLANK:
                flags |= BLANKS
            if _LEAST_WRAPPED <= line <= _LONGEST_WRAPPED:
                wrapped += 1
                if wrapped >= 2:
                    flags |= WRAPPED
            else:
                wrapped = 0
            breaks = breaks + 1 if first else 1
            if breaks > 2 and place < length:
                flags |= BLANKS
            line, quotes, inked = 0, 0, 0
            if place == 0:
                flags |= BLANKS
            continue
        line += 1
        inked += 0 if bits & _BLANK else 1
        # What an ordinary letter after a letter can't begin.
        if bits & _ARABIC:
            if bits_before & (_ARABIC | _MARK):
                continue
            if before == 0x640:
                flags |= TATWEEL
            if bits_before & (_STOP | _CLOSING) and bits2 & (_ARABIC | _MARK | _DIGIT | _CLOSING | _STOP):
                flags |= AFTER
            if bits2 & _ARABIC and bits_before & _OPENING:
                flags |= AFTER
            if before == 34 and quotes % 2 == 0 and place > 1:
                flags |= QUOTES
            continue
        if bits & _BLANK:
            if first or bits_before & _BLANK or bits & _ODD:
                flags |= BLANKS
            if code == 9:
                flags |= PROTECTED
            if bits_before & _OPENING:
                flags |= INSIDE
            if before == 34 and quotes % 2 == 1:
                flags |= QUOTES
            continue
        if code == 60 or code == 38:
            flags |= MARKUP
        elif code == 0x640 and before == 0x640:
            flags |= TATWEEL
        elif code == 34:
            quotes += 1
            if (quotes % 2 == 0 and bits_before & _BLANK) or (quotes % 2 == 1 and bits_before & (_ARABIC | _MARK)):
                flags |= QUOTES
        elif code == 91 or code == 123 or code == 93 or code == 125 or ((code == 39 or code == 61) and before == code):
            flags |= RESIDUE
        if bits & _PROTECTING or (code == 47 and before == 47) or (code == 119 and before == 119):
            flags |= PROTECTED
        if bits & _ODD:
            flags |= BLANKS
        if bits & _STOP:
            if bits_before & _BLANK:
                flags |= BEFORE
            if code == 44 or code == 59 or code == 63:
                flags |= LATIN_SIGNS
            if bits_before & _STOP and (code != 46 or before2 == 46):
                flags |= REPEATED
            if bits2 & _STOP and bits_before & _BLANK:
                flags |= REPEATED
        elif code == 0x2026 and before == code:
            flags |= REPEATED
        elif bits & _CLOSING and bits_before & _BLANK:
            flags |= INSIDE
        if (code == 0xBB or code == 0x201D) and (bits_before & _BLANK or first or before == 40):
            flags |= MIRRORED
        if bits & _DIGIT and (before == 0x60C or before == 0x61B):
            flags |= AFTER
        if inked == 1 and bits & _BULLET:
            flags |= BULLETS
        if inked <= 4 and bits_before & (_DIGIT | _BLANK) and (code == 45 or code == 0x2013 or code == 41):
            flags |= BULLETS
    if length and np.int64(table[codes[0]] if codes[0] < _TABLE_SIZE else 0) & _BLANK:
        flags |= BLANKS
    if length and (codes[length - 1] == 10):
        flags |= BLANKS
    return flags
