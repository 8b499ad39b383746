"""How sequences are made of a stream of documents: end to end and cut, packed so that no document that fits is cut, or
each document by itself.

A packing numbers the sequences of a stream in the order in which they are visited: block by block, shuffled within a
block by a generator seeded by the dataset, the seed and the epoch. Any sequence is found from its number alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_native.data.document_stream import CACHED_EPOCHS, RestStream, Stream, shuffled
from megatron_native.data.index_cache import Columns

Ranges = list[tuple[int, int]]
"""[start, stop) offsets in a stream."""
WINDOW = 1 << 20
"""Pieces that are packed together by best fit."""


class Concatenated:
    """Documents end to end, cut every `seq_length` tokens: sequence k is [kS, (k + 1)S).

    The sequences that start in a block are visited in a random order; the last of them, which may run into the next
    block, comes last, so that no document comes again before the rest of its block has been.

    Args:
        stream: what is cut.
        seq_length: S, tokens a sequence.
        history: what was read before of the dataset in other ways, empty for the first: it tells the shuffles apart.
    """

    def __init__(self, stream: Stream, seq_length: int, history: str = "") -> None:
        self.stream, self.seq_length = stream, seq_length
        self._purpose = "sequences" + (f"/{history}" if history else "")
        self._orders: OrderedDict[int, NDArray[np.integer]] = OrderedDict()

    def first_sequence(self, block: int) -> int:
        """The number of sequences that start before a block."""
        return -(-self.stream.block_start(block) // self.seq_length)

    def block_of(self, n: int) -> int:
        """The block that the n-th visited sequence starts in."""
        return self.stream.block_of(n * self.seq_length)

    def ranges(self, n: int) -> Ranges:
        """The one range of the n-th visited sequence."""
        block = self.block_of(n)
        first = self.first_sequence(block)
        k = first + int(self._order(block)[n - first])
        return [(k * self.seq_length, (k + 1) * self.seq_length)]

    def following(self, n: int) -> tuple[int, int] | None:
        """The token that the next sequence of the stream begins with."""
        stop = self.ranges(n)[0][1]
        return stop, stop + 1

    def rest(self, n: int) -> Stream:
        """What is left of the stream after the first n visited sequences."""
        block = self.block_of(n)
        first = self.first_sequence(block)
        unread = np.sort(np.asarray(self._order(block)[n - first :], dtype=np.int64)) + first
        # sequences next to each other make one range
        breaks = np.flatnonzero(np.diff(unread) != 1) + 1
        starts = unread[np.concatenate([[0], breaks])] * self.seq_length
        stops = (unread[np.concatenate([breaks - 1, [len(unread) - 1]])] + 1) * self.seq_length
        # the last one is among them; what it has of the next block is left to that block
        return RestStream(self.stream, block, starts, np.minimum(stops, self.stream.block_start(block + 1)))

    def visits(self, start: int, stop: int) -> list[int]:
        """The numbers of the sequences that any of [start, stop) is in."""
        found = []
        for k in range(start // self.seq_length, -(-stop // self.seq_length)):
            block = self.stream.block_of(k * self.seq_length)
            first = self.first_sequence(block)
            found.append(first + int(np.flatnonzero(np.asarray(self._order(block)) == k - first)[0]))
        return sorted(found)

    def _order(self, block: int) -> NDArray[np.integer]:
        if block not in self._orders:
            count = self.first_sequence(block + 1) - self.first_sequence(block)

            def build() -> Columns:
                base = self.stream.base
                order = shuffled(max(0, count - 1), base.generator(self._purpose, self.stream.epoch(block)))
                return {"order": iter([np.append(order, np.array([count - 1] * min(count, 1), dtype=order.dtype))])}

            self._orders[block] = self._columns(count, block, build)["order"]
            while len(self._orders) > CACHED_EPOCHS:
                self._orders.popitem(last=False)
        return self._orders[block]

    def _columns(self, count: int, block: int, build: Any) -> dict[str, NDArray[Any]]:
        base = self.stream.base
        return base.cache.columns(
            count,
            lambda: {
                **base.key(self._purpose, self.stream.epoch(block)),
                "seq_length": self.seq_length, "block": block,
            },
            build,
        )  # fmt: skip


class BestFit:
    """Documents packed whole into sequences by best fit decreasing ("Fewer Truncations Improve Language Modeling", Ding
    et al., 2024): each piece, the longest first, goes where it leaves the least space.

    Only documents longer than a sequence are cut, into full sequences and a remainder that is packed. Pieces are packed
    by windows of about a million, in the block's random order, so memory is bounded and every epoch packs anew.

    Args: as for `Concatenated`.
    """

    name = "best_fit"

    def __init__(self, stream: Stream, seq_length: int, history: str = "") -> None:
        self.stream, self.seq_length = stream, seq_length
        self._purpose = self.name + (f"/{history}" if history else "")
        self._blocks: OrderedDict[int, dict[str, NDArray[Any]]] = OrderedDict()
        self._firsts = [0]

    def first_sequence(self, block: int) -> int:
        """The number of sequences in the blocks before; these are packed to know it."""
        while len(self._firsts) <= block:
            self._firsts.append(self._firsts[-1] + len(self._block(len(self._firsts) - 1)["order"]))
        return self._firsts[block]

    def block_of(self, n: int) -> int:
        """The block that the n-th visited sequence belongs to."""
        while self._firsts[-1] <= n:
            self.first_sequence(len(self._firsts))
        return bisect_right(self._firsts, n) - 1

    def ranges(self, n: int) -> Ranges:
        """The pieces of the n-th visited sequence, in the order of the stream."""
        block = self.block_of(n)
        columns = self._block(block)
        sequence = int(columns["order"][n - self.first_sequence(block)])
        low, high = (int(place) for place in columns["first_piece"][sequence : sequence + 2])
        starts, lengths = columns["starts"][low:high], columns["lengths"][low:high]
        return [(int(start), int(start) + int(length)) for start, length in zip(starts, lengths)]

    def following(self, n: int) -> tuple[int, int] | None:
        """Nothing: what comes next in the stream has no bearing on a packed sequence."""
        return None

    def rest(self, n: int) -> Stream:
        """What is left of the stream after the first n visited sequences."""
        block = self.block_of(n)
        columns = self._block(block)
        first_piece = np.asarray(columns["first_piece"])
        unread = np.zeros(len(first_piece) - 1, dtype=bool)
        unread[np.asarray(columns["order"][n - self.first_sequence(block) :])] = True
        of_unread = np.repeat(unread, np.diff(first_piece))
        starts = np.asarray(columns["starts"])[of_unread]
        stops = starts + np.asarray(columns["lengths"])[of_unread]
        order = np.argsort(starts)
        starts, stops = starts[order], stops[order]
        breaks = np.flatnonzero(starts[1:] != stops[:-1]) + 1
        return RestStream(
            self.stream, block, starts[np.append(0, breaks)], stops[np.append(breaks - 1, len(stops) - 1)]
        )

    def visits(self, start: int, stop: int) -> list[int]:
        """The numbers of the sequences that any of [start, stop) is in."""
        found: set[int] = set()
        for block in range(self.stream.block_of(start), self.stream.block_of(stop - 1) + 1):
            columns = self._block(block)
            starts, lengths = np.asarray(columns["starts"]), np.asarray(columns["lengths"])
            pieces = np.flatnonzero((starts < stop) & (starts + lengths > start))
            sequences = np.searchsorted(columns["first_piece"], pieces, side="right") - 1
            visited = np.flatnonzero(np.isin(columns["order"], sequences))
            found.update(int(place) + self.first_sequence(block) for place in visited)
        return sorted(found)

    def _block(self, block: int) -> dict[str, NDArray[Any]]:
        if block not in self._blocks:
            base = self.stream.base
            self._blocks[block] = base.cache.columns(
                base.document_count,
                lambda: {
                    **base.key(self._purpose, self.stream.epoch(block)),
                    "seq_length": self.seq_length, "block": block,
                },
                lambda: self._pack(block),
            )  # fmt: skip
            while len(self._blocks) > CACHED_EPOCHS:
                self._blocks.popitem(last=False)
        return self._blocks[block]

    def _pack(self, block: int) -> Columns:
        """Columns `starts` and `lengths` of the pieces, sequence by sequence, `first_piece` of each sequence, `order`."""
        found: dict[str, list[NDArray[Any]]] = {"starts": [], "lengths": [], "first_piece": [np.zeros(1, np.int64)]}
        placed, sequences = 0, 0
        for starts, lengths in self._windows(block):
            order, first_piece = self._together(lengths)
            found["starts"].append(starts[order])
            found["lengths"].append(lengths[order])
            found["first_piece"].append(first_piece[1:] + placed)
            placed, sequences = placed + len(order), sequences + len(first_piece) - 1
        visiting = shuffled(sequences, self.stream.base.generator(self._purpose, self.stream.epoch(block)))
        return {**{name: iter(chunks) for name, chunks in found.items()}, "order": iter([visiting])}

    def _together(self, lengths: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which pieces of a window share a sequence: their order, and the first piece of each sequence [sequences + 1]."""
        from megatron_native.data.best_fit import pack

        return pack(lengths, self.seq_length)

    def _windows(self, block: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """Pieces of at most a sequence, about a million at a time."""
        waiting: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for starts, lengths in self.stream.pieces(block):
            for first in range(0, len(starts), WINDOW):
                waiting.append((starts[first : first + WINDOW], lengths[first : first + WINDOW]))
                if sum(len(group[0]) for group in waiting) >= WINDOW:
                    yield self._chopped(waiting)
                    waiting = []
        if waiting:
            yield self._chopped(waiting)

    def _chopped(self, groups: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> tuple[Any, Any]:
        """Pieces longer than a sequence cut into full sequences and a remainder."""
        starts = np.concatenate([group[0] for group in groups])
        lengths = np.concatenate([group[1] for group in groups])
        counts = -(-lengths // self.seq_length)
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        offset = within * self.seq_length
        pieces = np.minimum(np.repeat(lengths, counts) - offset, self.seq_length)
        return np.repeat(starts, counts) + offset, pieces.astype(np.int32)


class Single(BestFit):
    """Each document by itself, the rest of its sequence padded; only documents longer than a sequence are cut, as by best
    fit. What packing is measured against.

    Args: as for `Concatenated`.
    """

    name = "single"

    def _together(self, lengths: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.arange(len(lengths)), np.arange(len(lengths) + 1)


PACKINGS: dict[str, type[Concatenated] | type[BestFit]] = {
    "concatenate": Concatenated, "best_fit": BestFit, "single": Single,
}  # fmt: skip
