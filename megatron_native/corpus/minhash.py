"""MinHash signatures and their bands: near copies of documents, found without comparing every pair.

A signature estimates the Jaccard similarity of two documents' shingles (word n-grams of the matching view): the share
of equal positions. Documents that agree in a whole band become candidates, and candidates are verified on the whole
signature. With b bands of r rows a pair of similarity s becomes a candidate with probability 1 − (1 − sʳ)ᵇ (Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_native.errors import UserError

_SEED = 0x6D6E


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


class MinHasher:
    """Signatures under fixed settings; equal everywhere, since the hash functions are seeded."""

    def __init__(self, settings: MinHashSettings) -> None:
        self.settings = settings
        generator = np.random.default_rng(_SEED)
        # Multiply-shift hashing (Dietzfelbinger et al., 1997): odd multipliers, the product's upper half.
        self._multipliers = generator.integers(0, 1 << 63, settings.permutations, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._offsets = generator.integers(0, 1 << 63, settings.permutations, dtype=np.uint64)

    def shingles(self, folded: str) -> NDArray[np.uint64]:
        """Hashes of the distinct shingles of a text in the matching view; a shorter text is one shingle as a whole."""
        words = folded.split()
        size = self.settings.shingle_words
        if len(words) <= size:
            return np.array([xxhash.xxh3_64_intdigest(folded.encode())], dtype=np.uint64)
        joined = (" ".join(words[start : start + size]) for start in range(len(words) - size + 1))
        return np.unique(np.fromiter((xxhash.xxh3_64_intdigest(shingle.encode()) for shingle in joined), dtype=np.uint64))

    def signature(self, folded: str) -> NDArray[np.uint32]:
        """uint32 [permutations] of a text in the matching view."""
        shingles = self.shingles(folded)
        result = np.full(self.settings.permutations, np.iinfo(np.uint32).max, dtype=np.uint32)
        for start in range(0, len(shingles), 2048):
            block = shingles[start : start + 2048]
            hashes = (block[:, None] * self._multipliers + self._offsets) >> np.uint64(32)
            np.minimum(result, hashes.min(axis=0).astype(np.uint32), out=result)
        return result


def near_copies(
    signatures: NDArray[np.uint32], settings: MinHashSettings
) -> Iterator[tuple[int, int, float]]:
    """Pairs (i, j, estimated similarity), i < j, at or above the threshold; [documents, permutations] in.

    In a band's bucket every document is compared with the bucket's first and with the one before it, so that a large
    bucket costs no more than its size; chains join through the components.
    """
    seen: set[tuple[int, int]] = set()
    for band in range(settings.bands):
        rows = np.ascontiguousarray(signatures[:, band * settings.rows : (band + 1) * settings.rows])
        keys = rows.view([("", rows.dtype)] * settings.rows).ravel()
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(keys) else np.array([], int)
        for start, stop in zip(starts, [*starts[1:], len(keys)]):
            bucket = order[start:stop]
            for place in range(1, len(bucket)):
                for other in {int(bucket[0]), int(bucket[place - 1])}:
                    pair = (other, int(bucket[place]))
                    if pair in seen:
                        continue
                    seen.add(pair)
                    similarity = float((signatures[pair[0]] == signatures[pair[1]]).mean())
                    if similarity >= settings.threshold:
                        yield (*pair, similarity)


class Components:
    """Union–find over document numbers."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        """The representative of an item's component: its smallest number."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, first: int, second: int) -> None:
        """Put two items into one component."""
        low, high = sorted((self.find(first), self.find(second)))
        self._parent[high] = low
