"""The matching view, compiled: one table says what every character folds to, one loop turns a text into hashed words.

`fold` shows the view as text; `WordFolder` goes straight from a text to its words' hashes and places, which is what
MinHash, statistics, lexicons and the recognition of scripture work on. Both read the same table.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

TABLE_SIZE = 0x20000
"""Code points with an entry; those above are ideographs (kept) or private and unassigned (separators)."""
_LAST_IDEOGRAPH = 0x323AF
_HASH_SEED = np.uint64(0xCBF29CE484222325)
_HASH_PRIME = np.uint64(0x100000001B3)
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_SPACE = 0x20
_VARIANTS = {"ا": "أإآٱٲٳٵ", "ي": "ىیېئێ", "ه": "ةۀۂہھە", "و": "ؤ", "ك": "کڪګ"}
_DROPPED = "ءـٴ"


@cache
def _letters() -> dict[str, str]:
    table = {variant: letter for letter, variants in _VARIANTS.items() for variant in variants}
    return table | dict.fromkeys(_DROPPED, "")


def fold_character(character: str) -> str:
    """What one character is in the matching view: letters and digits, " " where it parts words, "" where it is dropped.

    Compatibility forms become letters, marks, tatweel, hamza and format controls are dropped, letter variants, digit
    systems and case are folded, all else parts words.
    """
    result = []
    for part in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold()):
        category = unicodedata.category(part)
        if category[0] == "M" or category == "Cf" or part in _DROPPED:
            continue
        if category[0] == "L":
            result.append(_letters().get(part, part))
        elif category[0] == "N":
            value = unicodedata.decimal(part, None)
            result.append(part if value is None else str(value))
        else:
            result.append(" ")
    return "".join(result)


@cache
def fold_tables() -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """int32 [TABLE_SIZE + 1] starts and uint32 code points: character c folds to `flat[starts[c] : starts[c + 1]]`."""
    starts = np.zeros(TABLE_SIZE + 1, dtype=np.int32)
    flat: list[int] = []
    for code in range(TABLE_SIZE):
        if not 0xD800 <= code < 0xF900:  # surrogates and private use part words
            flat += map(ord, fold_character(chr(code)))
        else:
            flat.append(_SPACE)
        starts[code + 1] = len(flat)
    return starts, np.array(flat, dtype=np.uint32)


def code_points(text: str) -> NDArray[np.uint32]:
    """uint32 [characters] of a text."""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def fold(text: str) -> str:
    """The matching view as text: words in one spelling, one space apart."""
    return " ".join("".join(map(fold_character, text)).split())


class Words(NamedTuple):
    """The words of a text in the matching view; arrays that the next call to the same folder overwrites.

    Attributes:
        hashes: uint64 [words]
        begins, ends: int32 [words], the word's characters are `text[begin:end]` (marks after it included).
    """

    hashes: NDArray[np.uint64]
    begins: NDArray[np.int32]
    ends: NDArray[np.int32]


class WordFolder:
    """Words of one text after another, in buffers that are used again."""

    def __init__(self) -> None:
        self._starts, self._flat = fold_tables()
        self._grow(1 << 14)

    def words(self, text: str) -> Words:
        """The words of a text; one that folds to nothing has none."""
        return self.words_of_codes(code_points(text))

    def words_of_codes(self, codes: NDArray[np.uint32]) -> Words:
        """As `words`, of code points uint32 [characters]."""
        count = fold_words(codes, self._starts, self._flat, self._hashes, self._begins, self._ends)
        while count < 0:
            self._grow(2 * len(self._hashes))
            count = fold_words(codes, self._starts, self._flat, self._hashes, self._begins, self._ends)
        return Words(self._hashes[:count], self._begins[:count], self._ends[:count])

    def _grow(self, capacity: int) -> None:
        self._hashes = np.empty(capacity, dtype=np.uint64)
        self._begins = np.empty(capacity, dtype=np.int32)
        self._ends = np.empty(capacity, dtype=np.int32)


def word_hash(word: str) -> int:
    """The hash that `WordFolder` gives a single word, for lexicons.

    Raises:
        ValueError: the text is not one word in the matching view.
    """
    hashes = WordFolder().words(word).hashes
    if len(hashes) != 1:
        raise ValueError(f"{word!r} is {len(hashes)} words in the matching view")
    return int(hashes[0])


@numba.njit(cache=True, nogil=True, inline="always")
def mix(value: Any) -> Any:
    """murmur3's 64-bit finaliser: every bit of the result depends on every bit of `value`."""
    value = (value ^ (value >> np.uint64(33))) * _MIX_1
    value = (value ^ (value >> np.uint64(33))) * _MIX_2
    return value ^ (value >> np.uint64(33))


@numba.njit(cache=True, nogil=True)
def place_among(hashes: Any, value: Any) -> int:
    """Where `value` is in the ascending array `hashes`, or −1."""
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high) >> 1
        if hashes[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low if low < len(hashes) and hashes[low] == value else -1


@numba.njit(cache=True, nogil=True)
def fold_words(codes: Any, starts: Any, flat: Any, hashes: Any, begins: Any, ends: Any) -> int:
    """Fill `hashes`, `begins`, `ends` with the words of `codes`; their number, or −1 where the arrays are too small.

    A word's hash is FNV-1a over its folded code points, mixed.
    """
    count, inside = 0, False
    state = _HASH_SEED
    begin = end = 0
    led = -1  # where dropped characters began that stand right before a word
    capacity = len(hashes)
    for place in range(len(codes)):
        code = codes[place]
        if code < TABLE_SIZE:
            start, stop = starts[code], starts[code + 1]
        elif code <= _LAST_IDEOGRAPH:
            if not inside:
                inside, begin, state = True, led if led >= 0 else place, _HASH_SEED
            state = (state ^ np.uint64(code)) * _HASH_PRIME
            end = place + 1
            continue
        else:
            start = stop = -1
        if start == stop and start >= 0:  # dropped: a mark belongs to the word it stands on
            if inside:
                end = place + 1
            elif led < 0:
                led = place
            continue
        if start < 0:
            led = -1
            if inside:
                if count == capacity:
                    return -1
                hashes[count], begins[count], ends[count] = mix(state), begin, end
                count += 1
                inside = False
            continue
        for index in range(start, stop):
            folded = flat[index]
            if folded == _SPACE:
                led = -1
                if inside:
                    if count == capacity:
                        return -1
                    hashes[count], begins[count], ends[count] = mix(state), begin, end
                    count += 1
                    inside = False
                continue
            if not inside:
                inside, begin, state = True, led if led >= 0 else place, _HASH_SEED
            state = (state ^ np.uint64(folded)) * _HASH_PRIME
            end = place + 1
    if inside:
        if count == capacity:
            return -1
        hashes[count], begins[count], ends[count] = mix(state), begin, end
        count += 1
    return count
