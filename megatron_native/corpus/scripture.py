"""Scripture is recognised in any spelling and frozen, so that nothing that mends text touches a letter of it.

Words are compared by their consonants: marks, tatweel, alef and hamza in all their forms are left out, and waw and ya
where they don't begin a word; so الكتٰب is الكتاب, الصلوٰة is الصلاة and يٰأيها is يا أيها. `verses.npy` holds hashes of
runs of such words: every run of `RUN` words of a sura and every verse of `LEAST_VERSE` to `RUN` words, in the Uthmani,
the modern and mixed spellings. It is made by `docs/make_verses.py` from the package `quran-text` (riwāyat Ḥafṣ; text of
the King Fahd Complex; © quran-ws, https://github.com/quran-ws/quran-text, CC-BY-4.0, changed: only hashes are kept).
Whatever stands between ﴿ and ﴾ is frozen as it is, and so are the religious ligatures (ﷺ ﷲ ﷽).

Recognising a phrase that is no quotation costs nothing but that it is left as it was written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from megatron_native.corpus.folding import TABLE_SIZE, fold_tables, mix

RUN = 5
"""Words of a run: fewer make ordinary prose look like quotations."""
LEAST_VERSE = 3
"""Words of the shortest verse that is recognised by itself; a shorter one is recognised in a run or in brackets."""
MOST_BRACKETED = 4000
"""Characters between ﴿ and ﴾ at most: a bracket that is never closed freezes nothing."""
VERSES = Path(__file__).with_name("verses.npy")
HASH_BYTES = 6
_FIRST_PLACEHOLDER, _LAST_PLACEHOLDER = 0x100000, 0x10FFFD
_PLACEHOLDER = re.compile("[\U00100000-\U0010ffff]")
_SEED = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
_BASE = np.uint64(0x9E3779B97F4A7C15)
_BIT_COUNT = 21
_OPENING, _CLOSING = 0xFD3F, 0xFD3E
_DROPPED, _PARTING, _ALEF, _SPECIAL = 0, 1, 2, 3  # all else in the table of letters is a letter
_YA, _WAW = ord("ي"), ord("و")
_RIAL = 0xFDFC


@cache
def _letters() -> NDArray[np.uint32]:
    """uint32 [TABLE_SIZE]: the letter a character stands for, or what else it is."""
    starts, flat = fold_tables()
    table = np.empty(TABLE_SIZE, dtype=np.uint32)
    for code in range(TABLE_SIZE):
        folded = flat[starts[code] : starts[code + 1]]
        if len(folded) == 0:
            table[code] = _DROPPED
        elif len(folded) > 1:
            table[code] = _SPECIAL
        else:
            letter = int(folded[0])
            parting = letter == 0x20 or 0x30 <= letter <= 0x39  # numbers of verses stand between their words
            table[code] = _PARTING if parting else _ALEF if letter == ord("ا") else letter
    table[[ord(letter) for letter in "ءٴﺀ"]] = _ALEF
    table[[_OPENING, _CLOSING, *range(0xFD40, 0xFD50), *range(0xFDF0, 0xFE00)]] = _SPECIAL
    table[_RIAL] = _PARTING
    return table


class Words(NamedTuple):
    """Words by their consonants: hashes uint64 [words], where they begin and end, int32 [words].

    `plain` and `plain_begins` are of the word without a particle (يا, و) that stands apart before it.
    """

    hashes: NDArray[np.uint64]
    plain: NDArray[np.uint64]
    begins: NDArray[np.int32]
    plain_begins: NDArray[np.int32]
    ends: NDArray[np.int32]

    @classmethod
    def of(cls, capacity: int) -> Words:
        """Room for so many words."""
        hashes, plain = np.empty((2, capacity), dtype=np.uint64)
        return cls(hashes, plain, *np.empty((3, capacity), dtype=np.int32))


@numba.njit(cache=True, nogil=True)
def _split(
    codes: Any, letters: Any, starts: Any, flat: Any, hashes: Any, plain: Any, begins: Any, plain_begins: Any, ends: Any
) -> Any:
    """Fill the arrays of `Words`; the words, −1 where the arrays are too small; and whether there are special characters."""
    count, special, capacity = 0, False, len(hashes)
    inside = joined = False  # joined: after a particle, whose letters `state` holds and `own` does not
    state = own = _SEED
    begin = own_begin = end = 0
    length, key = 0, 0  # letters of the word, and which: 1 alef, 2 waw, 3 ya; the first three in base 4
    for place in range(len(codes) + 1):
        if place == len(codes):
            letter = np.uint32(_PARTING)
        else:
            code = codes[place]
            if code < TABLE_SIZE:
                letter = letters[code]
            elif code >= _FIRST_PLACEHOLDER:
                letter, special = np.uint32(_PARTING), True
            else:
                letter = np.uint32(code) if code < 0x323B0 else np.uint32(_PARTING)
        if letter == _DROPPED:
            continue
        first, last = 0, 1
        if letter == _SPECIAL:
            if 0xFD3E <= code <= 0xFD4F or code >= 0xFDF0:
                special = True
            if code == 0xFDF2 or code < 0xFD3E or code >= 0xFE00 or 0xFD50 <= code < 0xFDF0:
                first, last = starts[code], starts[code + 1]
            else:
                letter = np.uint32(_PARTING)
        if letter == _PARTING:
            if not inside:
                continue
            inside = False
            particle = (length == 1 and key == 2) or (length == 2 and key == 13) or (length == 3 and key == 45)  # و يا ويا
            if particle and not joined and place < len(codes):
                joined = True
                continue
            if count == capacity:
                return -1, special
            hashes[count], begins[count], ends[count] = mix(state), begin, end
            plain[count], plain_begins[count] = mix(own), own_begin
            count += 1
            joined = False
            continue
        for index in range(first, last):
            if letter == _SPECIAL:
                folded = flat[index]
                if folded == 0x20:
                    continue
                value = np.uint32(_ALEF) if folded == 0x627 else np.uint32(folded)
            else:
                value = letter
            if not inside:
                inside, own_begin, own, length, key = True, place, _SEED, 0, 0
                if not joined:
                    begin, state = place, _SEED
            weak = value in (_YA, _WAW)
            if length < 3:
                key = key * 4 + (1 if value == _ALEF else 2 if value == _WAW else 3 if value == _YA else 0)
            length += 1
            if value != _ALEF:
                if not weak or length == 1:
                    own = (own ^ np.uint64(value)) * _PRIME
                if not weak or (length == 1 and not joined):
                    state = (state ^ np.uint64(value)) * _PRIME
        end = place + 1
    return count, special


@numba.njit(cache=True, nogil=True, inline="always")
def _run_hash(total: Any, words: int) -> Any:
    """48 bits for words whose hashes h make Σ hᵢ · _BASEⁱ, i counted from the last."""
    return mix(total + np.uint64(words)) >> np.uint64(64 - 8 * HASH_BYTES)


@numba.njit(cache=True, nogil=True)
def hash_of_run(hashes: Any) -> Any:
    """The hash of a run of words given by theirs, uint64 [words], as `verses.npy` holds it."""
    total, power = np.uint64(0), np.uint64(1)
    for place in range(len(hashes) - 1, -1, -1):
        total += hashes[place] * power
        power *= _BASE
    return _run_hash(total, len(hashes))


@numba.njit(cache=True, nogil=True)
def _is_known(value: Any, known: Any, bits: Any) -> bool:
    bit = value >> np.uint64(8 * HASH_BYTES - _BIT_COUNT)
    if not (bits[bit >> np.uint64(6)] >> (bit & np.uint64(63))) & np.uint64(1):
        return False
    low, high = 0, len(known)
    while low < high:
        middle = (low + high) >> 1
        if known[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low < len(known) and known[low] == value


@numba.njit(cache=True, nogil=True)
def _match(
    hashes: Any, plain: Any, begins: Any, plain_begins: Any, ends: Any, known: Any, bits: Any, spans: Any
) -> int:
    """Fill `spans` int32 [RUN words or more, 2] with the places of runs that are known; their number."""
    found, covered = 0, -1  # covered: the last word of the last span
    for last in range(LEAST_VERSE - 1, len(hashes)):
        total, power = np.uint64(0), np.uint64(1)
        first, begin = -1, 0
        for words in range(1, min(RUN, last + 1) + 1):
            place = last - words + 1
            if words >= LEAST_VERSE:
                if _is_known(_run_hash(total + hashes[place] * power, words), known, bits):
                    first, begin = place, begins[place]
                elif plain_begins[place] != begins[place] and _is_known(
                    _run_hash(total + plain[place] * power, words), known, bits
                ):
                    first, begin = place, plain_begins[place]
            total += hashes[place] * power
            power *= _BASE
        if first < 0:
            continue
        while found and first <= covered and begin <= spans[found - 1, 0] and found > 1 and begin <= spans[found - 2, 1]:
            found -= 1
        if found and first <= covered:
            spans[found - 1, 0] = min(begin, spans[found - 1, 0])
        else:
            spans[found, 0] = begin
            found += 1
        spans[found - 1, 1] = ends[last]
        covered = last
    return found


class WordSplitter:
    """Splits one text after another into words, in buffers that are used again."""

    def __init__(self) -> None:
        self.letters = _letters()
        self._starts, self._flat = fold_tables()
        self._buffers = Words.of(1 << 12)

    def split(self, codes: NDArray[np.uint32]) -> tuple[Words, bool]:
        """The words of a text, and whether it has brackets, ligatures or private characters to look at."""
        count, special = _split(codes, self.letters, self._starts, self._flat, *self._buffers)
        while count < 0:
            self._buffers = Words.of(2 * len(self._buffers.hashes))
            count, special = _split(codes, self.letters, self._starts, self._flat, *self._buffers)
        hashes, plain, begins, plain_begins, ends = self._buffers
        return Words(hashes[:count], plain[:count], begins[:count], plain_begins[:count], ends[:count]), special


class ScriptureFinder:
    """Finds scripture in one text after another; not to be shared by threads."""

    def __init__(self) -> None:
        self._splitter = WordSplitter()
        self._known, self._bits = _known()

    def spans(self, codes: NDArray[np.uint32]) -> list[tuple[int, int]]:
        """Where what is to be frozen begins and ends in the text of these code points: sorted, apart from each other."""
        words, special = self._splitter.split(codes)
        count = len(words.hashes)
        places = np.empty((count, 2), dtype=np.int32)
        found = _match(*words, self._known, self._bits, places)
        if not found and not special:
            return []
        spans = [_widened(codes, self._splitter.letters, int(begin), int(end)) for begin, end in places[:found]]
        if special:
            spans = sorted([*spans, *_bracketed(codes), *_single(codes)])
        merged: list[tuple[int, int]] = []
        for begin, end in spans:
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        return merged


@cache
def _known() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The hashes of runs, sorted, and a set bit for the leading bits of each, which settles most places of a text."""
    known = hashes_of_bytes(np.load(VERSES))
    leading = known >> np.uint64(8 * HASH_BYTES - _BIT_COUNT)
    bits = np.zeros(1 << (_BIT_COUNT - 6), dtype=np.uint64)
    np.bitwise_or.at(bits, leading >> np.uint64(6), np.uint64(1) << (leading & np.uint64(63)))
    return known, bits


