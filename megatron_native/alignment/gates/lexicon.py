"""Words and phrases that gates know: `lexicons/*.yaml` as tables of hashes and as compiled patterns."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numba
import numpy as np
import yaml
from numpy.typing import NDArray

from megatron_native.alignment.gates.alignment import PREFIXES, SUFFIXES, Text, _is_affix
from megatron_native.corpus.folding import fold, fold_character, mix
from megatron_native.corpus.languages import dialect_markers

UNKNOWN, GRAMMAR, STOCK, NAME, NUMBER, DIALECT = range(6)
"""What a word is known as. A name goes before the common word that is spelt like it, a number word before both."""
_SEED = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
_LEAST_STEM = 3
_TA, _HA = np.uint32(ord("ت")), np.uint32(ord("ه"))
_NUMBER_WORDS = {
    2: "اثنان اثنين اثنتان اثنتين", 3: "ثلاث ثلاثة", 4: "أربع أربعة", 5: "خمسة", 6: "ست ستة", 7: "سبع سبعة",
    8: "ثماني ثمانية ثمان", 9: "تسع تسعة", 10: "عشر عشرة", 11: "أحدعشر", 20: "عشرون عشرين", 30: "ثلاثون ثلاثين",
    40: "أربعون أربعين", 50: "خمسون خمسين", 60: "ستون ستين", 70: "سبعون سبعين", 80: "ثمانون ثمانين",
    90: "تسعون تسعين", 100: "مئة مائة مئات", 200: "مئتان مئتين مائتان مائتين مئتا مئتي", 300: "ثلاثمئة ثلاثمائة",
    400: "أربعمئة أربعمائة", 500: "خمسمئة خمسمائة", 600: "ستمئة ستمائة", 700: "سبعمئة سبعمائة", 800: "ثمانمئة ثمانمائة",
    900: "تسعمئة تسعمائة", 1000: "ألف آلاف ألفا", 2000: "ألفان ألفين ألفي", 10**6: "مليون ملايين مليونا",
    2 * 10**6: "مليونان مليونين مليوني", 10**9: "مليار مليارات مليارا بليون", -2: "نصف", -3: "ثلث ثلثا ثلثي ثلثين ثلثان",
    -4: "أرباع", 12: "دزينة",
}  # fmt: skip
_ORDINALS = {
    3: "ثالث", 4: "رابع", 5: "خامس", 6: "سادس", 7: "سابع", 8: "ثامن", 9: "تاسع", 10: "عاشر",
}  # fmt: skip


class Table(NamedTuple):
    """Hashes uint64 [words], sorted, and a number for each, int64 [words]."""

    hashes: NDArray[np.uint64]
    values: NDArray[np.int64]


def _raw(name: str) -> dict[str, Any]:
    folder = resources.files("megatron_native.alignment.gates")
    return dict(yaml.safe_load(folder.joinpath(f"lexicons/{name}.yaml").read_text(encoding="utf-8")))


@numba.njit(cache=True, nogil=True)
def _hash(letters: Any, begin: int, end: int) -> Any:
    state = _SEED
    for place in range(begin, end):
        state = (state ^ np.uint64(letters[place])) * _PRIME
    return mix(state)


@numba.njit(cache=True, nogil=True)
def _hash_but_last(letters: Any, begin: int, end: int, last: Any) -> Any:
    state = _SEED
    for place in range(begin, end - 1):
        state = (state ^ np.uint64(letters[place])) * _PRIME
    return mix((state ^ np.uint64(last)) * _PRIME)


def _hash_of(word: str) -> int:
    letters = np.array([ord(letter) for letter in fold(word).replace(" ", "")], dtype=np.uint32)
    return int(_hash(letters, 0, len(letters)))


def _table(values: dict[int, int]) -> Table:
    hashes = np.array(sorted(values), dtype=np.uint64)
    return Table(hashes, np.array([values[int(key)] for key in hashes], dtype=np.int64))


@cache
def common_words() -> Table:
    """Grammar and stock, verbs in all four heads."""
    values: dict[int, int] = {}
    for kind, name in ((STOCK, "stock"), (GRAMMAR, "grammar")):
        for word in _raw("common")[name].split():
            forms = [word]
            if kind == STOCK and word.startswith("ي") and len(word) > 2:
                forms += [head + word[1:] for head in "تنأ"]
            values |= {_hash_of(form): kind for form in forms}
    return _table(values)


@cache
def names() -> Table:
    """Names of people and places; those of peoples with and without article and endings."""
    raw = _raw("names")
    return _table({_hash_of(word): NAME for group in raw.values() for word in group.split()})


@cache
def number_words() -> Table:
    """Number words and what they say; a fraction 1/n is −n."""
    values: dict[int, int] = {}
    for table, ends in ((_ORDINALS, ("", "ة")), (_NUMBER_WORDS, ("",))):
        for value, words in table.items():
            for word in words.split():
                for article in ("", "ال") if value != 2 else ("",):  # الاثنين is Monday
                    for head in ("", "و", "ب", "ف", "ل", "ك"):
                        for end in ends:
                            values[_hash_of(head + article + word + end)] = value
                if len(word) > 3:
                    values[_hash_of("لل" + word)] = value
    return _table(values)


@cache
def dialect_words() -> Table:
    """Markers of dialects and their worth."""
    return _table({_hash_of(word): worth for word, (_, worth) in dialect_markers().items() if worth > 0})


@numba.njit(cache=True, nogil=True)
def _find(hashes: Any, value: Any) -> int:
    place = np.searchsorted(hashes, value)
    return int(place) if place < len(hashes) and hashes[place] == value else -1


@numba.njit(cache=True, nogil=True)
def _stem_kind(
    letters: Any, begin: int, end: int, hashes: Any, kinds: Any, pre: Any, pre_at: Any, suf: Any, suf_at: Any, most: int
) -> int:
    """The kind of the word under a prefix of `most` letters at most and a suffix, the whole word first; −1: none."""
    found = _find(hashes, _hash(letters, begin, end))
    if found >= 0:
        return int(kinds[found])
    best = -1
    for head in range(0, min(most + 1, end - begin - 1)):
        if not _is_affix(letters, begin, begin + head, pre, pre_at):
            continue
        for tail in range(0, min(5, end - begin - head - 1)):
            stem = end - begin - head - tail
            if head + tail == 0 or stem < 2 or (stem < _LEAST_STEM and tail):
                continue
            if not _is_affix(letters, end - tail, end, suf, suf_at):
                continue
            found = _find(hashes, _hash(letters, begin + head, end - tail))
            if found < 0 and tail and letters[end - tail - 1] == _TA:  # فائدته is of فائدة
                state = _hash_but_last(letters, begin + head, end - tail, _HA)
                found = _find(hashes, state)
            if found >= 0:
                kind = int(kinds[found])
                if kind == GRAMMAR and tail and stem < 4:
                    kind = STOCK
                if best < 0 or kind < best:
                    best = kind
    return best


@numba.njit(cache=True, nogil=True)
def _kinds(
    letters: Any, starts: Any, places: Any, common: Any, common_kinds: Any, names: Any, numbers: Any, dialects: Any,
    pre: Any, pre_at: Any, suf: Any, suf_at: Any,
) -> Any:  # fmt: skip
    out = np.zeros(len(places), dtype=np.uint8)
    for index in range(len(places)):
        begin, end = starts[places[index]], starts[places[index] + 1]
        value = _hash(letters, begin, end)
        if _find(numbers, value) >= 0:
            out[index] = NUMBER
            continue
        named = _find(names, value) >= 0
        if not named:  # وجده is of وجد before it is جدة with a و
            kind = _stem_kind(letters, begin, end, common, common_kinds, pre, pre_at, suf, suf_at, 0)
            if kind > 0:
                out[index] = kind
                continue
        for head in range(1, min(3, end - begin - 2)):
            if not named and _is_affix(letters, begin, begin + head, pre, pre_at):
                named = _find(names, _hash(letters, begin + head, end)) >= 0
        if named:
            out[index] = NAME
            continue
        kind = _stem_kind(letters, begin, end, common, common_kinds, pre, pre_at, suf, suf_at, 3)
        if kind < 0 and _find(dialects, value) >= 0:
            kind = DIALECT
        out[index] = kind if kind > 0 else UNKNOWN
    return out


def kinds_of(text: Text, places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """What the words at `places` are known as, uint8 [places]."""
    common = common_words()
    return np.asarray(
        _kinds(
            text.letters, text.starts, places, common.hashes, common.values, names().hashes, number_words().hashes,
            dialect_words().hashes, *PREFIXES, *SUFFIXES,
        )
    )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _values(words: Any, hashes: Any, values: Any) -> Any:
    out = np.zeros(len(words), dtype=np.int64)
    for index in range(len(words)):
        found = _find(hashes, words[index])
        if found >= 0:
            out[index] = values[found]
    return out


def values_of(hashes: NDArray[np.uint64], table: Table) -> NDArray[np.int64]:
    """The table's number for every word, int64 [words]; 0 where it has none."""
    return np.asarray(_values(hashes, table.hashes, table.values))


@cache
def phrases(name: str) -> re.Pattern[str]:
    """The patterns of a section of `phrases.yaml` as one, for the matching view."""
    written = "|".join(f"(?:{pattern})" for pattern in _raw("phrases")[name])
    return re.compile(rf"(?<!\S)[وف]?(?:{folded_pattern(written)})(?!\S)")


def folded_pattern(written: str) -> str:
    """A pattern's Arabic letters as the matching view has them."""
    return "".join(fold_character(c) if "\u0600" <= c <= "\u06ff" and c not in "؟،؛" else c for c in written)
