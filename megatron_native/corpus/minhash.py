"""MinHash signatures of Arabic text: near copies of documents, found without comparing every pair.

A document is the set of its shingles: runs of words of the matching view, so that two spellings of a text are one set.
For every permutation the smallest value over the set is kept; the share of equal minima estimates the Jaccard similarity
(Broder, 1997). Documents that agree in a whole band of minima are candidates, and a candidate is verified on its sketch,
the lowest byte of every minimum (b-bit minwise hashing, Li and König, 2010). With b bands of r rows a pair of similarity
s becomes a candidate with probability 1 − (1 − sʳ)ᵇ (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.4).

Reading and folding are one compiled loop over the characters, shingling and the minima one over the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_native.corpus.folding import WordFolder, mix
from megatron_native.errors import UserError

SEED = 0x6D6E
"""Of the permutations; signatures of another seed are no signatures of these."""
_NO_WORDS = b"\0"
"""Stands before the digested text of a document that folds to no word, so that signs alone never equal words."""
SKETCH_VALUES = 256


@dataclass(frozen=True)
class MinHashSettings:
    """Shape of the signatures and of the search."""

    shingle_words: int = 5
    bands: int = 14
    rows: int = 8
    threshold: float = 0.8
    """Estimated Jaccard similarity from which two documents are near copies."""

    @property
    def permutations(self) -> int:
        """Length of a signature."""
        return self.bands * self.rows

    def check(self) -> None:
        """Raise a UserError where a setting makes no sense."""
        for name in ("shingle_words", "bands", "rows"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: it must be 1 or more.")
        if not 0 < self.threshold <= 1:
            raise UserError(f"--threshold {self.threshold}: a Jaccard similarity lies above 0 and is 1 at most.")

    def candidate_probability(self, similarity: float) -> float:
        """Probability that a pair of this similarity is looked at."""
        return 1 - (1 - similarity**self.rows) ** self.bands

    def s_curve(self) -> list[tuple[float, float]]:
        """(similarity, probability of becoming a candidate) from 0.5 to 1."""
        return [(step / 20, self.candidate_probability(step / 20)) for step in range(10, 21)]


class Signed(NamedTuple):
    """The signature of a document.

    Attributes:
        digest: xxh3_128 of the matching view (its words' hashes); of a text without words, of the text itself.
        bands: uint64 [bands], equal where a whole band of minima is.
        sketch: uint8 [permutations].
        words: words of the matching view.
        empty: whether the text has nothing but white space.
    """

    digest: bytes
    bands: NDArray[np.uint64]
    sketch: NDArray[np.uint8]
    words: int
    empty: bool


class Signer:
    """Signs texts under fixed settings; equal everywhere, since the permutations are seeded."""

    def __init__(self, settings: MinHashSettings) -> None:
        self.settings = settings
        generator = np.random.default_rng(SEED)
        size = settings.permutations
        self._first = generator.integers(0, 1 << 31, size, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        self._second = generator.integers(0, 1 << 31, size, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        self._folder = WordFolder()

    def sign(self, text: str) -> Signed:
        """The signature of a text."""
        hashes = self._folder.words(text).hashes
        words = len(hashes)
        if words:
            digest = xxhash.xxh3_128_digest(hashes.tobytes())
        else:  # signs alone: two such texts are compared by the signs
            digest = xxhash.xxh3_128_digest(_NO_WORDS + text.strip().encode())
            hashes = np.frombuffer(digest[:8], dtype=np.uint64)
        minima = self.minima(hashes)
        bands, sketch = _bands_and_sketch(minima, self.settings.bands, self.settings.rows)
        return Signed(digest, bands, sketch, words, not text or text.isspace())

    def minima(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """uint32 [permutations] over the shingles of words with these hashes; fewer words than a shingle are one."""
        minima = np.full(self.settings.permutations, np.iinfo(np.uint32).max, dtype=np.uint32)
        _take_minima(hashes, min(self.settings.shingle_words, max(1, len(hashes))), self._first, self._second, minima)
        return minima


def similarity_of_sketches(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """The estimate of the Jaccard similarity: equal bytes, less those that are equal by chance."""
    chance = 1 / SKETCH_VALUES
    return max(0.0, (float((one == other).mean()) - chance) / (1 - chance))


@numba.njit(cache=True, nogil=True)
def _take_minima(hashes: Any, size: int, first: Any, second: Any, minima: Any) -> None:
    """Lower `minima` to those of all shingles of `size` words; a permutation is two multiplications of a 64-bit hash."""
    for start in range(len(hashes) - size + 1):
        shingle = hashes[start]
        for place in range(start + 1, start + size):
            shingle = mix(shingle * np.uint64(0x9E3779B97F4A7C15) + hashes[place])
        low, high = np.uint32(shingle & np.uint64(0xFFFFFFFF)), np.uint32(shingle >> np.uint64(32))
        for index in range(len(minima)):
            value = np.uint32(first[index] * low + second[index] * high)
            if value < minima[index]:
                minima[index] = value


@numba.njit(cache=True, nogil=True)
def _bands_and_sketch(minima: Any, bands: int, rows: int) -> Any:
    keys = np.empty(bands, dtype=np.uint64)
    sketch = np.empty(len(minima), dtype=np.uint8)
    for band in range(bands):
        state = np.uint64(band + 1)
        for row in range(rows):
            state = mix(state * np.uint64(0x9E3779B97F4A7C15) + np.uint64(minima[band * rows + row]))
        keys[band] = state
    for index in range(len(minima)):
        sketch[index] = mix(np.uint64(minima[index])) & np.uint64(0xFF)
    return keys, sketch
