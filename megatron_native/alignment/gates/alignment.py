"""Two texts word by word: which words of the rewrite come from where in the origin, compiled.

Words are those of the matching view (`corpus/folding.py`), so marks, tatweel, hamza, ى/ي, ة/ه and the digits' system make
no difference. Equal words are aligned by the longest common subsequence; what is left over is compared by its letters:
the same word with other affixes, and words that were parted or joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from megatron_native.corpus.folding import TABLE_SIZE, WordFolder, code_points, fold_tables

NO_SOURCE, ALIGNED, ELSEWHERE, RELATED, PARTED, JOINED = range(6)
"""What a word has on the other side: nothing; the same word in its place; elsewhere; with other affixes; parted; joined."""
_MOST_CELLS = 1 << 22
"""Cells of the table of the longest common subsequence; longer texts are aligned by looking a window ahead."""
_WINDOW = 48
_MOST_SEARCHED = 400
"""Words without a partner that are looked for in the whole other text: a bound on the work on very long texts."""
_SPACE = 0x20


@dataclass(frozen=True)
class Text:
    """A text's words.

    Attributes:
        text: the text.
        codes: uint32 [characters].
        hashes: uint64 [words] of the matching view.
        begins, ends: int32 [words], places in the text.
        letters: uint32 [letters], all words' folded letters one after another.
        starts: int32 [words + 1]: word i has `letters[starts[i] : starts[i + 1]]`.
    """

    text: str
    codes: NDArray[np.uint32]
    hashes: NDArray[np.uint64]
    begins: NDArray[np.int32]
    ends: NDArray[np.int32]
    letters: NDArray[np.uint32]
    starts: NDArray[np.int32]

    def word(self, place: int) -> str:
        """A word as it is written."""
        return self.text[self.begins[place] : self.ends[place]]

    def folded(self, place: int) -> str:
        """A word in the matching view."""
        return self._folded[place]

    def phrase(self, first: int, last: int) -> str:
        """Words in the matching view, from the word `first` to before the word `last`, one space apart."""
        return " ".join(self._folded[first:last])

    @cached_property
    def _folded(self) -> list[str]:
        letters, starts = self.letters.tobytes().decode("utf-32-le"), self.starts.tolist()
        return [letters[begin:end] for begin, end in pairwise(starts)]

    @cached_property
    def numeric(self) -> NDArray[np.bool_]:
        """Bool [words]: words that have a digit."""
        digits = (self.letters >= 0x30) & (self.letters <= 0x39)
        if not digits.any():
            return np.zeros(len(self.hashes), dtype=np.bool_)
        sums = np.concatenate(([0], np.cumsum(digits)))
        return sums[self.starts[1:]] > sums[self.starts[:-1]]

    def slice(self, first: int, last: int) -> str:
        """The text from the word `first` to before the word `last`."""
        return self.text[self.begins[first] : self.ends[last - 1]] if last > first else ""


class Aligned(NamedTuple):
    """The origin and the rewrite, aligned.

    Attributes:
        partner: int32 [rewritten words]: the origin's word aligned to it, or −1.
        source: uint8 [rewritten words]: `ALIGNED` … `NO_SOURCE`.
        kept: uint8 [origin words]: the same, seen from the origin.
        nearest: int32 [rewritten words]: of a word without source, the origin's word of its gap with the fewest edits
            between them, or −1 where the gap has none.
        edits: int32 [rewritten words]: those edits (a swap of neighbours is one); −1 where there is no nearest.
        gap_begins, gap_ends: int32 [rewritten words]: the words of the origin that stand between the partners around it.
    """

    partner: NDArray[np.int32]
    source: NDArray[np.uint8]
    kept: NDArray[np.uint8]
    nearest: NDArray[np.int32]
    edits: NDArray[np.int32]
    gap_begins: NDArray[np.int32]
    gap_ends: NDArray[np.int32]


class TextReader:
    """Makes `Text` of one string after another."""

    def __init__(self) -> None:
        self._folder = WordFolder()
        self._starts, self._flat = fold_tables()

    def read(self, text: str) -> Text:
        """The words of a text."""
        codes = code_points(text)
        words = self._folder.words_of_codes(codes)
        hashes, begins, ends = words.hashes.copy(), words.begins.copy(), words.ends.copy()
        letters, starts = _letters(codes, begins, ends, self._starts, self._flat)
        return Text(text, codes, hashes, begins, ends, letters, starts)


@numba.njit(cache=True, nogil=True)
def _letters(codes: Any, begins: Any, ends: Any, table: Any, flat: Any) -> Any:
    total = 0
    for word in range(len(begins)):
        for place in range(begins[word], ends[word]):
            code = codes[place]
            total += table[code + 1] - table[code] if code < TABLE_SIZE else 1
    letters = np.empty(total, dtype=np.uint32)
    starts = np.empty(len(begins) + 1, dtype=np.int32)
    count = 0
    for word in range(len(begins)):
        starts[word] = count
        for place in range(begins[word], ends[word]):
            code = codes[place]
            if code >= TABLE_SIZE:
                letters[count] = code
                count += 1
                continue
            for index in range(table[code], table[code + 1]):
                if flat[index] != _SPACE:
                    letters[count] = flat[index]
                    count += 1
    starts[len(begins)] = count
    return letters[:count], starts


def _affixes(words: str) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """Affixes as one array of letters and where each begins, longest first, the empty one last."""
    entries = sorted(words.split(), key=len, reverse=True) + [""]
    starts = np.cumsum([0, *map(len, entries)]).astype(np.int32)
    return np.array([ord(letter) for letter in "".join(entries)], dtype=np.uint32), starts


PREFIXES = _affixes(
    "وال فال بال كال ولل فلل ال لل وب ول وك وس فس فب فل ف و ب ل ك س ي ت ن سي ست سن وي وت ون في فت فن وسي وست فسي فست لي لت"
)
SUFFIXES = _affixes(
    "ه ها هم هن هما ك كم نا ني ي ات اته اتها اتهم ون ين ان ا تا تان تين ته تها تهم تهما تنا تي ت وا وه وها يه يها يهم اها ائه "
    "اءه يين يون ته ونه ونها ينه تم يا"
)
VERB_HEADS = np.array([ord(letter) for letter in "يتنا"], dtype=np.uint32)


@numba.njit(cache=True, nogil=True, inline="always")
def _is_affix(letters: Any, begin: int, end: int, affixes: Any, starts: Any) -> bool:
    for entry in range(len(starts) - 1):
        size = starts[entry + 1] - starts[entry]
        if size != end - begin:
            continue
        same = True
        for index in range(size):
            if letters[begin + index] != affixes[starts[entry] + index]:
                same = False
                break
        if same:
            return True
    return False


@numba.njit(cache=True, nogil=True)
def related(a: Any, a0: int, a1: int, b: Any, b0: int, b1: int, pre: Any, pre_at: Any, suf: Any, suf_at: Any) -> bool:
    """Whether two words have a stem of three letters or more and else affixes alone."""
    if a1 - a0 < 3 or b1 - b0 < 3:
        return False
    most = 4
    for skipped in range(min(most, a1 - a0 - 2)):
        if not _is_affix(a, a0, a0 + skipped, pre, pre_at):
            continue
        for other in range(min(most, b1 - b0 - 2)):
            if a[a0 + skipped] != b[b0 + other] or not _is_affix(b, b0, b0 + other, pre, pre_at):
                continue
            size = 0
            while (
                a0 + skipped + size < a1 and b0 + other + size < b1 and a[a0 + skipped + size] == b[b0 + other + size]
            ):
                size += 1
            # the common part may reach into the suffixes, so that a shorter stem is tried too
            for stem in range(size, max(2, size - 3), -1):
                if _is_affix(a, a0 + skipped + stem, a1, suf, suf_at) and _is_affix(
                    b, b0 + other + stem, b1, suf, suf_at
                ):
                    return True
    return False


@numba.njit(cache=True, nogil=True)
def _outlines(letters: Any, starts: Any) -> Any:
    """A mask of each word's runs of three letters near its beginning, uint64 [words]: related words share a bit."""
    out = np.zeros(len(starts) - 1, dtype=np.uint64)
    for word in range(len(out)):
        for place in range(starts[word], min(starts[word] + 4, starts[word + 1] - 2)):
            value = (np.uint64(letters[place]) * np.uint64(961) + np.uint64(letters[place + 1])) * np.uint64(961)
            value = (value + np.uint64(letters[place + 2])) * np.uint64(0x9E3779B97F4A7C15)
            out[word] |= np.uint64(1) << (value >> np.uint64(58))
    return out


