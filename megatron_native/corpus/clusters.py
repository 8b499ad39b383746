"""Clusters of copies among any number of documents, in bounded memory: sort, verify, join, choose.

Documents are numbered over all parts. For every band, keys are sorted with their document numbers packed into the same
64 bits, so that a sort of plain integers brings documents that share the band together; keys that lose bits to the
number may meet by chance, which the verification on the sketches undoes. Where a band does not fit into memory, its keys
are dealt out to files by their leading bits first, each written and read once, and a file that is still too large is
dealt out again. Inside a bucket every document is compared with the bucket's first and with the one before it, so that a
bucket costs no more than its size, and one that memory can't hold is gone through in pieces; chains join through the
components.

Documents of earlier corpora have the first numbers and are never paired with each other: each of the others is compared
with the first few of them in the bucket and the last, besides.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from megatron_native.corpus.minhash import SKETCH_VALUES
from megatron_native.corpus.signatures import SignaturePart
from megatron_native.errors import UserError

PAIR = np.dtype([("one", "<u4"), ("other", "<u4")])
"""Numbers of two documents, the smaller first; 4 billion documents are the most."""
_MOST_DOCUMENTS = 1 << 32
_BYTES_A_KEY = 48
"""Of the memory given, to one key that is sorted: 8 for itself, 16 for its two pairs, as much again for the looks at the
sketches."""
_STORED_LOOKS = 4
"""So many of a bucket's stored documents, and the last, are compared with each of the others."""
_BYTES_A_KEY_AGAINST = 8 + 2 * 8 * (_STORED_LOOKS + 3) + 16
"""The same where some documents are stored ones."""
_LEAST_KEYS = 1024
_RANGE_BITS = 8
"""Keys are dealt out to 256 files at once at most."""
_BLOCK = 1 << 16
"""Keys read at a time."""

Block = tuple[NDArray[np.uint64], NDArray[np.uint64]]
"""Keys, with their documents' numbers."""


def first_numbers(parts: Sequence[SignaturePart]) -> NDArray[np.int64]:
    """int64 [parts + 1]: the number of each part's first document, and the number of documents.

    Raises:
        UserError: there are more documents than 32 bits number.
    """
    firsts = np.concatenate([[0], np.cumsum([part.documents for part in parts])]).astype(np.int64)
    if firsts[-1] > _MOST_DOCUMENTS:
        raise UserError(
            f"{int(firsts[-1]):,} documents are too many for one dedup, which numbers {_MOST_DOCUMENTS:,} at most: "
            "deduplicate the corpus in two halves first, and what they keep together then."
        )
    return firsts


