"""What quality filters look at, counted in one compiled pass over a text.

In go code points and the words of the matching view; out come plain numbers. Repetition is measured as Gopher does (Rae
et al., 2021, table A1), lines and characters as FineWeb-2's Arabic configuration does; a number with separators
(9,098.27) is one word, marks and tatweel are no letters, and a line is one that has a letter or a digit.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from megatron_native.corpus.folding import WordFolder, Words, code_points, fold_tables, mix

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
_TABLE_SIZE = 0x20000
_LETTER, _MARK, _DIGIT, _SPACE, _END, _SYMBOL, _ARABIC, _LATIN = (1 << bit for bit in range(8))
_NUMBER_JOINT, _WORD_JOINT, _BULLET, _TATWEEL, _PERIOD, _ELLIPSIS = (1 << bit for bit in range(8, 14))
_LAST_IDEOGRAPH = 0x323AF
_BASE = np.uint64(0x9E3779B97F4A7C15)
_LAST_STAMP = 0xFFFFFF00


class Lexicons(NamedTuple):
    """Words to count, as `hash_set` makes them of their hashes in the matching view.

    Attributes:
        stop: words that prose of the language has.
        unsafe: words of adult and abusive text.
    """

    stop: NDArray[np.uint64]
    unsafe: NDArray[np.uint64]


def hash_set(hashes: Iterable[int]) -> NDArray[np.uint64]:
    """An open-addressing table, uint64 [a power of two], at most a quarter full; 0 is a free place."""
    members = {int(value) for value in hashes} - {0}
    table = np.zeros(1 << (4 * len(members)).bit_length(), dtype=np.uint64)
    for value in members:
        place = value % len(table)
        while table[place]:
            place = (place + 1) % len(table)
        table[place] = value
    return table


NO_LEXICONS = Lexicons(hash_set(()), hash_set(()))


class Statistics(NamedTuple):
    """The counts of one text.

    Attributes:
        characters: all of them.
        words: words and numbers.
        letters: characters of words, without marks and tatweel; digits among them.
        alphabetic_words: words with a letter.
        stop_words, unsafe_words: words of the lexicons.
        lines: lines with a letter or a digit.
        duplicate_lines: lines that came before; duplicate_line_characters: the characters of these.
        punctuated_lines, ellipsis_lines, bullet_lines: lines that end in sentence punctuation, that end in an ellipsis,
            that begin with a bullet.
        line_breaks: of all kinds of lines.
        symbols: hash signs, ellipses (… or a run of three dots and more), brackets of code, pictographs; signs of the
            Arabic script, as ۞ and ﷽, are none.
        blanks: spaces, tabs, line breaks.
        marks, tatweel, digits: characters.
        arabic, latin: letters of these scripts.
        top_ngrams: share of the letters in the most frequent 2-, 3- and 4-gram of words, 0 where none comes twice.
        duplicate_ngrams: share of the letters in 5- to 10-grams that came before.
    """

    characters: int
    words: int
    letters: int
    alphabetic_words: int
    stop_words: int
    unsafe_words: int
    lines: int
    duplicate_lines: int
    duplicate_line_characters: int
    punctuated_lines: int
    ellipsis_lines: int
    bullet_lines: int
    line_breaks: int
    symbols: int
    blanks: int
    marks: int
    tatweel: int
    digits: int
    arabic: int
    latin: int
    top_ngrams: tuple[float, float, float]
    duplicate_ngrams: tuple[float, float, float, float, float, float]


_SENTENCE_ENDS = '.!?؟؛…:»”")]۔。！？'
_BULLETS = "-•●▪*–◦■□➤►"
_CODE_SYMBOLS = "#|<>{}[]\\^~*=_"
_NUMBER_JOINTS = ".,:/٫٬"
_WORD_JOINTS = "'’-"


@cache
def _classes() -> NDArray[np.uint16]:
    """uint16 [code points]: the classes of every character.

    A sign that the matching view spells out, as ㎏, ™ and ﷼, is a letter, for it makes a word.
    """
    starts, flat = fold_tables()
    bounds, folded = starts.tolist(), flat.tolist()
    table = np.zeros(_TABLE_SIZE, dtype=np.uint16)
    for code in range(_TABLE_SIZE):
        if 0xD800 <= code < 0xF900:
            continue
        character = chr(code)
        category = unicodedata.category(character)
        bits = {"L": _LETTER, "M": _MARK, "N": _DIGIT, "Z": _SPACE}.get(category[0], 0)
        if bits == _LETTER and character != "\u0640":
            name = unicodedata.name(character, "")
            bits |= _ARABIC if name.startswith("ARABIC ") else _LATIN if name.startswith("LATIN ") else 0
        if category[0] in "PS" and any(part != 0x20 for part in folded[bounds[code] : bounds[code + 1]]):
            bits = _LETTER
        elif category == "So" and not unicodedata.name(character).startswith("ARABIC "):
            bits = _SYMBOL
        table[code] = bits
    table[ord("\u0640")] = _TATWEEL
    for characters, bit in (
        (_SENTENCE_ENDS, _END), (_BULLETS, _BULLET), (_CODE_SYMBOLS, _SYMBOL), (_NUMBER_JOINTS, _NUMBER_JOINT),
        (_WORD_JOINTS, _WORD_JOINT), ("\t\n\r", _SPACE), (".", _PERIOD), ("…", _ELLIPSIS | _SYMBOL),
    ):  # fmt: skip
        for character in characters:
            table[ord(character)] |= bit
    return table


class _Buffers(threading.local):
    """Tables that a thread uses again from text to text; an entry counts where its stamp is the one of the moment."""

    def __init__(self) -> None:
        self.renew(1 << 12)

    def renew(self, capacity: int) -> None:
        """Empty tables of so many entries, a power of two."""
        self.keys = np.zeros(capacity, dtype=np.uint64)
        self.stamps = np.zeros(capacity, dtype=np.uint32)
        self.counts = np.zeros(capacity, dtype=np.int32)
        self.firsts = np.zeros(capacity, dtype=np.int32)
        self.clock = np.zeros(1, dtype=np.uint32)


_BUFFERS = _Buffers()


def measure(codes: NDArray[np.uint32], words: Words, lexicons: Lexicons = NO_LEXICONS) -> Statistics:
    """The statistics of a text: code points uint32 [characters] and the words that `WordFolder` finds in them."""
    buffers = _BUFFERS
    needed = 2 * (len(words.hashes) + int(np.count_nonzero(codes == 10)) + 2)
    if needed > len(buffers.keys) or buffers.clock[0] > _LAST_STAMP:
        buffers.renew(max(len(buffers.keys), 1 << needed.bit_length()))
    counts, top, duplicate = _measure(
        codes, words.hashes, words.begins, words.ends, lexicons.stop, lexicons.unsafe, _classes(),
        buffers.keys, buffers.stamps, buffers.counts, buffers.firsts, buffers.clock,
    )  # fmt: skip
    return Statistics._make((*counts, top, duplicate))


def measure_text(text: str, lexicons: Lexicons = NO_LEXICONS) -> Statistics:
    """`measure` of a text alone."""
    codes = code_points(text)
    return measure(codes, WordFolder().words_of_codes(codes), lexicons)


@numba.njit(cache=True, nogil=True, inline="always")
def _class_of(code: Any, classes: Any) -> Any:
    """The classes of a character; above the table ideographs are letters, all else is nothing."""
    if code < _TABLE_SIZE:
        return np.int64(classes[code])
    return np.int64(_LETTER if code <= _LAST_IDEOGRAPH else 0)


@numba.njit(cache=True, nogil=True)
def _contains(table: Any, value: Any) -> bool:
    mask = np.uint64(len(table) - 1)
    place = value & mask
    while table[place] != 0:
        if table[place] == value:
            return True
        place = (place + np.uint64(1)) & mask
    return False


@numba.njit(cache=True, nogil=True)
def _slot(key: Any, keys: Any, stamps: Any, stamp: Any, mask: int) -> Any:
    """The place of `key`, or of the free entry where it belongs."""
    place = np.int64(key & np.uint64(mask))
    while stamps[place] == stamp and keys[place] != key:
        place = (place + 1) & mask
    return place


@numba.njit(cache=True, nogil=True)
def _join_words(codes: Any, hashes: Any, begins: Any, ends: Any, classes: Any) -> Any:
    """Words with numbers and hyphenated words as one: hashes, letters of each, and whether it has a letter."""
    joined = np.empty(len(hashes), dtype=np.uint64)
    letters = np.empty(len(hashes), dtype=np.int32)
    alphabetic = np.zeros(len(hashes), dtype=np.uint8)
    count, last_end, last_kind = 0, -1, 0
    for index in range(len(hashes)):
        begin, end = begins[index], ends[index]
        size, kind = 0, 0
        for place in range(begin, end):
            code = codes[place]
            bits = _class_of(code, classes)
            if bits & (_LETTER | _DIGIT):
                size += 1
                if kind == 0:
                    kind = _LETTER if bits & _LETTER else _DIGIT
                elif bits & _LETTER:
                    kind = _LETTER
        joins = False
        if count and begin == last_end + 1 and kind == last_kind:
            bits = _class_of(codes[last_end], classes)
            joins = bool(bits & (_NUMBER_JOINT if kind == _DIGIT else _WORD_JOINT))
        if joins:
            joined[count - 1] = mix(joined[count - 1] * _BASE + hashes[index])
            letters[count - 1] += size
        else:
            joined[count], letters[count] = hashes[index], size
            alphabetic[count] = kind == _LETTER
            count += 1
        last_end, last_kind = end, kind
    return joined[:count], letters[:count], alphabetic[:count]


@numba.njit(cache=True, nogil=True)
def _lines(codes: Any, classes: Any, keys: Any, stamps: Any, stamp: Any, mask: int) -> Any:
    """Counts over lines and characters, see `Statistics`."""
    lines = duplicates = duplicate_characters = punctuated = elliptic = bulleted = breaks = 0
    symbols = blanks = marks = tatweel = digits = arabic = latin = 0
    start, length = 0, len(codes)
    while start < length:
        first, last, text = -1, -1, False
        state = np.uint64(0xCBF29CE484222325)
        place = start
        while place < length and codes[place] != 10:
            code = codes[place]
            bits = _class_of(code, classes)
            if not bits & _SPACE:
                if first < 0:
                    first = place
                last = place
                text = text or bits & (_LETTER | _DIGIT) != 0
                symbols += (bits & _SYMBOL) != 0
                marks += (bits & _MARK) != 0
                tatweel += (bits & _TATWEEL) != 0
                digits += (bits & _DIGIT) != 0
                arabic += (bits & _ARABIC) != 0
                latin += (bits & _LATIN) != 0
                if bits & _PERIOD and place >= start + 2 and codes[place - 1] == 46 and codes[place - 2] == 46:
                    symbols += 1 if place < start + 3 or codes[place - 3] != 46 else 0
            else:
                blanks += 1
            if first >= 0:
                state = (state ^ np.uint64(code)) * np.uint64(0x100000001B3)
            place += 1
        if place < length:
            breaks += 1
            blanks += 1
        if text:
            lines += 1
            if last + 1 < place:  # without what follows the last character
                state = np.uint64(0xCBF29CE484222325)
                for index in range(first, last + 1):
                    state = (state ^ np.uint64(codes[index])) * np.uint64(0x100000001B3)
            slot = _slot(mix(state), keys, stamps, stamp, mask)
            if stamps[slot] == stamp:
                duplicates += 1
                duplicate_characters += last + 1 - first
            else:
                keys[slot], stamps[slot] = mix(state), stamp
            bits = _class_of(codes[last], classes)
            punctuated += (bits & _END) != 0
            three = last >= start + 2 and codes[last] == 46 and codes[last - 1] == 46 and codes[last - 2] == 46
            elliptic += bits & _ELLIPSIS != 0 or three
            bulleted += _class_of(codes[first], classes) & _BULLET != 0
        start = place + 1
    return (
        lines, duplicates, duplicate_characters, punctuated, elliptic, bulleted, breaks,
        symbols, blanks, marks, tatweel, digits, arabic, latin,
    )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _top_letters(
    sums: Any, power: Any, ends: Any, size: int, keys: Any, stamps: Any, counts: Any, firsts: Any, stamp: Any, mask: int
) -> Any:
    """Letters in the most frequent n-gram, the first of equally frequent ones; −1 where none comes twice."""
    best_count, best_first = 1, -1
    for start in range(len(sums) - size):
        key = mix(sums[start + size] - sums[start] * power)
        slot = _slot(key, keys, stamps, stamp, mask)
        if stamps[slot] != stamp:
            keys[slot], stamps[slot], counts[slot], firsts[slot] = key, stamp, 1, start
            continue
        counts[slot] += 1
        if counts[slot] > best_count or (counts[slot] == best_count and firsts[slot] < best_first):
            best_count, best_first = counts[slot], firsts[slot]
    return best_count * (ends[best_first + size] - ends[best_first]) if best_first >= 0 else -1


@numba.njit(cache=True, nogil=True)
def _repeated_letters(
    sums: Any, power: Any, ends: Any, size: int, keys: Any, stamps: Any, stamp: Any, mask: int
) -> Any:
    """Letters in n-grams that came before, after such a one the walk goes on behind it; −1 where there is none."""
    start, repeated, found = 0, 0, False
    while start < len(sums) - size:
        key = mix(sums[start + size] - sums[start] * power)
        slot = _slot(key, keys, stamps, stamp, mask)
        if stamps[slot] == stamp:
            repeated += ends[start + size] - ends[start]
            found = True
            start += size
        else:
            keys[slot], stamps[slot] = key, stamp
            start += 1
    return repeated if found else -1


@numba.njit(cache=True, nogil=True)
def _measure(
    codes: Any,
    hashes: Any,
    begins: Any,
    ends: Any,
    stop: Any,
    unsafe: Any,
    classes: Any,
    keys: Any,
    stamps: Any,
    counts: Any,
    firsts: Any,
    clock: Any,
) -> Any:
    joined, letters, alphabetic = _join_words(codes, hashes, begins, ends, classes)
    words = len(joined)
    mask = 1
    while mask < 2 * (words + 2):
        mask *= 2
    mask -= 1
    stopping = bad = 0
    for index in range(len(hashes)):
        stopping += _contains(stop, hashes[index])
        bad += _contains(unsafe, hashes[index])
    sums = np.zeros(words + 1, dtype=np.uint64)
    lengths = np.zeros(words + 1, dtype=np.int64)
    for index in range(words):
        sums[index + 1] = sums[index] * _BASE + joined[index]
        lengths[index + 1] = lengths[index] + letters[index]
    clock[0] += np.uint32(1)
    lines = _lines(codes, classes, keys, stamps, clock[0], len(keys) - 1)
    power = _BASE
    total = max(1, lengths[words])
    top, duplicate = np.zeros(3), np.zeros(6)
    for size in range(2, 11):
        power *= _BASE
        clock[0] += np.uint32(1)
        if size <= 4:
            found = _top_letters(sums, power, lengths, size, keys, stamps, counts, firsts, clock[0], mask)
            if found >= 0:
                top[size - 2] = found / total
        else:
            found = _repeated_letters(sums, power, lengths, size, keys, stamps, clock[0], mask)
            if found >= 0:
                duplicate[size - 5] = found / total
        if found < 0:  # where no n-gram comes twice, no longer one does
            break
    first = (len(codes), words, lengths[words], int(alphabetic.sum()), stopping, bad)
    return (
        first + lines,
        (top[0], top[1], top[2]),
        (duplicate[0], duplicate[1], duplicate[2], duplicate[3], duplicate[4], duplicate[5]),
    )