@numba.njit(cache=True, nogil=True)
def edits_between(a: Any, a0: int, a1: int, b: Any, b0: int, b1: int) -> int:
    """Insertions, deletions, replacements and swaps of neighbours between two words (restricted Damerau distance)."""
    n, m = a1 - a0, b1 - b0
    before = np.empty(m + 1, dtype=np.int32)
    last = np.empty(m + 1, dtype=np.int32)
    row = np.empty(m + 1, dtype=np.int32)
    for j in range(m + 1):
        last[j] = j
        before[j] = 0
    for i in range(1, n + 1):
        row[0] = i
        for j in range(1, m + 1):
            cost = 0 if a[a0 + i - 1] == b[b0 + j - 1] else 1
            value = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + cost)
            if i > 1 and j > 1 and a[a0 + i - 1] == b[b0 + j - 2] and a[a0 + i - 2] == b[b0 + j - 1]:
                value = min(value, before[j - 2] + 1)
            row[j] = value
        before, last, row = last, row, before
    return int(last[m])


@numba.njit(cache=True, nogil=True)
def _subsequence(a: Any, b: Any, first: int, a_last: int, b_last: int, partner: Any) -> None:
    """Fill `partner` with a longest common subsequence of `a[first:a_last]` and `b[first:b_last]`."""
    n, m = a_last - first, b_last - first
    table = np.zeros((n + 1, m + 1), dtype=np.int32)
    for i in range(n - 1, -1, -1):
        word = a[first + i]
        for j in range(m - 1, -1, -1):
            if word == b[first + j]:
                # two more than what follows, three where the next words are equal too: runs before single words
                run = 1 if i + 1 < n and j + 1 < m and a[first + i + 1] == b[first + j + 1] else 0
                value = table[i + 1, j + 1] + 2 + run
            else:
                value = 0
            table[i, j] = max(value, table[i + 1, j], table[i, j + 1])
    i = j = 0
    while i < n and j < m:
        if table[i, j] == table[i + 1, j]:
            i += 1
        elif table[i, j] == table[i, j + 1]:
            j += 1
        else:
            partner[first + j] = first + i
            i += 1
            j += 1


