"""Scripture is recognised in any spelling and frozen, so that nothing that mends text touches a letter of it.

The text of the Qur'an comes from the package `quran-text` (riwāyat Ḥafṣ, CC-BY-4.0), which has every word in the Uthmani
and in the modern spelling. Both are reduced to their consonants (marks, alef, waw, ya and hamza left out), and so is the
text that is looked at: vocalisation, tatweel, الكتٰب or الكتاب, يا أيها or يأيها make no difference. Every run of
`WINDOW` consonants of a sura is known by its hash; where a text has one, the words it lies in are scripture. A verse
that is shorter is known as a whole. Whatever stands between ﴿ and ﴾ is frozen as it is.

Recognising a phrase that is no quotation costs nothing but that it is left as it was written.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from megatron_native.corpus.folding import TABLE_SIZE, code_points, fold_tables, mix

WINDOW = 15
"""Consonants: the basmala has so many."""
LEAST_VERSE = 8
"""A whole verse of fewer consonants (الم, والعصر) is recognised beside others or in brackets alone."""
MOST_BRACKETED = 4000
"""Characters between ﴿ and ﴾ at most: a bracket that is never closed freezes nothing."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
_FIRST_PLACEHOLDER = 0x100000
_LAST_PLACEHOLDER = 0x10FFFD
_TABLE_BITS = 21
_OPENING, _CLOSING = "\ufd3f", "\ufd3e"
_VOWELS = "اويىء"


class _Known(NamedTuple):
    """The hashes of windows and short verses.

    Attributes:
        windows: uint64 [2^20], open addressing, 0 for free.
        bits: uint64: a set bit for every window's leading bits; most places of a text are settled by it.
        lengths: int32: consonants of the short verses there are.
    """

    windows: NDArray[np.uint64]
    bits: NDArray[np.uint64]
    lengths: NDArray[np.int32]


@cache
def _skeleton_table() -> NDArray[np.uint32]:
    """uint32 [TABLE_SIZE]: the consonant of a character; 0 where it is left out, 1 where it parts words."""
    starts, flat = fold_tables()
    table = np.zeros(TABLE_SIZE, dtype=np.uint32)
    for code in range(TABLE_SIZE):
        folded = flat[starts[code] : starts[code + 1]]
        if len(folded) == 1 and folded[0] == 0x20:
            table[code] = 1
        elif len(folded) == 1 and chr(folded[0]) not in _VOWELS:
            table[code] = folded[0]
    for code in (*range(0xFB50, 0xFDF0), *range(0xFE70, 0xFF00)):  # ligatures: their last consonant is enough of them
        kept = [int(c) for c in flat[starts[code] : starts[code + 1]] if c != 0x20 and chr(c) not in _VOWELS]
        table[code] = kept[-1] if kept else (1 if table[code] == 1 else 0)
    table[[0x06D4, 0x06DD, 0x06DE, 0x06E9, 0xFD3E, 0xFD3F]] = 0  # signs inside quotations
    return table


@cache
def _known() -> _Known:
    import orjson

    raw = orjson.loads(resources.files("quran_text_data").joinpath("hafs.json").read_bytes())
    suras, verses = raw["surah_starts"], raw["ayah_starts"]
    found: list[NDArray[np.uint64]] = []
    lengths: set[int] = set()
    for words in (raw["words"], raw["rasm_imlai"]):
        for start, stop in zip(suras, [*suras[1:], len(words)]):
            sums, _, _ = _skeleton(code_points(" ".join(filter(None, words[start:stop]))), _skeleton_table())
            found.append(_windows(sums, WINDOW, _power(WINDOW)))
        for start, stop in zip(verses, [*verses[1:], len(words)]):
            sums, _, _ = _skeleton(code_points(" ".join(filter(None, words[start:stop]))), _skeleton_table())
            if LEAST_VERSE <= (length := len(sums) - 1) < WINDOW and stop - start >= 3:
                lengths.add(length)
                found.append(_windows(sums, length, _power(length)))
    hashes = np.unique(np.concatenate(found))
    windows = np.zeros(1 << _TABLE_BITS, dtype=np.uint64)
    bits = np.zeros(1 << (_TABLE_BITS + 2 - 6), dtype=np.uint64)
    _fill(hashes, windows, bits)
    return _Known(windows, bits, np.array(sorted(lengths), dtype=np.int32))


