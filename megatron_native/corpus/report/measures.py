"""What is measured of documents in one pass: lengths, a sample chosen by hash, the writing of Arabic."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_native.corpus.folding import code_points
from megatron_native.corpus.report.figures import Fertility, Lengths, Script

T = TypeVar("T")
_FINE = 128
"""Bins a decade of a histogram as it is kept: 1.8 % wide."""
_SHOWN = 8
_DECADES = 12
VOCALISATION = {
    "none": "no marks",
    "some": "marks on fewer than 1 in 10 letters",
    "partly": "1 in 10 to 4 in 10",
    "fully": "4 in 10 or more",
}
"""Bands of vocalisation: marks for each Arabic letter."""
DIGITS = {"western": "4", "arabic-indic": "٤", "extended": "۴"}
"""Systems of digits, each with its four; the extended ones are of Persian and Urdu."""
_LETTER, _MARK, _TATWEEL, _FORM, _WESTERN, _INDIC, _EXTENDED = range(1, 8)


class Reservoir(Generic[T]):
    """At most `size` items of a stream, those with the least hashes of their ids: the same ones in any order of reading."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[int, int, T]] = []
        self.offered = 0

    def offer(self, identifier: str, make: Callable[..., T], *arguments: Any) -> None:
        """Consider an item; `make(*arguments)` is asked for it only if it is taken."""
        self.offered += 1
        if self._size == 0:
            return
        key = (-xxhash.xxh3_64_intdigest(identifier.encode("utf-8", "surrogatepass")), -self.offered)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, (*key, make(*arguments)))
        elif key > self._heap[0][:2]:
            heapq.heapreplace(self._heap, (*key, make(*arguments)))

    def __iter__(self) -> Iterator[T]:
        return (item for _, _, item in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1])))


class LengthHistogram:
    """Whole numbers of 0 and more, counted in bins of 1.8 %."""

    def __init__(self) -> None:
        self._bins: NDArray[np.int64] = np.zeros(_DECADES * _FINE + 1, dtype=np.int64)
        self._documents = self._total = self._most = 0
        self._least: int | None = None

    def add(self, value: int) -> None:
        """Count one value."""
        place = 0 if value < 1 else min(1 + int(math.log10(value) * _FINE + 1e-9), _DECADES * _FINE)
        self._bins[place] += 1
        self._documents += 1
        self._total += value
        self._most = max(self._most, value)
        self._least = value if self._least is None else min(self._least, value)

    def lengths(self) -> Lengths:
        """Sums, quantiles and bins of an eighth of a decade (empty ones at the ends left out)."""
        first = int(self._bins[0])
        wide = self._bins[1:].reshape(-1, _FINE // _SHOWN).sum(axis=1)
        filled = np.flatnonzero(wide)
        bins = [(0.0, 1.0, first)] if first else []
        if len(filled):
            bins += [
                (10 ** (n / _SHOWN), 10 ** ((n + 1) / _SHOWN), int(wide[n])) for n in range(filled[0], filled[-1] + 1)
            ]
        return Lengths(
            self._documents,
            self._total,
            self._least or 0,
            self._quantile(0.5),
            self._quantile(0.1),
            self._quantile(0.9),
            self._most,
            bins,
        )

    def _quantile(self, share: float) -> float:
        if not self._documents:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self._bins), max(1, math.ceil(share * self._documents))))
        middle = 0.0 if place == 0 else float(round(10 ** ((place - 0.5) / _FINE)))
        return min(max(middle, float(self._least or 0)), float(self._most))


@cache
def _classes() -> NDArray[np.uint8]:
    import unicodedata

    table = np.zeros(0x10000, dtype=np.uint8)
    for code in (*range(0x0600, 0x0700), *range(0x0750, 0x0780), *range(0x0870, 0x0900)):
        category = unicodedata.category(chr(code))
        if category == "Lo":
            table[code] = _LETTER
        elif 0x064B <= code <= 0x0652 or code == 0x0670:
            table[code] = _MARK
    table[0x0640] = _TATWEEL
    table[0xFB50:0xFDD0] = table[0xFE70:0xFEFD] = _FORM
    table[0xFDF0:0xFDFE] = 0  # ligatures that are words, such as ﷺ, are meant
    table[[0xFD3E, 0xFD3F]] = 0
    for first, name in ((0x30, _WESTERN), (0x660, _INDIC), (0x6F0, _EXTENDED)):
        table[first : first + 10] = name
    return table


def vocalisation_of(letters: int, marks: int) -> str:
    """The band of `VOCALISATION`."""
    if marks == 0 or letters == 0:
        return "none"
    share = marks / letters
    return "some" if share < 0.1 else "partly" if share < 0.4 else "fully"


def measure_script(texts: Sequence[str]) -> tuple[Script, list[str]]:
    """What the writing of some texts is like, and the band of vocalisation of each."""
    found = Script(len(texts), vocalisation=dict.fromkeys(VOCALISATION, 0))
    digits: Counter[str] = Counter()
    users: Counter[str] = Counter()
    bands = []
    for text in texts:
        codes = code_points(text)
        counts = np.bincount(_classes()[codes[codes < 0x10000]], minlength=8).tolist()
        found.letters += counts[_LETTER]
        found.marks += counts[_MARK]
        found.tatweel += counts[_TATWEEL]
        found.tatweel_documents += counts[_TATWEEL] > 0
        found.presentation_forms += counts[_FORM]
        found.presentation_documents += counts[_FORM] > 0
        bands.append(vocalisation_of(counts[_LETTER], counts[_MARK]))
        found.vocalisation[bands[-1]] += 1
        used = []
        for system, place in zip(DIGITS, (_WESTERN, _INDIC, _EXTENDED)):
            digits[system] += counts[place]
            if counts[place]:
                used.append(system)
        users[" + ".join(used) or "none"] += 1
    found.digits, found.digit_documents = dict(digits), dict(users.most_common())
    return found, bands


def measure_fertility(texts: Sequence[str], tokens: Sequence[int]) -> Fertility:
    """Sums over texts whose tokens were counted."""
    return Fertility(
        len(texts), sum(len(text.split()) for text in texts), sum(len(text.encode()) for text in texts), sum(tokens)
    )


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """How many ids each text becomes, without begin and end."""
    counts: list[int] = []
    for start in range(0, len(texts), 200):
        counts += [len(ids) for ids in tokenizer.encode_batch(texts[start : start + 200])]
    return counts