@numba.njit(cache=True, nogil=True)
def _look_ahead(a: Any, b: Any, first: int, a_last: int, b_last: int, partner: Any) -> None:
    """As `_subsequence`, for texts that are too long for its table: the nearest place where two words agree again."""
    i = j = first
    while i < a_last and j < b_last:
        if a[i] == b[j]:
            partner[j] = i
            i += 1
            j += 1
            continue
        found = False
        for distance in range(1, _WINDOW):
            for step in range(distance + 1):
                x, y = i + step, j + distance - step
                if x + 1 < a_last and y + 1 < b_last and a[x] == b[y] and a[x + 1] == b[y + 1]:
                    i, j, found = x, y, True
                    break
            if found:
                break
        if not found:
            i += 1
            j += 1


@numba.njit(cache=True, nogil=True)
def _has(sorted_hashes: Any, value: Any) -> bool:
    place = np.searchsorted(sorted_hashes, value)
    return bool(place < len(sorted_hashes) and sorted_hashes[place] == value)


@numba.njit(cache=True, nogil=True)
def _same_letters(a: Any, a0: int, a1: int, b: Any, b0: int, b1: int) -> bool:
    if a1 - a0 != b1 - b0:
        return False
    for index in range(a1 - a0):  # noqa: SIM110 (compiled)
        if a[a0 + index] != b[b0 + index]:
            return False
    return True