def _power(length: int) -> np.uint64:
    return np.uint64(pow(int(_BASE), length, 1 << 64))


@numba.njit(cache=True, nogil=True)
def _skeleton(codes: Any, table: Any) -> Any:
    """Prefix hashes uint64 [consonants + 1], the consonants' places int32, and whether a word begins with each."""
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    places = np.empty(len(codes), dtype=np.int32)
    begins = np.zeros(len(codes) + 1, dtype=np.uint8)
    count, parted = 0, True
    for place in range(len(codes)):
        code = codes[place]
        letter = table[code] if code < TABLE_SIZE else np.uint32(1)
        if letter == 0:
            continue
        if letter == 1:
            parted = True
            continue
        sums[count + 1] = sums[count] * _BASE + np.uint64(letter)
        places[count] = place
        begins[count] = parted
        parted = False
        count += 1
    begins[count] = 1
    return sums[: count + 1], places[:count], begins[: count + 1]


@numba.njit(cache=True, nogil=True)
def _windows(sums: Any, length: int, power: Any) -> Any:
    """The hashes of every window of `length` consonants, told from those of other lengths."""
    count = max(0, len(sums) - length)
    hashes = np.empty(count, dtype=np.uint64)
    for start in range(count):
        hashes[start] = mix(sums[start + length] - sums[start] * power + np.uint64(length))
    return hashes


@numba.njit(cache=True, nogil=True)
def _fill(hashes: Any, windows: Any, bits: Any) -> None:
    mask = np.uint64(len(windows) - 1)
    for index in range(len(hashes)):
        value = hashes[index]
        place = np.int64(value & mask)
        while windows[place] != 0:
            place = (place + 1) & np.int64(mask)
        windows[place] = value
        bit = value >> np.uint64(64 - _TABLE_BITS - 2)
        bits[bit >> np.uint64(6)] |= np.uint64(1) << (bit & np.uint64(63))


@numba.njit(cache=True, nogil=True)
def _is_known(value: Any, windows: Any, bits: Any) -> bool:
    bit = value >> np.uint64(64 - _TABLE_BITS - 2)
    if not (bits[bit >> np.uint64(6)] >> (bit & np.uint64(63))) & np.uint64(1):
        return False
    mask = np.int64(len(windows) - 1)
    place = np.int64(value & np.uint64(len(windows) - 1))
    while windows[place] != 0:
        if windows[place] == value:
            return True
        place = (place + 1) & mask
    return False


@numba.njit(cache=True, nogil=True)
def _find(codes: Any, table: Any, windows: Any, bits: Any, lengths: Any, powers: Any, window_power: Any) -> Any:
    """int32 [spans, 2]: places of the first and last consonant of every stretch of scripture; whether there are brackets."""
    brackets = False
    for place in range(len(codes)):
        brackets |= codes[place] == 0xFD3E or codes[place] == 0xFD3F
    sums, places, begins = _skeleton(codes, table)
    count = len(places)
    spans = np.empty((count + 1, 2), dtype=np.int32)
    found, last = 0, -1  # last: the consonant before which all is covered
    for start in range(count):
        stop = 0
        if start + WINDOW <= count:
            value = mix(sums[start + WINDOW] - sums[start] * window_power + np.uint64(WINDOW))
            stop = start + WINDOW if _is_known(value, windows, bits) else 0
        if stop == 0 and begins[start] and start >= last:
            for index in range(len(lengths)):
                length = lengths[index]
                if start + length > count:
                    break
                if begins[start + length]:
                    value = mix(sums[start + length] - sums[start] * powers[index] + np.uint64(length))
                    if _is_known(value, windows, bits):
                        stop = start + length
        if stop == 0:
            continue
        if start <= last:
            spans[found - 1, 1] = places[stop - 1]
        else:
            spans[found, 0], spans[found, 1] = places[start], places[stop - 1]
            found += 1
        last = max(last, stop)
    return spans[:found], brackets


