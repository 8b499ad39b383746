"""The order in which a run reads one indexed dataset: our own sequence index.

Sequence n exists for every n ≥ 0 and is found from its number alone: a stream of permuted documents
(`document_stream.py`), cut into sequences (`packing.py`). An epoch's order depends on the dataset, the seed and the epoch,
never on how many samples a run asks for; and no document comes again before the rest of its dataset has been.

A run may change the sequence length or the packing in the middle of an epoch. What was read so far is then the `history`:
so many sequences of such a kind, and so on. The next kind is cut from what they left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_native.data.document_stream import DocumentStream, Span, Stream
from megatron_native.data.index_cache import IndexCache
from megatron_native.data.indexed import IndexedTokens
from megatron_native.data.packing import PACKINGS, BestFit, Concatenated
from megatron_native.data.samples import LossPolicy, Sample, make_sample
from megatron_native.errors import UserError

__all__ = ["SequenceIndex", "Span", "Taken"]


class Taken(NamedTuple):
    """A number of sequences of one kind that were read of a dataset."""

    packing: str
    seq_length: int
    sequences: int


class SequenceIndex:
    """Random access to the sequences of one dataset, for ever.

    Args:
        dataset: the indexed dataset.
        seq_length: S, input tokens a sequence.
        seed: the run's data seed.
        name: what the orders are seeded with besides `seed`; by default the digest of the dataset's `.idx`, so that
            a moved or renamed dataset keeps its order.
        packing: `concatenate`, `best_fit` or `single`.
        history: what was read of the dataset before, in other ways.
        cache: where the orders of large datasets are kept.
        policy: which labels count.

    Raises:
        UserError: the dataset holds no tokens, or `seq_length` is not positive.
    """

    def __init__(
        self,
        dataset: IndexedTokens,
        seq_length: int,
        seed: int,
        name: str | None = None,
        packing: str = "concatenate",
        history: Sequence[Taken] = (),
        cache: IndexCache | None = None,
        policy: LossPolicy | None = None,
    ) -> None:
        if seq_length < 1:
            raise UserError(f"seq_length is {seq_length}; a sequence has at least one token.")
        self.dataset, self.seq_length, self.packing = dataset, seq_length, packing
        self.policy = policy or LossPolicy()
        self.stream = DocumentStream(dataset, seed, dataset.digest() if name is None else name, cache)
        self.readings: list[Concatenated | BestFit] = []
        self._taken: list[int] = []
        """Every way in which the dataset was or is read, and how many sequences of each before the present one."""
        stream: Stream = self.stream
        past = ""
        for taken in history:
            reading = PACKINGS[taken.packing](stream, taken.seq_length, past)
            self.readings.append(reading)
            self._taken.append(taken.sequences)
            stream = reading.rest(taken.sequences)
            past += f"{taken.packing}/{taken.seq_length}/{taken.sequences};"
        self.packed = PACKINGS[packing](stream, seq_length, past)
        self.readings.append(self.packed)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of the dataset."""
        return self.stream.tokens_per_epoch

    @property
    def kept(self) -> bool:
        """Whether its orders are large enough to be kept in the cache; smaller ones are built by every process."""
        cache, sequences = self.stream.cache, self.tokens_per_epoch // self.seq_length + 1
        return cache.keeps(max(self.stream.document_count, sequences))

    def first_sequence(self, epoch: int) -> int:
        """The number of sequences in the blocks before `epoch` (a whole one, or the rest of one), which is its first's."""
        return self.packed.first_sequence(epoch)

    def sequences_in(self, epoch: int) -> int:
        """How many sequences `epoch` has; zero happens where the dataset is shorter than a sequence."""
        return self.first_sequence(epoch + 1) - self.first_sequence(epoch)

    def epoch_of(self, n: int) -> int:
        """The epoch that the n-th visited sequence begins in."""
        return self.packed.stream.epoch(self.packed.block_of(n))

    def spans(self, n: int) -> list[Span]:
        """Which pieces of which documents the n-th visited sequence is made of, in order: at most S tokens."""
        if n < 0:
            raise IndexError(f"sequence {n}: sequences are numbered from 0")
        return [span for start, stop in self.packed.ranges(n) for span in self.packed.stream.spans(start, stop)]

    def sample(self, n: int) -> Sample:
        """The n-th visited sequence with its labels."""
        spans = self.spans(n)
        following = self.packed.following(n)
        after = self.packed.stream.spans(*following)[0] if following else None
        return make_sample(self.dataset, spans, after, self.seq_length, self.policy)

    def sequence(self, n: int) -> NDArray[np.int64]:
        """int64 [S + 1]: the ids of the n-th visited sequence of a concatenation, and the label of its last token."""
        sample = self.sample(n)
        return np.append(sample.tokens, sample.labels[-1])

    def epochs(self, first: int, end: int) -> range:
        """The epochs that any token of the visited sequences [first, end) may belong to."""
        stream, block = self.packed.stream, self.packed.block_of(end - 1)
        high = stream.epoch(block)
        if isinstance(self.packed, Concatenated):  # the last sequence of a block may run into others
            high = stream.epoch(stream.block_of(self.packed.first_sequence(block + 1) * self.seq_length - 1))
        return range(self.epoch_of(first), high + 1)

    def visits(self, document: int, epoch: int, way: int | None = None) -> list[tuple[int, int]]:
        """(way of reading, n) of every sequence that any of a document's tokens of an epoch is in.

        A way of reading is the number of its entry in the history; the present one comes after them all. With `way`, only
        that one is looked at.
        """
        start, stop = self.stream.range_of(document, epoch)
        if start == stop:
            return []
        found = []
        for number, reading in enumerate(self.readings):
            if way not in (None, number):
                continue
            limit = self._taken[number] if number < len(self._taken) else None
            for first, last in reading.stream.located(start, stop):
                found += [(number, n) for n in reading.visits(first, last) if limit is None or n < limit]
        return sorted(set(found))
