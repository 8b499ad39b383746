"""The order in which a run reads one indexed dataset: our own sequence index.

In epoch e the documents are permuted by a generator seeded by (seed, dataset, e) alone; the token stream is all epochs'
permuted documents, one after another, without end. Sequence k is the stream's tokens [kS, kS + S + 1): S inputs and,
one further, the label of the last. The sequences that *start* in epoch e are visited in a second permutation, seeded
the same way. So an epoch's order depends on the dataset, the seed and the epoch, never on how many samples a run asks
for, and no document comes again before the rest of its dataset has been.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_native.data.indexed import IndexedTokens, idx_path
from megatron_native.errors import UserError

CACHED_EPOCHS = 2
"""An epoch and the one its last sequence runs into."""


class Span(NamedTuple):
    """A piece of one document in a sequence: its tokens [start, stop), in the `epoch`-th reading of the dataset."""

    document: int
    start: int
    stop: int
    epoch: int


@dataclass(frozen=True)
class _Epoch:
    """One epoch's orders: `documents` as they come, `starts` [documents + 1] where each begins within the epoch, and
    `sequences`, the visiting order of the sequences that start in it.
    """

    documents: NDArray[np.int64]
    starts: NDArray[np.int64]
    sequences: NDArray[np.int64]


class SequenceIndex:
    """Random access to the sequences of one dataset, for ever: sequence n exists for every n ≥ 0.

    Args:
        dataset: the indexed dataset.
        seq_length: S, input tokens a sequence.
        seed: the run's data seed.
        name: what the orders are seeded with besides `seed`; by default the digest of the dataset's `.idx`, so that
            a moved or renamed dataset keeps its order.

    Raises:
        UserError: the dataset holds no tokens, or `seq_length` is not positive.
    """

    def __init__(self, dataset: IndexedTokens, seq_length: int, seed: int, name: str | None = None) -> None:
        if seq_length < 1:
            raise UserError(f"seq_length is {seq_length}; a sequence has at least one token.")
        self.dataset = dataset
        self.seq_length = seq_length
        self.seed = seed
        self.name = dataset.digest() if name is None else name
        self._starts = dataset.document_starts()
        self.tokens_per_epoch = int(self._starts[-1])
        if self.tokens_per_epoch == 0:
            raise UserError(f"{idx_path(dataset.prefix)} holds no tokens, so nothing can be read from it; leave it out.")
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()

    def first_sequence(self, epoch: int) -> int:
        """The number of sequences that start before `epoch`, which is the number of its first."""
        return -(-epoch * self.tokens_per_epoch // self.seq_length)

    def sequences_in(self, epoch: int) -> int:
        """How many sequences start in `epoch`; zero happens where the dataset is shorter than a sequence."""
        return self.first_sequence(epoch + 1) - self.first_sequence(epoch)

    def epoch_of(self, n: int) -> int:
        """The epoch in which the n-th visited sequence starts."""
        return n * self.seq_length // self.tokens_per_epoch

    def sequence(self, n: int) -> NDArray[np.int64]:
        """int64 [S + 1]: the ids of the n-th visited sequence, and the label of its last token."""
        ids = np.empty(self.seq_length + 1, dtype=np.int64)
        filled = 0
        for document, start, stop, _ in self.spans(n):
            first = int(self._starts[document]) + start
            ids[filled : filled + stop - start] = self.dataset.read(first, stop - start)
            filled += stop - start
        return ids

    def spans(self, n: int) -> list[Span]:
        """Which pieces of which documents the n-th visited sequence is made of, in order; S + 1 tokens together.

        The last token of the last span is only a label: the next sequence of the stream begins with it.
        """
        if n < 0:
            raise IndexError(f"sequence {n}: sequences are numbered from 0")
        epoch = self.epoch_of(n)
        k = self.first_sequence(epoch) + int(self._epoch(epoch).sequences[n - self.first_sequence(epoch)])
        offset = k * self.seq_length - epoch * self.tokens_per_epoch
        missing = self.seq_length + 1
        spans: list[Span] = []
        while missing:
            taken = self._take(epoch, offset, missing)
            spans += taken
            missing -= sum(span.stop - span.start for span in taken)
            epoch, offset = epoch + 1, 0
        return spans

    def _take(self, epoch: int, offset: int, tokens: int) -> list[Span]:
        """The spans of up to `tokens` tokens from `offset` of one epoch's stream, up to the epoch's end."""
        order = self._epoch(epoch)
        end = min(offset + tokens, self.tokens_per_epoch)
        spans = []
        # "right" passes over documents without tokens, which begin where the next one does
        at = int(np.searchsorted(order.starts, offset, side="right")) - 1
        while offset < end:
            begin, stop = int(order.starts[at]), min(int(order.starts[at + 1]), end)
            if stop > offset:
                spans.append(Span(int(order.documents[at]), offset - begin, stop - begin, epoch))
            offset, at = max(offset, stop), at + 1
        return spans

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch in self._epochs:
            self._epochs.move_to_end(epoch)
            return self._epochs[epoch]
        documents = self._generator("documents", epoch).permutation(len(self._starts) - 1)
        starts = np.zeros(len(documents) + 1, dtype=np.int64)
        np.cumsum(np.diff(self._starts)[documents], out=starts[1:])
        sequences = self._generator("sequences", epoch).permutation(self.sequences_in(epoch))
        self._epochs[epoch] = _Epoch(documents, starts, sequences)
        while len(self._epochs) > CACHED_EPOCHS:
            self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _generator(self, purpose: str, epoch: int) -> np.random.Generator:
        """A generator whose seed is a hash of everything an order may depend on."""
        key = f"megatron-native/{purpose}/{self.seed}/{self.name}/{epoch}"
        return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest(), "little")))
