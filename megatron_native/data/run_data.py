"""The samples of a run: from a number, through the ledger, to ids and labels.

In go the ledger's segments and the datasets; any sample, past or to come, is found from its number alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from megatron_native.data.dataset_files import DatasetFiles
from megatron_native.data.document_stream import Span
from megatron_native.data.index_cache import IndexCache
from megatron_native.data.indexed import IndexedTokens
from megatron_native.data.ledger import DatasetRecord, Ledger, Segment
from megatron_native.data.samples import LossPolicy, Sample
from megatron_native.data.sequence_index import SequenceIndex

CACHED_INDICES = 16


class Source(NamedTuple):
    """Where a sample comes from: the n-th sequence of a dataset in the segment's way of reading it."""

    segment: int
    dataset: str
    n: int


class RunData:
    """Numbered samples of a run.

    Args:
        ledger: says which data a sample is; it may grow while this is used.
        datasets: dataset name → prefix, for every dataset that samples are asked of.
        cache: where the orders of large datasets are kept.
        policies: dataset name → which labels count.
        digests: dataset name → digest of its `.idx`, where it is known.
    """

    def __init__(
        self,
        ledger: Ledger,
        datasets: Mapping[str, Path],
        cache: IndexCache | None = None,
        policies: Mapping[str, LossPolicy] | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        self.ledger, self.prefixes = ledger, dict(datasets)
        self.cache, self.policies, self.digests = cache, dict(policies or {}), dict(digests or {})
        self._datasets: dict[str, IndexedTokens] = {}
        self._indices: OrderedDict[tuple[int, str], SequenceIndex] = OrderedDict()

    def dataset(self, name: str) -> IndexedTokens:
        """A dataset, opened once. Raises `UserError` for one that can't be opened, or has lost its mask."""
        if name not in self._datasets:
            files = DatasetFiles(self.prefixes[name])
            files.refuse_lost_mask(files.manifest())
            self._datasets[name] = IndexedTokens(self.prefixes[name], self.digests.get(name))
        return self._datasets[name]

    def record(self, name: str) -> DatasetRecord:
        """What the ledger keeps of a dataset."""
        dataset = self.dataset(name)
        return DatasetRecord(str(dataset.prefix), dataset.digest(), dataset.document_count, dataset.indexed_tokens)

    def locate(self, sample: int) -> Source:
        """Where a sample comes from."""
        number = self.ledger.segment_of(sample)
        segment = self.ledger.segments[number]
        dataset, drawn = segment.shares.locate(sample - segment.first_sample)
        name = list(segment.weights)[dataset]
        return Source(number, name, drawn + read_before(segment, name))

    def index(self, segment: int, dataset: str) -> SequenceIndex:
        """The sequences of a dataset as a segment reads them."""
        entry = self.ledger.segments[segment]
        key = (entry.first_sample, dataset)
        found = self._indices.get(key)
        if found is None or (found.packing, found.seq_length) != (entry.packing, entry.seq_length):
            taken = entry.taken.get(dataset, [])
            history = taken[:-1] if read_before(entry, dataset) else taken
            found = SequenceIndex(
                self.dataset(dataset), entry.seq_length, self.ledger.seed, dataset, entry.packing, history, self.cache,
                self.policies.get(dataset),
            )  # fmt: skip
            self._indices[key] = found
        self._indices.move_to_end(key)
        while len(self._indices) > CACHED_INDICES:
            self._indices.popitem(last=False)
        return found

    def read_before(self, segment: int, dataset: str) -> int:
        """The number n of the first sequence of a dataset that a segment may draw."""
        return read_before(self.ledger.segments[segment], dataset)

    def sample(self, number: int) -> Sample:
        """A sample of the run."""
        source = self.locate(number)
        return self.index(source.segment, source.dataset).sample(source.n)

    def spans(self, number: int) -> tuple[str, list[Span]]:
        """The dataset of a sample and the pieces of documents that it is made of."""
        source = self.locate(number)
        return source.dataset, self.index(source.segment, source.dataset).spans(source.n)


def read_before(segment: Segment, dataset: str) -> int:
    """Sequences that were read of a dataset before a segment in the segment's own way, without another in between."""
    taken = segment.taken.get(dataset, [])
    same = bool(taken) and (taken[-1].packing, taken[-1].seq_length) == (segment.packing, segment.seq_length)
    return taken[-1].sequences if same else 0
