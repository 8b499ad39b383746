"""What dedup found: sizes of the clusters, similarities, and pairs to look at with their texts."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_native.corpus.report.figures import Check, Duplicates, Pair, Sample
from megatron_native.corpus.report.measures import Reservoir
from megatron_native.corpus.report.reading import Damage, Document, OnRead, records_in, side_files
from megatron_native.corpus.report.stages import COPIES, Place

DUPLICATES = "_duplicates"
_BINS = 50
_FARTHEST, _NEAR, _EXACT, _MOST_COPIED = 3, 4, 2, 8
_PAIR_CHARACTERS = 6000
_BLOCK = 1 << 16


class CopyFinder:
    """The copies that one dedup stage listed; `find_text` is then shown the documents that it read, and kept."""

    def __init__(self, place: Place, checks: list[Check], on_read: OnRead) -> None:
        self._place = place
        self._bins = [0] * _BINS
        self._listed: Counter[str] = Counter()
        self._most_copied: list[tuple[int, int, Sample]] = []
        self._seen = 0
        reservoirs: dict[str, Reservoir[dict[str, Any]]] = {
            "near copy": Reservoir(_NEAR),
            "exact copy": Reservoir(_EXACT),
        }
        farthest: list[tuple[float, int, dict[str, Any]]] = []
        keepers = _Hashes()
        files = side_files(place.folder, DUPLICATES)
        for file in files:
            for record in records_in(file, on_read):
                if isinstance(record, Damage):
                    checks.append(Check("list of duplicates", False, f"{record.file}: {record.reason}"))
                    continue
                reason, similarity = str(record.get("reason", "?")), record.get("similarity")
                self._listed[reason] += 1
                keepers.add(str(record.get("copy_of")))
                if reason in reservoirs:
                    reservoirs[reason].offer(str(record.get("id")), dict, record)
                if reason.startswith("near copy") and isinstance(similarity, int | float):
                    self._bins[min(_BINS - 1, max(0, int(similarity * _BINS + 1e-6)))] += 1
                    if "earlier_corpus" in record:  # its text is not among those that are read
                        continue
                    entry = (-float(similarity), -self._listed.total(), record)
                    (heapq.heappush if len(farthest) < _FARTHEST else heapq.heappushpop)(farthest, entry)
        self.has_list = bool(files)
        self._sizes = keepers.sizes()
        ordered = [record for _, _, record in sorted(farthest, key=lambda entry: (-entry[0], -entry[1]))]
        self._pairs: dict[tuple[str, Any, Any], Pair] = {}
        for record in (*ordered, *reservoirs["near copy"], *reservoirs["exact copy"]):
            similarity = record.get("similarity")
            pair = Pair(
                str(record.get("id")),
                str(record.get("copy_of")),
                str(record.get("reason", "?")),
                float(similarity) if isinstance(similarity, int | float) else None,
            )
            self._pairs.setdefault((pair.id, record.get("source"), record.get("offset")), pair)
        self._gone: dict[str, list[tuple[Any, Pair]]] = {}
        self._staying: dict[str, list[Pair]] = {}
        for (identifier, _, offset), pair in self._pairs.items():
            self._gone.setdefault(identifier, []).append((offset, pair))
            self._staying.setdefault(pair.copy_of, []).append(pair)
        self._check(checks)

    def _check(self, checks: list[Check]) -> None:
        said = {reason: count for reason, count in self._place.figures.dropped.items() if reason in COPIES}
        if self.has_list:
            found = {reason: count for reason, count in self._listed.items() if reason in COPIES}
            detail = (
                f"{self._place.name}: {sum(found.values()):,} copies listed, {sum(said.values()):,} dropped as copies"
            )
            checks.append(Check("list of duplicates", found == said, detail))
        elif said:
            checks.append(Check("list of duplicates", None, f"{self._place.name}: there is no list of duplicates"))

    def see_read(self, document: Document) -> None:
        """A document that the stage may have read."""
        for offset, pair in self._gone.get(document.id, ()):
            if pair.gone is None and offset in (None, document.offset):
                pair.gone = document.text[:_PAIR_CHARACTERS]

    def see_kept(self, document: Document, site: str) -> None:
        """A document that the stage kept."""
        for pair in self._staying.get(document.id, ()):
            if pair.stays is None:
                pair.stays = document.text[:_PAIR_CHARACTERS]
        copies = document.metadata.get("copies")
        if isinstance(copies, int) and not isinstance(copies, bool) and copies > 0:
            self._seen += 1
            if len(self._most_copied) < _MOST_COPIED or copies > self._most_copied[0][0]:
                text = document.text[:200].rsplit(None, 1)[0] if len(document.text) > 200 else document.text
                sample = Sample(document.id, text, source=site, note=f"{copies + 1:,}", cut=len(document.text) > 200)
                sample.language = str(document.metadata.get("lang", ""))
                entry = (copies, -self._seen, sample)
                (heapq.heappush if len(self._most_copied) < _MOST_COPIED else heapq.heappushpop)(
                    self._most_copied, entry
                )

    def figures(self, checks: list[Check]) -> Duplicates:
        """What was found."""
        recorded = self._place.manifest.get("clusters")
        found = Duplicates(self._place.name, listed=dict(self._listed))
        if isinstance(recorded, dict) and isinstance(recorded.get("sizes"), dict):
            found.sizes = {int(size): int(count) for size, count in recorded["sizes"].items()}
        elif self.has_list:
            found.sizes = self._sizes
        if found.sizes or self.has_list:
            found.clusters = sum(found.sizes.values())
            found.largest = max(found.sizes, default=0)
            copies = sum((size - 1) * count for size, count in found.sizes.items())
            dropped = sum(count for reason, count in self._place.figures.dropped.items() if reason in COPIES)
            detail = (
                f"{self._place.name}: {copies:,} copies in {found.clusters:,} clusters, {dropped:,} dropped as copies"
            )
            checks.append(Check("clusters", copies == dropped, detail))
        filled = [n for n, count in enumerate(self._bins) if count]
        if filled:
            found.similarity = [(n / _BINS, (n + 1) / _BINS, self._bins[n]) for n in range(min(filled), _BINS)]
        found.most_copied = [
            sample for _, _, sample in sorted(self._most_copied, key=lambda entry: (-entry[0], -entry[1]))
        ]
        found.pairs = sorted(self._pairs.values(), key=lambda pair: (pair.similarity or 0.0, pair.id))
        return found


class _Hashes:
    """Hashes of the ids that copies are copies of, 8 bytes each."""

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.uint64]] = []
        self._block: list[int] = []

    def add(self, identifier: str) -> None:
        self._block.append(xxhash.xxh3_64_intdigest(identifier.encode("utf-8", "surrogatepass")))
        if len(self._block) == _BLOCK:
            self._blocks.append(np.array(self._block, dtype=np.uint64))
            self._block = []

    def sizes(self) -> dict[int, int]:
        """Clusters by size, the document that stays among them."""
        whole = np.concatenate([*self._blocks, np.array(self._block, dtype=np.uint64)])
        _, copies = np.unique(whole, return_counts=True)
        return {int(size) + 1: int(count) for size, count in zip(*np.unique(copies, return_counts=True))}