def candidate_pairs(
    parts: Sequence[SignaturePart], column: int, memory_bytes: int, spool: Path, stored: int = 0
) -> Iterator[NDArray[Any]]:
    """Pairs (`PAIR` arrays, each sorted) of documents that share a key of `column`; texts that are empty have none.

    Args:
        parts: all documents' signatures.
        column: a band; −1 for the digests (then equal keys are equal documents, up to 64 of the digest's bits).
        memory_bytes: what may be held; half of it is left to whoever takes the pairs.
        spool: folder for keys that memory can't hold, made when needed and removed; 8 bytes a document, twice that for
            what has to be dealt out again.
        stored: so many of the first documents are stored ones.
    """
    documents = int(first_numbers(parts)[-1])
    number_bits = max(1, (documents - 1).bit_length())
    most = max(_LEAST_KEYS, memory_bytes // (_BYTES_A_KEY_AGAINST if stored else _BYTES_A_KEY))
    if documents <= most:
        keys, count = np.empty(documents, dtype=np.uint64), 0
        for block, numbers in _blocks(parts, column):
            keys[count : count + len(block)] = _packed(block, numbers, 0, number_bits)
            count += len(block)
        yield _sorted_pairs(keys[:count], number_bits, stored)
        return
    shutil.rmtree(spool, ignore_errors=True)  # what a run that was killed left
    try:
        yield from _in_ranges(_blocks(parts, column), documents, 64, number_bits, most, spool, stored)
    finally:
        shutil.rmtree(spool, ignore_errors=True)


def _blocks(parts: Sequence[SignaturePart], column: int) -> Iterator[Block]:
    for part, first in zip(parts, first_numbers(parts)[:-1]):
        for start in range(0, part.documents, _BLOCK):
            stop = min(start + _BLOCK, part.documents)
            keys = part.band(column, start, stop) if column >= 0 else part.digests(start, stop)[:, 0]
            numbers = np.arange(first + start, first + stop, dtype=np.uint64)
            unpaired = part.unpaired(start, stop)
            yield (keys[~unpaired], numbers[~unpaired]) if unpaired.any() else (keys, numbers)


def _packed(keys: NDArray[np.uint64], numbers: NDArray[np.uint64], taken: int, number_bits: int) -> NDArray[np.uint64]:
    """The keys' leading bits, behind the first `taken` of them, above the numbers."""
    return (keys << np.uint64(taken)) >> np.uint64(number_bits) << np.uint64(number_bits) | numbers


def _in_ranges(
    blocks: Iterable[Block], count: int, bits: int, number_bits: int, most: int, folder: Path, stored: int
) -> Iterator[NDArray[Any]]:
    """Pairs of `count` keys of which memory holds `most`; `bits` of the keys are still unknown to be equal."""
    range_bits = min(_RANGE_BITS, bits, max(1, (-(-5 * count // (4 * most)) - 1).bit_length()))
    folder.mkdir(parents=True)
    counts = _deal_out(blocks, range_bits, number_bits, folder, most)
    left = min(bits - range_bits, 64 - number_bits)
    for index, size in enumerate(counts):
        path = folder / str(index)
        if size <= most:
            yield _sorted_pairs(np.fromfile(path, dtype=np.uint64), number_bits, stored)
        elif left > 0:
            again, below = _read_back(path, number_bits), folder / f"{index}-"
            yield from _in_ranges(again, size, left, number_bits, most, below, stored)
        else:
            yield from _pairs_of_one_bucket(path, number_bits, most, stored)
        path.unlink()
    folder.rmdir()


def _deal_out(blocks: Iterable[Block], range_bits: int, number_bits: int, folder: Path, most: int) -> list[int]:
    """Write packed keys to a file for each value of their leading bits, in the order they come; the files' lengths."""
    ranges = 1 << range_bits
    counts = np.zeros(ranges, dtype=np.int64)
    buffer = min(1 << 18, max(4096, 4 * most // ranges))
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / str(index), "wb", buffering=buffer)) for index in range(ranges)]
        for keys, numbers in blocks:
            dealt, ends = _dealt(
                keys, _packed(keys, numbers, range_bits, number_bits), np.uint64(64 - range_bits), ranges
            )
            start = 0
            for file, end in zip(files, ends.tolist()):
                file.write(dealt[start:end].data)
                start = end
            counts += np.diff(ends, prepend=0)
    return [int(count) for count in counts]


@numba.njit(cache=True, nogil=True)
def _dealt(keys: Any, packed: Any, shift: Any, ranges: int) -> Any:
    """`packed` grouped by the leading bits of `keys`, in order inside a group, and the groups' ends int64 [ranges]."""
    ends = np.zeros(ranges, dtype=np.int64)
    for key in keys:
        ends[key >> shift] += 1
    places = np.zeros(ranges, dtype=np.int64)
    for index in range(1, ranges):
        ends[index] += ends[index - 1]
        places[index] = ends[index - 1]
    result = np.empty_like(packed)
    for place in range(len(keys)):
        index = keys[place] >> shift
        result[places[index]] = packed[place]
        places[index] += 1
    return result, ends


def _read_back(path: Path, number_bits: int) -> Iterator[Block]:
    low = np.uint64((1 << number_bits) - 1)
    for start in range(0, path.stat().st_size, 8 * _BLOCK):
        packed = np.fromfile(path, dtype=np.uint64, count=_BLOCK, offset=start)
        yield packed & ~low, packed & low


def _pairs_of_one_bucket(path: Path, number_bits: int, most: int, stored: int) -> Iterator[NDArray[Any]]:
    """Pairs of keys that are all equal, as they are in the order of their numbers, `most` at a time."""
    looked_at = np.empty(0, dtype=np.uint64)  # what the keys of the next piece are compared with
    low = np.uint64((1 << number_bits) - 1)
    for start in range(0, path.stat().st_size, 8 * most):
        piece = np.concatenate([looked_at, np.fromfile(path, dtype=np.uint64, count=most, offset=start)])
        yield _sorted_pairs(piece, number_bits, stored, known=len(looked_at))
        fresh = int(np.searchsorted(piece & low, np.uint64(stored)))
        places = {*range(min(_STORED_LOOKS, fresh)), max(0, fresh - 1), min(fresh, len(piece) - 1), len(piece) - 1}
        looked_at = piece[sorted(places)]


def _sorted_pairs(packed: NDArray[np.uint64], number_bits: int, stored: int, known: int = 0) -> NDArray[Any]:
    """Pairs of packed keys, which are sorted in place; `known` of the first keys are no pair again."""
    packed.sort()
    pairs = _bucket_pairs(packed, np.uint64(number_bits), np.uint64(stored), known)
    pairs.sort()
    _swap_halves(pairs)
    return pairs.view(PAIR)


@numba.njit(cache=True, nogil=True)
def _bucket_pairs(packed: Any, number_bits: Any, stored: Any, known: int) -> Any:
    """uint64 [pairs], one number above the other: each of a bucket with the bucket's first and with the one before it.

    Numbers below `stored` are only ever the upper half: `_STORED_LOOKS` of a bucket and its last.
    """
    pairs = np.empty(0, dtype=np.uint64)
    for filling in range(2):  # count first, so that nothing grows
        count, start, fresh = 0, 0, -1
        for place in range(len(packed)):
            if place == 0 or packed[place] >> number_bits != packed[place - 1] >> number_bits:
                start, fresh = place, -1
            number = packed[place] & ((np.uint64(1) << number_bits) - np.uint64(1))
            if number < stored:
                continue
            if fresh < 0:
                fresh = place
            if place < known:
                continue
            looks = min(fresh, start + _STORED_LOOKS)
            for other in range(start, looks):
                count = _pair(packed, other, number, number_bits, pairs, count, filling)
            if fresh - 1 >= looks:
                count = _pair(packed, fresh - 1, number, number_bits, pairs, count, filling)
            if place > fresh:
                count = _pair(packed, fresh, number, number_bits, pairs, count, filling)
            if place - 1 > fresh:
                count = _pair(packed, place - 1, number, number_bits, pairs, count, filling)
        if not filling:
            pairs = np.empty(count, dtype=np.uint64)
    return pairs


@numba.njit(cache=True, nogil=True, inline="always")
def _pair(packed: Any, place: int, number: Any, number_bits: Any, pairs: Any, count: int, filling: int) -> int:
    if filling:
        low = (np.uint64(1) << number_bits) - np.uint64(1)
        pairs[count] = (packed[place] & low) << np.uint64(32) | number
    return count + 1


@numba.njit(cache=True, nogil=True)
def _swap_halves(values: Any) -> None:
    for place in range(len(values)):
        values[place] = values[place] << np.uint64(32) | values[place] >> np.uint64(32)


class Sketches:
    """The sketches (or digests) of all documents, looked at in sorted order so that the disk is read forwards.

    Args:
        parts: all documents' signatures; no file is kept open.
        memory_bytes: what a look may take; more pairs are gone through in blocks.
    """

    def __init__(self, parts: Sequence[SignaturePart], memory_bytes: int = 256 << 20) -> None:
        self._parts = list(parts)
        self._firsts = first_numbers(parts)
        self._window = max(1 << 16, memory_bytes // 4)
        self.permutations = parts[0].permutations if parts else 1
        self.pairs_at_once = max(256, memory_bytes // 2 // (3 * max(16, self.permutations) + 64))

    def similarities(self, pairs: NDArray[Any]) -> NDArray[np.float32]:
        """float32 [pairs]: the estimates of pairs, best given sorted by their first document."""
        found = np.empty(len(pairs), dtype=np.float32)
        chance = 1 / SKETCH_VALUES
        for start in range(0, len(pairs), self.pairs_at_once):
            chunk = pairs[start : start + self.pairs_at_once]
            equal = _equal_bytes(self.rows(chunk["one"]), self.rows(chunk["other"])) / self.permutations
            found[start : start + len(chunk)] = np.maximum(0, (equal - chance) / (1 - chance))
        return found

    def equal_digests(self, pairs: NDArray[Any]) -> NDArray[np.bool_]:
        """Bool [pairs]: whether all 128 bits of the digests agree."""
        found = np.empty(len(pairs), dtype=bool)
        for start in range(0, len(pairs), self.pairs_at_once):
            chunk = pairs[start : start + self.pairs_at_once]
            equal = _equal_bytes(self.rows(chunk["one"], digests=True), self.rows(chunk["other"], digests=True))
            found[start : start + len(chunk)] = equal == 16
        return found

    def rows(self, numbers: NDArray[Any], digests: bool = False) -> NDArray[np.uint8]:
        """uint8 [numbers, permutations], or [numbers, 16]: the sketches, or digests, of documents in any order."""
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order].astype(np.int64)
        result = np.empty((len(numbers), 16 if digests else self.permutations), dtype=np.uint8)
        bounds = np.searchsorted(ordered, self._firsts)
        for place in np.flatnonzero(np.diff(bounds)):
            low, high = bounds[place], bounds[place + 1]
            rows = ordered[low:high] - self._firsts[place]
            self._parts[place].take(rows, result, order[low:high], digests, self._window)
        return result


@numba.njit(cache=True, nogil=True)
def _equal_bytes(ours: Any, others: Any) -> Any:
    result = np.empty(len(ours), dtype=np.int32)
    for row in range(len(ours)):
        equal = 0
        for place in range(ours.shape[1]):
            equal += ours[row, place] == others[row, place]
        result[row] = equal
    return result


def verified_pairs(
    parts: Sequence[SignaturePart], column: int, threshold: float, memory_bytes: int, output: Path, stored: int = 0
) -> int:
    """Write the pairs of a band whose sketches agree (of the digests: that are equal) to `output`; their number.

    The file is `PAIR` after `PAIR`, sorted inside a range of keys, written beside its place and renamed. Keys that
    memory can't hold lie beside it meanwhile.
    """
    sketches = Sketches(parts, memory_bytes // 2)
    partial = output.with_name(output.name + ".partial")
    count = 0
    with open(partial, "wb") as file:
        ranges = output.with_name(output.name + ".ranges")
        for pairs in candidate_pairs(parts, column, memory_bytes, ranges, stored):
            for start in range(0, len(pairs), sketches.pairs_at_once):
                chunk = pairs[start : start + sketches.pairs_at_once]
                good = sketches.equal_digests(chunk) if column < 0 else sketches.similarities(chunk) >= threshold
                chunk[good].tofile(file)
                count += int(good.sum())
    partial.replace(output)
    return count


def components(
    pair_files: Sequence[Path],
    documents: int,
    memory_bytes: int,
    among: NDArray[np.bool_] | None = None,
    meaning: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> NDArray[np.uint32]:
    """uint32 [documents]: the smallest number of every document's component.

    Args:
        pair_files: of `verified_pairs`.
        documents: how many there are.
        memory_bytes: what may be held, beside 4 bytes a document.
        among: bool [documents], leaves out pairs of the others.
        meaning: from the pairs that were found to those that are joined.
    """
    parent = np.arange(documents, dtype=np.uint32)
    for path in pair_files:
        for pairs in read_pairs(path, memory_bytes):
            joined = pairs if meaning is None else meaning(pairs)
            if among is not None:
                joined = joined[among[joined["one"]] & among[joined["other"]]]
            _join(parent, np.ascontiguousarray(joined["one"]), np.ascontiguousarray(joined["other"]))
    _flatten(parent)
    return parent


def read_pairs(path: Path, memory_bytes: int) -> Iterator[NDArray[Any]]:
    """What `verified_pairs` wrote, in blocks."""
    block = max(1 << 16, min(memory_bytes // 4, 1 << 28) // PAIR.itemsize)
    size = path.stat().st_size // PAIR.itemsize
    for start in range(0, size, block):
        yield np.fromfile(path, dtype=PAIR, count=min(block, size - start), offset=start * PAIR.itemsize)


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
