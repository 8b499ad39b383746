"""One look at a text that says which edits it can need, so that clean text costs a table look-up a character."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

_TABLE_SIZE = 0x10000
MARKUP, PRESENTATION, INVISIBLE, JOINER, CONTROL, TATWEEL, SPACES, MOJIBAKE = (1 << bit for bit in range(8))
_FOREIGN, _ARABIC, _LATIN, _SPACE, _BREAK = (1 << bit for bit in range(11, 16))
_EDITS = 0xFF
_FOREIGN_LETTERS = "پچژگکیٹڈڑےہھڤڭێۆڕڵەټډړږڼۍېڀڄٿۃ"
"""Letters of Persian, Urdu, Kurdish, Pashto and Sindhi that Arabic has in loan words at most."""
_MISREAD = "ØÙÃÂÇÓÚíáÝÈÊ"
"""What the bytes of Arabic letters look like when UTF-8 or CP1256 was read as Latin-1."""


class Survey(NamedTuple):
    """What a text can need.

    Attributes:
        flags: `MARKUP` and its kin, or-ed.
        arabic, latin: letters of these scripts; marks are no letters.
        foreign: Arabic letters that Persian, Urdu or Kurdish have and Arabic has not.
        misread: letters that misread Arabic is full of.
    """

    flags: int
    arabic: int
    latin: int
    foreign: int
    misread: int


@cache
def _table() -> NDArray[np.uint16]:
    table = np.zeros(_TABLE_SIZE, dtype=np.uint16)
    for characters, bit in (
        ("<&", MARKUP),
        ("\u00ad\u061c\u180e\u200b\u200e\u200f\ufeff" + _range(0x202A, 0x202E) + _range(0x2060, 0x206F), INVISIBLE),
        ("\u200c\u200d", JOINER),
        (_range(0, 8) + _range(0xB, 0x1F) + _range(0x7F, 0x9F) + "\u2028\u2029", CONTROL),
        ("\u0640", TATWEEL),
        ("\t\u00a0\u1680\u202f\u205f\u3000" + _range(0x2000, 0x200A), SPACES),
        (_range(0xFB50, 0xFDEF) + _range(0xFE70, 0xFEFE), PRESENTATION),
        (_MISREAD, MOJIBAKE),
        (_FOREIGN_LETTERS, _FOREIGN),
        (" ", _SPACE),
        ("\n", _BREAK),
    ):
        for character in characters:
            table[ord(character)] |= bit
    for code in range(_TABLE_SIZE):
        if 0xD800 <= code < 0xF900 or unicodedata.category(chr(code))[0] != "L" or code == 0x640:
            continue
        name = unicodedata.name(chr(code), "")
        if name.startswith("ARABIC "):
            table[code] |= _ARABIC
        elif name.startswith(("LATIN ", "FULLWIDTH LATIN ")):
            table[code] |= _LATIN
    return table


def _range(first: int, last: int) -> str:
    return "".join(map(chr, range(first, last + 1)))


def survey(codes: NDArray[np.uint32]) -> Survey:
    """What the text of these code points can need."""
    return Survey(*_survey(codes, _table()))


@numba.njit(cache=True, nogil=True)
def _survey(codes: Any, table: Any) -> Any:
    flags, arabic, latin, foreign, misread = 0, 0, 0, 0, 0
    breaks = 3  # line breaks just before, spaces among them; the beginning counts as many
    after_space = True
    for place in range(len(codes)):
        code = codes[place]
        bits = int(table[code]) if code < _TABLE_SIZE else 0
        flags |= bits & _EDITS
        if bits & _SPACE:
            if after_space or breaks:
                flags |= SPACES
            after_space = True
            continue
        if bits & _BREAK:
            if after_space or breaks > 1:
                flags |= SPACES
            breaks += 1
            after_space = False
            continue
        after_space = False
        breaks = 0
        if bits & _ARABIC:
            arabic += 1
            foreign += (bits & _FOREIGN) != 0
        elif bits & _LATIN:
            latin += 1
            if bits & MOJIBAKE:
                misread += 1
    if breaks or after_space:
        flags |= SPACES
    return flags, arabic, latin, foreign, misread


def tidy(codes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The text with one space where there are several, of any kind, none around line breaks, and two breaks at most."""
    return _tidy(codes, _table())


@numba.njit(cache=True, nogil=True)
def _tidy(codes: Any, table: Any) -> Any:
    out = np.empty(len(codes), dtype=np.uint32)
    count, breaks, spaced = 0, 0, False
    for place in range(len(codes)):
        code = codes[place]
        bits = int(table[code]) if code < _TABLE_SIZE else 0
        if bits & _BREAK:
            breaks += 1
        elif bits & (_SPACE | SPACES):
            spaced = True
        else:
            if count and breaks:
                out[count] = 10
                count += 1
                if breaks > 1:
                    out[count] = 10
                    count += 1
            elif count and spaced:
                out[count] = 32
                count += 1
            out[count] = code
            count += 1
            breaks, spaced = 0, False
    return out[:count]