def hashes_of_bytes(packed: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hashes uint64 [n] of their bytes uint8 [n, HASH_BYTES], as `verses.npy` holds them, the lowest first."""
    whole = np.zeros((len(packed), 8), dtype=np.uint8)
    whole[:, :HASH_BYTES] = packed
    return whole.view("<u8").reshape(-1).astype(np.uint64)


def _is_mark(code: int, letters: NDArray[np.uint32]) -> bool:
    """Whether a character is an Arabic mark, tatweel or ۝."""
    return 0x610 <= code < 0x900 and code != 0x61C and letters[code] == _DROPPED


def _widened(codes: NDArray[np.uint32], letters: NDArray[np.uint32], begin: int, end: int) -> tuple[int, int]:
    """A span with ۞ before it, and with the marks, signs of recitation and numbers of verses after it."""
    while begin and _is_mark(int(codes[begin - 1]), letters):
        begin -= 1
    before = begin
    while before and codes[before - 1] in _BLANKS:
        before -= 1
    if before and codes[before - 1] == 0x6DE:
        begin = before - 1
    while end < len(codes) and _is_mark(int(codes[end]), letters):
        end += 1
    tail = _TAIL.match(codes[end : end + 40].tobytes().decode("utf-32-le", "surrogatepass"))
    return begin, end + (tail.end() if tail else 0)


_BLANKS = (0x20, 0xA0)
_NUMBER = r"[0-9\u0660-\u0669\u06f0-\u06f9]{1,3}"
_TAIL = re.compile(
    rf"(?:[ \u00a0]{{0,2}}(?:[\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u06e9\u06de]+|\u06dd{_NUMBER}|{_NUMBER}\u06dd|\u06dd|"
    rf"\({_NUMBER}\)|\[{_NUMBER}\]|[\ufd3e\ufd3f]{_NUMBER}[\ufd3e\ufd3f]))+"
)


def _bracketed(codes: NDArray[np.uint32]) -> list[tuple[int, int]]:
    """Spans between ornate brackets, these included; pairs may stand in pairs, as ﴿١﴾ in a passage.

    Software mirrors brackets: ﴾ opens where the text begins with one and ends with ﴿, or where a word follows it and
    none stands before it.
    """
    places = np.flatnonzero((codes == _OPENING) | (codes == _CLOSING)).tolist()
    if not places:
        return []
    mirrored = codes[places[0]] == _CLOSING and codes[places[-1]] == _OPENING
    spans: list[tuple[int, int]] = []
    opened: list[int] = []
    for place in places:
        if opened and codes[opened[-1]] != codes[place]:
            if place - (begin := opened.pop()) < MOST_BRACKETED:
                spans.append((begin, place + 1))
        elif opened or codes[place] == (_CLOSING if mirrored else _OPENING) or _begins_word(codes, place):
            opened.append(place)
    return spans


def _begins_word(codes: NDArray[np.uint32], place: int) -> bool:
    before = place == 0 or chr(codes[place - 1]).isspace()
    return before and place + 1 < len(codes) and not chr(codes[place + 1]).isspace()


def _single(codes: NDArray[np.uint32]) -> list[tuple[int, int]]:
    """Religious ligatures and private characters that `freeze` could take for its own."""
    ligature = ((codes >= 0xFDF0) & (codes <= 0xFDFF) & (codes != _RIAL)) | ((codes >= 0xFD40) & (codes <= 0xFD4F))
    return [(place, place + 1) for place in np.flatnonzero(ligature | (codes >= _FIRST_PLACEHOLDER)).tolist()]


@dataclass(frozen=True)
class Frozen:
    """A text with a placeholder for every span, and what they stand for."""

    text: str
    passages: tuple[str, ...] = ()

    def thaw(self, text: str) -> str:
        """The text, mended or not, with the passages back in it, letter for letter."""
        return _PLACEHOLDER.sub(self._passage, text) if self.passages else text

    def _passage(self, found: re.Match[str]) -> str:
        number = ord(found.group()) - _FIRST_PLACEHOLDER
        return self.passages[number] if number < len(self.passages) else found.group()


def freeze(text: str, spans: list[tuple[int, int]]) -> Frozen:
    """Put a private-use character in the place of every span that `ScriptureFinder.spans` found in the text.

    Equal passages get the same character. Where a text has more different ones than there are characters, the last one
    stands for everything from the first passage that is too many to the last.
    """
    if not spans:
        return Frozen(text)
    numbers: dict[str, int] = {}
    pieces, last = [], 0
    most = _LAST_PLACEHOLDER - _FIRST_PLACEHOLDER + 1
    for begin, end in spans:
        passage = text[begin:end]
        if len(numbers) == most - 1 and passage not in numbers:
            end = spans[-1][1]
            passage = text[begin:end]
        number = numbers.setdefault(passage, len(numbers))
        pieces += [text[last:begin], chr(_FIRST_PLACEHOLDER + number)]
        last = end
        if last == spans[-1][1]:
            break
    return Frozen("".join([*pieces, text[last:]]), tuple(numbers))


def holds_placeholder(text: str) -> bool:
    """Whether a piece of a frozen text holds scripture."""
    return not text.isascii() and max(text) >= chr(_FIRST_PLACEHOLDER)
