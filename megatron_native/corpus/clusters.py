"""Clusters of copies among any number of documents, in bounded memory: sort, verify, join, choose.

Documents are numbered over all parts. For every band, keys are sorted with their document numbers packed into the same
64 bits, so that a sort of plain integers brings documents that share the band together; keys that lose bits to the
number may meet by chance, which the verification on the sketches undoes. Where a band does not fit into memory, it is
gone through in ranges of keys. Inside a bucket every document is compared with the bucket's first and with the one
before it, so that a bucket costs no more than its size; chains join through the components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from megatron_native.corpus.minhash import SKETCH_VALUES
from megatron_native.corpus.signatures import SignaturePart

PAIR = np.dtype([("one", "<u4"), ("other", "<u4")])
"""Numbers of two documents, the smaller first; 4 billion documents are the most."""
_BYTES_A_KEY = 48
"""Memory that a key costs while its range is sorted: read, packed, filtered, copied by the sort and the pairs of it."""


def first_numbers(parts: Sequence[SignaturePart]) -> NDArray[np.int64]:
    """int64 [parts + 1]: the number of each part's first document, and the number of documents."""
    return np.concatenate([[0], np.cumsum([part.documents for part in parts])]).astype(np.int64)


def candidate_pairs(parts: Sequence[SignaturePart], column: int, memory_bytes: int) -> Iterator[NDArray[Any]]:
    """Pairs (`PAIR` arrays, a range of keys at a time) of documents that share a key of `column`.

    Args:
        parts: all documents' signatures.
        column: a band; −1 for the digests (then equal keys are equal documents, up to 64 of the digest's bits).
        memory_bytes: ranges are made so small that one takes no more.
    """
    firsts = first_numbers(parts)
    documents = int(firsts[-1])
    number_bits = max(1, int(documents - 1).bit_length()) if documents else 1
    ranges = max(1, -(-documents * _BYTES_A_KEY // memory_bytes))
    range_bits = (ranges - 1).bit_length()
    for index in range(1 << range_bits):
        packed = [
            _packed(part, column, int(first), number_bits, range_bits, index) for part, first in zip(parts, firsts[:-1])
        ]
        keys = np.concatenate(packed) if packed else np.empty(0, dtype=np.uint64)
        del packed
        keys.sort()
        pairs = _bucket_pairs(keys, np.uint64(number_bits))
        yield pairs.view(PAIR).reshape(-1)


def _packed(
    part: SignaturePart, column: int, first: int, number_bits: int, range_bits: int, index: int
) -> NDArray[np.uint64]:
    """Keys of a part that lie in a range, their leading bits (behind the range's) above the documents' numbers."""
    keys = part.band(column) if column >= 0 else part.digests()[:, 0]
    numbers = np.arange(first, first + part.documents, dtype=np.uint64)
    chosen = ~part.empty()
    if range_bits:
        chosen &= (keys >> np.uint64(64 - range_bits)) == np.uint64(index)
        keys = keys << np.uint64(range_bits)
    keys, numbers = keys[chosen], numbers[chosen]
    return (keys >> np.uint64(number_bits) << np.uint64(number_bits)) | numbers


@numba.njit(cache=True, nogil=True)
def _bucket_pairs(packed: Any, number_bits: Any) -> Any:
    """uint32 [2 × pairs] of sorted packed keys: each of a bucket with the bucket's first and with the one before it."""
    low = (np.uint64(1) << number_bits) - np.uint64(1)
    length = len(packed)
    count, start = 0, 0
    for place in range(1, length):
        if packed[place] >> number_bits == packed[place - 1] >> number_bits:
            count += 1 if place - start == 1 else 2
        else:
            start = place
    pairs = np.empty(2 * count, dtype=np.uint32)
    count, start = 0, 0
    for place in range(1, length):
        if packed[place] >> number_bits != packed[place - 1] >> number_bits:
            start = place
            continue
        pairs[count] = np.uint32(packed[start] & low)
        pairs[count + 1] = np.uint32(packed[place] & low)
        count += 2
        if place - start > 1:
            pairs[count] = np.uint32(packed[place - 1] & low)
            pairs[count + 1] = np.uint32(packed[place] & low)
            count += 2
    return pairs


class Sketches:
    """The sketches of all documents, looked at in sorted order so that the disk is read forwards; none is held."""

    def __init__(self, parts: Sequence[SignaturePart]) -> None:
        self._parts = list(parts)
        self._firsts = first_numbers(parts)
        self.permutations = parts[0].permutations if parts else 1

    def similarities(self, pairs: NDArray[Any], block: int = 1 << 16) -> NDArray[np.float32]:
        """float32 [pairs]: the estimates of pairs, best given sorted by their first document."""
        found = np.empty(len(pairs), dtype=np.float32)
        for start in range(0, len(pairs), block):
            chunk = pairs[start : start + block]
            found[start : start + block] = _estimates(self.rows(chunk["one"]), self.rows(chunk["other"]))
        return found

    def rows(self, numbers: NDArray[Any]) -> NDArray[np.uint8]:
        """uint8 [numbers, permutations]."""
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order].astype(np.int64)
        result = np.empty((len(numbers), self.permutations), dtype=np.uint8)
        bounds = np.searchsorted(ordered, self._firsts)
        for place, part in enumerate(self._parts):
            low, high = bounds[place], bounds[place + 1]
            if low < high:  # mapped for this look alone: pages of a map that stays would add up
                result[order[low:high]] = part.sketches()[ordered[low:high] - self._firsts[place]]
        return result


def _estimates(ours: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float32]:
    chance = 1 / SKETCH_VALUES
    equal = (ours == others).mean(axis=1, dtype=np.float32)
    return np.maximum(0, (equal - chance) / (1 - chance)).astype(np.float32)


def verified_pairs(
    parts: Sequence[SignaturePart], column: int, threshold: float, memory_bytes: int, output: Path
) -> int:
    """Write the pairs of a band whose sketches agree (of the digests: that are equal) to `output`; their number.

    The file is `PAIR` after `PAIR`, sorted inside a range of keys, written beside its place and renamed.
    """
    sketches = Sketches(parts)
    partial = output.with_name(output.name + ".partial")
    count = 0
    with open(partial, "wb") as file:
        for pairs in candidate_pairs(parts, column, memory_bytes):
            pairs = _sorted(pairs)
            good = _equal_digests(parts, pairs) if column < 0 else sketches.similarities(pairs) >= threshold
            pairs[good].tofile(file)
            count += int(good.sum())
    partial.replace(output)
    return count


def _sorted(pairs: NDArray[Any]) -> NDArray[Any]:
    """Pairs with the smaller number first, sorted, each once."""
    one = np.minimum(pairs["one"], pairs["other"]).astype(np.uint64)
    other = np.maximum(pairs["one"], pairs["other"]).astype(np.uint64)
    packed = np.unique(one << np.uint64(32) | other)
    result = np.empty(len(packed), dtype=PAIR)
    result["one"], result["other"] = packed >> np.uint64(32), packed & np.uint64(0xFFFFFFFF)
    return result


def _equal_digests(parts: Sequence[SignaturePart], pairs: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether all 128 bits of the digests agree."""
    firsts = first_numbers(parts)
    rows = {name: np.empty((len(pairs), 2), dtype=np.uint64) for name in ("one", "other")}
    for place, part in enumerate(parts):
        digests = None
        for name, found in rows.items():
            inside = (pairs[name] >= firsts[place]) & (pairs[name] < firsts[place + 1])
            if inside.any():
                digests = part.digests() if digests is None else digests
                found[inside] = digests[pairs[name][inside].astype(np.int64) - firsts[place]]
    return (rows["one"] == rows["other"]).all(axis=1)


def components(
    pair_files: Sequence[Path], documents: int, memory_bytes: int, among: NDArray[np.bool_] | None = None
) -> NDArray[np.uint32]:
    """uint32 [documents]: the smallest number of every document's component; `among` leaves out pairs of the others."""
    parent = np.arange(documents, dtype=np.uint32)
    block = max(1 << 16, min(memory_bytes // 4, 1 << 28) // PAIR.itemsize)
    for path in pair_files:
        size = path.stat().st_size // PAIR.itemsize
        for start in range(0, size, block):
            pairs = np.fromfile(path, dtype=PAIR, count=min(block, size - start), offset=start * PAIR.itemsize)
            if among is not None:
                pairs = pairs[among[pairs["one"]] & among[pairs["other"]]]
            _join(parent, np.ascontiguousarray(pairs["one"]), np.ascontiguousarray(pairs["other"]))
    _flatten(parent)
    return parent


@numba.njit(cache=True, nogil=True)
def _join(parent: Any, ones: Any, others: Any) -> None:
    """Union by the smaller number, with path halving."""
    for place in range(len(ones)):
        one, other = ones[place], others[place]
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        while parent[other] != other:
            parent[other] = parent[parent[other]]
            other = parent[other]
        if one < other:
            parent[other] = one
        elif other < one:
            parent[one] = other


@numba.njit(cache=True, nogil=True)
def _flatten(parent: Any) -> None:
    for item in range(len(parent)):  # a parent is never larger than its child, so it is a root already
        parent[item] = parent[parent[item]]


@numba.njit(cache=True, nogil=True)
def choose_keepers(roots: Any, ranks: Any) -> Any:
    """uint32 [documents]: of every document's component the one with the highest rank, the first of equals."""
    best = roots.copy()
    for item in range(len(roots)):
        root = roots[item]
        if ranks[item] > ranks[best[root]] or (ranks[item] == ranks[best[root]] and item < best[root]):
            best[root] = item
    keepers = np.empty_like(roots)
    for item in range(len(roots)):
        keepers[item] = best[roots[item]]
    return keepers