@numba.njit(cache=True, nogil=True)
def _parted(
    one: Any, one_at: Any, word: int, many: Any, many_at: Any, begin: int, end: int, marks: Any, mark: int, least: int
) -> bool:
    """Whether a word is two or three neighbours of the other text, run together; these are marked then."""
    w0, w1 = one_at[word], one_at[word + 1]
    for first in range(begin, end):
        stop = first + 2
        while stop <= min(end, first + 3):
            if _same_letters(one, w0, w1, many, many_at[first], many_at[stop]):
                if least and many_at[first + 1] - many_at[first] > least:
                    return False
                for place in range(first, stop):
                    marks[place] = mark
                return True
            stop += 1
    return False


@numba.njit(cache=True, nogil=True)
def _related_between(
    begin: int, end: int, kept: Any, j: int, a_outlines: Any, b_outlines: Any, a: Any, a_at: Any, b: Any, b_at: Any,
    pre: Any, pre_at: Any, suf: Any, suf_at: Any,
) -> int:  # fmt: skip
    """The first word of a's [begin, end) that isn't aligned and is b's word j with other affixes, or -1."""
    for i in range(begin, end):
        if (
            kept[i] != ALIGNED
            and a_outlines[i] & b_outlines[j]
            and related(a, a_at[i], a_at[i + 1], b, b_at[j], b_at[j + 1], pre, pre_at, suf, suf_at)
        ):
            return i
    return -1


@numba.njit(cache=True, nogil=True)
def _related_around(
    place: int, n: int, j: int, a_outlines: Any, b_outlines: Any, a: Any, a_at: Any, b: Any, b_at: Any,
    pre: Any, pre_at: Any, suf: Any, suf_at: Any,
) -> int:  # fmt: skip
    """The word of a's n that is nearest to a place and is b's word j with other affixes, or -1."""
    for distance in range(min(n, 2048)):
        for i in (place + distance, place - 1 - distance):
            if (
                0 <= i < n
                and a_outlines[i] & b_outlines[j]
                and related(a, a_at[i], a_at[i + 1], b, b_at[j], b_at[j + 1], pre, pre_at, suf, suf_at)
            ):
                return i
    return -1


