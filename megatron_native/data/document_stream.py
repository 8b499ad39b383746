"""The endless stream of a dataset's documents, epoch after epoch, and what is left of it after a part was read.

In epoch e the documents are permuted by a generator seeded by (seed, dataset, e) alone; the stream is all epochs'
permuted documents, one after another, without end. A *block* is what is shuffled together: an epoch, or the rest of one
that was broken off when a run changed how it cuts sequences. Offsets are tokens from the beginning of a stream.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_native.data.index_cache import Columns, IndexCache
from megatron_native.data.indexed import IndexedTokens, idx_path
from megatron_native.errors import UserError

CACHED_EPOCHS = 2
"""An epoch and the one its last sequence runs into."""
CHUNK = 1 << 22
"""Entries handled at a time where a whole epoch is walked."""

Pieces = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Starts (offsets in a stream) and lengths of pieces of documents, in stream order."""


class Span(NamedTuple):
    """A piece of one document: its tokens [start, stop), in the `epoch`-th reading of the dataset."""

    document: int
    start: int
    stop: int
    epoch: int


class Stream(Protocol):
    """A stream of documents in blocks."""

    @property
    def base(self) -> DocumentStream:
        """The whole stream of the dataset."""

    def block_start(self, block: int) -> int:
        """Offset at which a block begins."""

    def block_of(self, offset: int) -> int:
        """The block that an offset lies in."""

    def epoch(self, block: int) -> int:
        """The epoch of the dataset that a block belongs to."""

    def spans(self, start: int, stop: int) -> list[Span]:
        """The pieces of documents that [start, stop) is made of, in order."""

    def pieces(self, block: int) -> Iterator[Pieces]:
        """Every piece of a document in a block, in order, some at a time."""

    def located(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Where in this stream the base stream's [start, stop) is, as far as it is in it."""


class _Epoch(NamedTuple):
    documents: NDArray[np.integer]
    """[documents] as they come."""
    starts: NDArray[np.int64]
    """[documents + 1] where each begins within the epoch."""


class DocumentStream:
    """All epochs of one dataset.

    Args:
        dataset: the indexed dataset.
        seed: the run's seed.
        name: what the orders are seeded with besides `seed`.
        cache: where the orders of large datasets are kept.

    Raises:
        UserError: the dataset holds no tokens.
    """

    def __init__(self, dataset: IndexedTokens, seed: int, name: str, cache: IndexCache | None = None) -> None:
        self.dataset, self.seed, self.name = dataset, seed, name
        self.cache = cache or IndexCache(None)
        self.tokens_per_epoch = dataset.indexed_tokens
        self.document_count = dataset.document_count
        if self.tokens_per_epoch == 0:
            raise UserError(
                f"{idx_path(dataset.prefix)} holds no tokens, so nothing can be read from it; leave it out."
            )
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()

    @property
    def base(self) -> DocumentStream:
        """This stream."""
        return self

    def block_start(self, block: int) -> int:
        """Offset at which an epoch begins."""
        return block * self.tokens_per_epoch

    def block_of(self, offset: int) -> int:
        """The epoch that an offset lies in."""
        return offset // self.tokens_per_epoch

    def epoch(self, block: int) -> int:
        """A block is an epoch."""
        return block

    def spans(self, start: int, stop: int) -> list[Span]:
        """The pieces of documents that [start, stop) is made of, in order."""
        spans: list[Span] = []
        while start < stop:
            epoch, offset = divmod(start, self.tokens_per_epoch)
            order = self.order(epoch)
            end = min(offset + stop - start, self.tokens_per_epoch)
            start += end - offset
            # "right" passes over documents without tokens, which begin where the next one does
            at = int(np.searchsorted(order.starts, offset, side="right")) - 1
            while offset < end:
                begin, last = int(order.starts[at]), min(int(order.starts[at + 1]), end)
                if last > offset:
                    spans.append(Span(int(order.documents[at]), offset - begin, last - begin, epoch))
                offset, at = max(offset, last), at + 1
        return spans

    def pieces(self, block: int) -> Iterator[Pieces]:
        """Every document of an epoch that has tokens, in order."""
        starts, origin = self.order(block).starts, self.block_start(block)
        for first in range(0, self.document_count, CHUNK):
            bounds = np.asarray(starts[first : first + CHUNK + 1])
            lengths = np.diff(bounds)
            some = lengths > 0
            yield bounds[:-1][some] + origin, lengths[some]

    def located(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The same range."""
        return [(start, stop)]

    def range_of(self, document: int, epoch: int) -> tuple[int, int]:
        """Where a document lies in the stream in one epoch."""
        order = self.order(epoch)
        at = int(np.flatnonzero(np.asarray(order.documents) == document)[0])
        origin = self.block_start(epoch)
        return origin + int(order.starts[at]), origin + int(order.starts[at + 1])

    def generator(self, purpose: str, epoch: int) -> np.random.Generator:
        """A generator whose seed is a hash of everything an order may depend on."""
        key = f"megatron-native/{purpose}/{self.seed}/{self.name}/{epoch}"
        return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest(), "little")))

    def key(self, purpose: str, epoch: int) -> dict[str, object]:
        """What an array of this stream in the cache depends on."""
        return {
            "dataset": self.dataset.digest(), "seed": self.seed, "name": self.name, "purpose": purpose, "epoch": epoch,
        }  # fmt: skip

    def order(self, epoch: int) -> _Epoch:
        """The documents of an epoch as they come, and where each begins."""
        if epoch in self._epochs:
            self._epochs.move_to_end(epoch)
            return self._epochs[epoch]
        columns = self.cache.columns(
            self.document_count, lambda: self.key("documents", epoch), lambda: self._build(epoch)
        )
        self._epochs[epoch] = _Epoch(columns["documents"], columns["starts"])
        while len(self._epochs) > CACHED_EPOCHS:
            self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _build(self, epoch: int) -> Columns:
        documents = shuffled(self.document_count, self.generator("documents", epoch))

        def starts() -> Iterator[NDArray[np.int64]]:
            yield np.zeros(1, dtype=np.int64)
            lengths, end = self.dataset.document_lengths(), 0
            for first in range(0, self.document_count, CHUNK):
                ends = np.cumsum(lengths[documents[first : first + CHUNK]], dtype=np.int64) + end
                end = int(ends[-1])
                yield ends

        return {"documents": iter([documents]), "starts": starts()}


class RestStream:
    """What is left of a stream after some of a block was read: its unread ranges, then the blocks after it.

    Args:
        parent: the stream that was read.
        block: the block that was broken off; everything before it was read.
        starts, stops: its unread ranges, int64, sorted, apart from each other.
    """

    def __init__(self, parent: Stream, block: int, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        self.parent, self.block = parent, block
        self.starts, self.stops = starts, stops
        self._placed = np.zeros(len(starts) + 1, dtype=np.int64)
        np.cumsum(stops - starts, out=self._placed[1:])
        self._rest = int(self._placed[-1])
        self._resume = parent.block_start(block + 1)

    @property
    def base(self) -> DocumentStream:
        """The whole stream of the dataset."""
        return self.parent.base

    def block_start(self, block: int) -> int:
        """Offset at which a block begins; block 0 is the rest."""
        return 0 if block == 0 else self._rest + self.parent.block_start(self.block + block) - self._resume

    def block_of(self, offset: int) -> int:
        """The block that an offset lies in."""
        return 0 if offset < self._rest else self.parent.block_of(offset - self._rest + self._resume) - self.block

    def epoch(self, block: int) -> int:
        """The epoch of the dataset that a block belongs to."""
        return self.parent.epoch(self.block + block)

    def spans(self, start: int, stop: int) -> list[Span]:
        """The pieces of documents that [start, stop) is made of, in order."""
        return [span for first, last in self._to_parent(start, stop) for span in self.parent.spans(first, last)]

    def pieces(self, block: int) -> Iterator[Pieces]:
        """Every piece of a document in a block, in order."""
        if block:
            shift = self._rest - self._resume
            for starts, lengths in self.parent.pieces(self.block + block):
                yield starts + shift, lengths
            return
        for starts, lengths in self.parent.pieces(self.block):
            if len(starts):
                yield self._cut(starts, starts + lengths)

    def located(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Where in this stream the base stream's [start, stop) is, as far as it was unread."""
        found = []
        for first, last in self.parent.located(start, stop):
            if last > self._resume:
                found.append((max(first, self._resume) - self._resume + self._rest, last - self._resume + self._rest))
            low = int(np.searchsorted(self.stops, first, side="right"))
            high = int(np.searchsorted(self.starts, last, side="left"))
            for at in range(low, high):
                begin, end = max(first, int(self.starts[at])), min(last, int(self.stops[at]))
                place = int(self._placed[at]) - int(self.starts[at])
                found.append((begin + place, end + place))
        return sorted(found)

    def _to_parent(self, start: int, stop: int) -> list[tuple[int, int]]:
        ranges = []
        while start < stop and start < self._rest:
            at = int(np.searchsorted(self._placed, start, side="right")) - 1
            first = int(self.starts[at]) + start - int(self._placed[at])
            last = min(int(self.stops[at]), first + stop - start)
            ranges.append((first, last))
            start += last - first
        if start < stop:
            ranges.append((start - self._rest + self._resume, stop - self._rest + self._resume))
        return ranges

    def _cut(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Pieces:
        """The parts of a run of adjoining pieces that lie in the unread ranges, as offsets of this stream."""
        low = int(np.searchsorted(self.stops, starts[0], side="right"))
        high = int(np.searchsorted(self.starts, stops[-1], side="left"))
        if low == high:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        first = np.maximum(self.starts[low:high], starts[0])
        last = np.minimum(self.stops[low:high], stops[-1])
        cuts = np.union1d(np.union1d(starts, stops), np.union1d(first, last))
        begins, ends = cuts[:-1], cuts[1:]
        at = np.searchsorted(first, begins, side="right") - 1
        inside = (at >= 0) & (begins < last[np.maximum(at, 0)])
        begins, ends, at = begins[inside], ends[inside], at[inside] + low
        return begins - self.starts[at] + self._placed[at], ends - begins


def shuffled(count: int, generator: np.random.Generator) -> NDArray[np.integer]:
    """0 … count − 1 in a random order: `generator.permutation(count)`, in half of its memory where the numbers fit."""
    numbers: NDArray[np.integer] = np.arange(count, dtype=np.uint32 if count < 1 << 32 else np.int64)
    generator.shuffle(numbers)
    return numbers