class ScriptureFinder:
    """Finds scripture in one text after another."""

    def __init__(self) -> None:
        self._table = _skeleton_table()
        self._known = _known()
        self._power = _power(WINDOW)
        self._powers = np.array([_power(int(length)) for length in self._known.lengths], dtype=np.uint64)

    def spans(self, codes: NDArray[np.uint32]) -> list[tuple[int, int]]:
        """Where scripture begins and ends in the text of these code points: whole words, sorted, apart from each other."""
        known = self._known
        found, has_brackets = _find(
            codes, self._table, known.windows, known.bits, known.lengths, self._powers, self._power
        )
        brackets = _bracketed(codes) if has_brackets else []
        if not len(found) and not brackets:
            return []
        text = codes.tobytes().decode("utf-32-le", "surrogatepass")
        spans = sorted([*(_whole_words(text, int(first), int(last)) for first, last in found), *brackets])
        merged: list[tuple[int, int]] = []
        for begin, end in spans:
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        return merged


def _bracketed(codes: NDArray[np.uint32]) -> list[tuple[int, int]]:
    """Spans between ornate brackets, the brackets included; either may open, since software mirrors them."""
    places = np.flatnonzero((codes == ord(_OPENING)) | (codes == ord(_CLOSING)))
    spans, opened = [], -1
    for place in places.tolist():
        if opened >= 0 and codes[place] != codes[opened] and place - opened <= MOST_BRACKETED:
            spans.append((opened, place + 1))
            opened = -1
        else:
            opened = place
    return spans


def _inside_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM" or character in "\u0640\u200c\u200d"


def _without_consonant(character: str) -> bool:
    return _inside_word(character) and (unicodedata.category(character)[0] == "M" or character in "اأإآٱويىئؤء\u0640")


def _whole_words(text: str, first: int, last: int) -> tuple[int, int]:
    """The span widened to whole words with their marks, and to the signs and the number of the verse after it."""
    while first > 0 and _inside_word(text[first - 1]):
        first -= 1
    before = first
    while before > 0 and text[before - 1] in " \u00a0":
        before -= 1
    start = before
    while start > 0 and _without_consonant(text[start - 1]):
        start -= 1
    if start < before and (start == 0 or not _inside_word(text[start - 1])):
        first = start  # يا and its kind, of vowels alone
    end = last + 1
    while end < len(text) and _inside_word(text[end]):
        end += 1
    ahead = end
    while ahead < len(text) and text[ahead] in " \u00a0":
        ahead += 1
    sign = ahead
    while ahead < len(text) and (text[ahead] in "۝۞۩" or unicodedata.category(text[ahead]) == "Mn"):
        ahead += 1
    if ahead > sign:  # a sign of recitation; a number after ۝ is the verse's
        while ahead < len(text) and text[ahead].isdecimal():
            ahead += 1
        end = ahead
    return first, end


@dataclass(frozen=True)
class Frozen:
    """A text with a placeholder for every passage of scripture."""

    text: str
    passages: dict[str, str]
    """Placeholder → passage, letter for letter."""

    def thaw(self, text: str) -> str:
        """The text, mended or not, with the passages back in it."""
        return text.translate({ord(placeholder): passage for placeholder, passage in self.passages.items()})


def freeze(text: str, spans: list[tuple[int, int]]) -> Frozen:
    """Put a private-use character of its own, which `text` does not have, in the place of every span."""
    first = (
        max(
            (ord(character) for character in set(text) if ord(character) >= _FIRST_PLACEHOLDER),
            default=_FIRST_PLACEHOLDER - 1,
        )
        + 1
    )
    spans = spans[: max(0, _LAST_PLACEHOLDER - first)]
    pieces, passages, last = [], {}, 0
    for number, (begin, end) in enumerate(spans):
        placeholder = chr(first + number)
        passages[placeholder] = text[begin:end]
        pieces += [text[last:begin], placeholder]
        last = end
    return Frozen("".join([*pieces, text[last:]]), passages)


def holds_placeholder(text: str) -> bool:
    """Whether a piece of a frozen text holds scripture."""
    return not text.isascii() and max(text) >= chr(_FIRST_PLACEHOLDER)