@numba.njit(cache=True, nogil=True)
def _align(
    a: Any, a_letters: Any, a_at: Any, b: Any, b_letters: Any, b_at: Any, pre: Any, pre_at: Any, suf: Any, suf_at: Any
) -> Any:
    n, m = len(a), len(b)
    partner = np.full(m, -1, dtype=np.int32)
    first = 0
    while first < n and first < m and a[first] == b[first]:
        partner[first] = first
        first += 1
    a_last, b_last = n, m
    while a_last > first and b_last > first and a[a_last - 1] == b[b_last - 1]:
        a_last -= 1
        b_last -= 1
        partner[b_last] = a_last
    if a_last > first and b_last > first:
        if (a_last - first) * (b_last - first) <= _MOST_CELLS:
            _subsequence(a, b, first, a_last, b_last, partner)
        else:
            _look_ahead(a, b, first, a_last, b_last, partner)
    source = np.zeros(m, dtype=np.uint8)
    kept = np.zeros(n, dtype=np.uint8)
    nearest = np.full(m, -1, dtype=np.int32)
    edits = np.full(m, -1, dtype=np.int32)
    gap_begins = np.zeros(m, dtype=np.int32)
    gap_ends = np.full(m, n, dtype=np.int32)
    for j in range(m):
        if partner[j] >= 0:
            source[j] = ALIGNED
            kept[partner[j]] = ALIGNED
    a_sorted, b_sorted = np.sort(a), np.sort(b)
    for i in range(n):
        if kept[i] == NO_SOURCE and _has(b_sorted, a[i]):
            kept[i] = ELSEWHERE
    at = 0
    for j in range(m):
        gap_begins[j] = at
        if partner[j] >= 0:
            at = partner[j] + 1
    at = n
    for j in range(m - 1, -1, -1):
        gap_ends[j] = at
        if partner[j] >= 0:
            at = partner[j]
    for j in range(m):
        if source[j] == NO_SOURCE and _has(a_sorted, b[j]):
            source[j] = ELSEWHERE
    searched = 0
    a_outlines, b_outlines = _outlines(a_letters, a_at), _outlines(b_letters, b_at)
    for j in range(m):  # words parted and joined, inside a gap
        if partner[j] >= 0 or source[j] != NO_SOURCE:
            continue
        begin, end = gap_begins[j], gap_ends[j]
        if _parted(b_letters, b_at, j, a_letters, a_at, begin, min(end, begin + 64), kept, JOINED, 3):
            source[j] = JOINED
    b_begin = 0
    for j in range(m + 1):
        if j < m and partner[j] < 0:
            continue
        if j > b_begin:
            begin, end = gap_begins[b_begin], gap_ends[b_begin]
            for i in range(begin, min(end, begin + 64)):
                if kept[i] == NO_SOURCE and _parted(
                    a_letters, a_at, i, b_letters, b_at, b_begin, min(j, b_begin + 64), source, PARTED, 0
                ):
                    kept[i] = PARTED
        b_begin = j + 1
    for j in range(m):
        if source[j] != NO_SOURCE:
            continue
        i = _related_between(
            gap_begins[j], min(gap_ends[j], gap_begins[j] + 256), kept, j, a_outlines, b_outlines, a_letters, a_at,
            b_letters, b_at, pre, pre_at, suf, suf_at,
        )  # fmt: skip
        if i < 0 and searched < _MOST_SEARCHED:
            searched += 1
            i = _related_around(
                gap_begins[j], n, j, a_outlines, b_outlines, a_letters, a_at, b_letters, b_at, pre, pre_at, suf, suf_at
            )
        if i >= 0:
            source[j] = RELATED
            if kept[i] == NO_SOURCE:
                kept[i] = RELATED
    for i in range(n):  # a word that is lost here may be there with other affixes
        if kept[i] != NO_SOURCE:
            continue
        if searched >= 2 * _MOST_SEARCHED:
            break
        searched += 1
        for j in range(min(m, 4096)):
            if a_outlines[i] & b_outlines[j] and related(
                a_letters, a_at[i], a_at[i + 1], b_letters, b_at[j], b_at[j + 1], pre, pre_at, suf, suf_at
            ):
                kept[i] = RELATED
                break
    for j in range(m):
        if source[j] != NO_SOURCE:
            continue
        begin, end = gap_begins[j], gap_ends[j]
        least = 1 << 30
        for i in range(begin, min(end, begin + 64)):
            if kept[i] == ALIGNED:
                continue
            found = edits_between(a_letters, a_at[i], a_at[i + 1], b_letters, b_at[j], b_at[j + 1])
            if found < least:
                least, nearest[j] = found, i
        if nearest[j] >= 0:
            edits[j] = least
    return partner, source, kept, nearest, edits, gap_begins, gap_ends


def align(origin: Text, rewritten: Text) -> Aligned:
    """The words of the rewrite and where they come from."""
    return Aligned(
        *_align(
            origin.hashes, origin.letters, origin.starts, rewritten.hashes, rewritten.letters, rewritten.starts,
            *PREFIXES, *SUFFIXES,
        )
    )  # fmt: skip
