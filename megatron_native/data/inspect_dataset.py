"""What is in an indexed dataset: its facts, how long documents are, which ids they hold, their text.

Lengths come from the whole index, in blocks and exactly; ids from a sample of `.bin`, spread evenly, so that the answer
comes in seconds whatever the size.
"""

from __future__ import annotations

import json
import math
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_native.data.dataset_files import (
    DatasetFiles,
    document_id_lines,
    document_policy,
    document_start,
    document_starts,
    find_tokenizer,
    spread,
)
from megatron_native.data.indexed import IndexedTokens, verify_structure
from megatron_native.data.tokenizers import Tokenizer
from megatron_native.errors import UserError

SAMPLED_TOKENS = 1 << 24
"""Ids that are read for the range and the frequencies: 16.8 million."""
SAMPLED_BLOCK = 1 << 16
SAMPLED_DOCUMENTS = 4096
"""Documents whose last id is read."""
COUNTED_IDS = 1 << 22
"""Ids from here on are too large for any vocabulary and are not counted one by one."""
TOP_TOKENS = 20
SHORT_LENGTHS = 1 << 20
BAR_WIDTH = 40


@dataclass
class Lengths:
    """How many ids the documents have; all figures are exact.

    Attributes:
        documents, tokens, empty: how many.
        shortest, median, mean, p99, longest: of the documents that have ids.
        histogram: (shortest, longest, documents) of each bucket: 0, 1, 2–3, 4–7, ….
    """

    documents: int = 0
    tokens: int = 0
    empty: int = 0
    shortest: int = 0
    median: int = 0
    mean: float = 0.0
    p99: int = 0
    longest: int = 0
    histogram: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass
class Inspection:
    """All that is shown of a dataset.

    Attributes:
        prefix, dtype, sequences, bin_bytes, idx_bytes: of the files.
        lengths: of the documents.
        made: the manifest's facts: stage, created, tokenizer, what documents begin and end with; empty without one.
        sampled_tokens, lowest_id, highest_id: of the ids read.
        sampled_documents, ended: documents with ids looked at, and how many end with the separator (None: not known).
        separator_id: the document separator, or None.
        top: (id, times, token or None) of the most frequent ids in the sample.
        tokenizer: which tokenizer shows text, or why there is none.
    """

    prefix: str
    dtype: str
    sequences: int
    bin_bytes: int
    idx_bytes: int
    lengths: Lengths
    made: dict[str, Any]
    sampled_tokens: int
    lowest_id: int | None
    highest_id: int | None
    sampled_documents: int
    ended: int | None
    separator_id: int | None
    top: list[tuple[int, int, str | None]]
    tokenizer: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def summary(self) -> str:
        """The facts, readable."""
        lengths = self.lengths
        rows = [
            ("documents", f"{lengths.documents:,}, {lengths.empty:,} of them empty"),
            ("sequences", f"{self.sequences:,}"),
            ("tokens", f"{lengths.tokens:,} ({self.dtype}; .bin {self.bin_bytes:,} bytes, .idx {self.idx_bytes:,} bytes)"),
        ]
        rows += [(name, str(value)) for name, value in self.made.items()]
        rows.append(("shown by", self.tokenizer))
        rows.append(("tokens a document", f"min {lengths.shortest:,}, median {lengths.median:,}, mean {lengths.mean:,.1f}, "
                                          f"p99 {lengths.p99:,}, max {lengths.longest:,} (without the empty ones)"))
        of_all = "all" if self.sampled_tokens == lengths.tokens else f"{self.sampled_tokens:,} sampled"
        if self.lowest_id is not None:
            rows.append(("ids", f"{self.lowest_id:,} … {self.highest_id:,} ({of_all} tokens)"))
        if self.ended is not None and self.sampled_documents:
            rows.append(("end of documents", f"{self.ended / self.sampled_documents:.1%} of {self.sampled_documents:,} end "
                                             f"with the separator {self.separator_id}"))
        width = max(len(name) for name, _ in rows)
        lines = [self.prefix, *(f"  {name:<{width}}  {value}" for name, value in rows)]
        lines += ["", "tokens a document", *_bars(lengths.histogram)]
        if self.top:
            lines += ["", f"most frequent ids ({of_all} tokens)"]
            lines += [f"  {index:>8}  {times:>12,}  {shown(token) if token is not None else ''}"
                      for index, times, token in self.top]
        return "\n".join(lines)


@dataclass(frozen=True)
class DocumentView:
    """One document: number, id (or None), how many ids it has, those read of them, and their text (or None)."""

    number: int
    id: str | None
    length: int
    token_ids: list[int]
    text: str | None


class DatasetReader:
    """A dataset opened for looking at, with the tokenizer that fits it where there is one.

    Raises:
        UserError: a dataset that is missing or damaged; a tokenizer given that can't be opened.
    """

    def __init__(self, prefix: str | Path, tokenizer: Path | None = None) -> None:
        self.files = DatasetFiles(Path(prefix))
        self.dataset = verify_structure(self.files.prefix)
        self.manifest = self.files.manifest()
        self.tokenizer, self.tokenizer_remark = find_tokenizer(self.manifest, tokenizer)

    def inspect(self) -> Inspection:
        """The dataset's facts."""
        dataset, tokenizer = self.dataset, self.tokenizer
        separator = document_policy(self.manifest).separator_id
        if separator is None and tokenizer is not None and tokenizer.eod_token is not None:
            separator = tokenizer.eod_id
        counts, sampled = _count_ids(dataset)
        looked, ended = _count_ends(dataset, separator)
        return Inspection(
            prefix=str(self.files.prefix), dtype=dataset.dtype.name, sequences=dataset.sequence_count,
            bin_bytes=self.files.bin.stat().st_size, idx_bytes=self.files.idx.stat().st_size,
            lengths=measure_lengths(dataset), made=_made(self.manifest), sampled_tokens=sampled,
            lowest_id=min(counts, default=None), highest_id=max(counts, default=None), sampled_documents=looked, ended=ended,
            separator_id=separator, top=self._top(counts), tokenizer=self.tokenizer_remark,
        )  # fmt: skip

    def head(self, count: int, width: int) -> Iterator[DocumentView]:
        """The first documents, of each only as much as fills `width` columns."""
        ids = self._ids()
        for number in range(min(count, self.dataset.document_count)):
            yield self._view(number, next(ids, None), at_most=4 * width + 8)

    def find(self, wanted: str) -> DocumentView:
        """One document whole: by its number, or by its id (`id:…` for an id that is a number).

        Raises:
            UserError: there is no such document.
        """
        if wanted.isascii() and wanted.isdecimal():
            number = int(wanted)
            if number >= self.dataset.document_count:
                raise UserError(
                    f"--document {wanted}: the dataset has {self.dataset.document_count:,} documents, numbered from 0. An id "
                    f"that is a number is written id:{wanted}."
                )
            return self._view(number, next((name for at, name in enumerate(self._ids()) if at == number), None))
        name = wanted.removeprefix("id:")
        if not self.files.ids.is_file():
            raise UserError(f"--document {wanted}: {self.files.ids} is not there, so documents are found by number only.")
        for number, found in enumerate(self._ids()):
            if found == name and number < self.dataset.document_count:
                return self._view(number, found)
        raise UserError(f"--document {wanted}: {self.files.ids} has no document with the id {name!r}.")

    def _ids(self) -> Iterator[str]:
        if self.files.ids.is_file():
            for line in document_id_lines(self.files.ids):
                yield str(json.loads(line))

    def _view(self, number: int, name: str | None, at_most: int | None = None) -> DocumentView:
        start, stop = document_start(self.dataset, number), document_start(self.dataset, number + 1)
        ids = self.dataset.read(start, stop - start if at_most is None else min(stop - start, at_most))
        return DocumentView(number, name, stop - start, ids.tolist(), _decode(self.tokenizer, ids.tolist()))

    def _top(self, counts: Counter[int]) -> list[tuple[int, int, str | None]]:
        tokenizer = self.tokenizer
        return [(index, times, None if tokenizer is None else _decode(tokenizer, [index]))
                for index, times in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP_TOKENS]]


def measure_lengths(dataset: IndexedTokens) -> Lengths:
    """How long the documents are. Memory: a counter for each length below a million, and for each longer one there is."""
    short, long = np.zeros(SHORT_LENGTHS, dtype=np.int64), Counter[int]()
    for _, starts in document_starts(dataset):
        lengths = np.diff(starts)
        short += np.bincount(lengths[lengths < SHORT_LENGTHS], minlength=SHORT_LENGTHS)
        long.update(lengths[lengths >= SHORT_LENGTHS].tolist())
    sizes = np.concatenate([np.flatnonzero(short), np.array(sorted(long), dtype=np.int64)])
    times = np.concatenate([short[short > 0], np.array([long[size] for size in sorted(long)], dtype=np.int64)])
    found = Lengths(documents=int(times.sum()), tokens=int((sizes * times).sum()), empty=int(short[0]))
    found.histogram = _histogram(sizes, times)
    sizes, times = sizes[sizes > 0], times[sizes > 0]
    if len(sizes):
        ranks, full = np.cumsum(times), int(times.sum())
        found.shortest, found.longest, found.mean = int(sizes[0]), int(sizes[-1]), found.tokens / full
        # nearest rank: the smallest length that at least this share of the documents does not exceed
        found.median, found.p99 = (int(sizes[np.searchsorted(ranks, math.ceil(full * share / 100))]) for share in (50, 99))
    return found


def _histogram(sizes: NDArray[np.int64], times: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    buckets: Counter[int] = Counter()
    for size, number in zip(sizes.tolist(), times.tolist()):
        buckets[size.bit_length()] += number
    if not buckets:
        return []
    used = range(min(buckets), max(buckets) + 1)
    return [(2 ** (bits - 1) if bits else 0, 2**bits - 1, buckets[bits]) for bits in used]


def _bars(histogram: list[tuple[int, int, int]]) -> list[str]:
    most = max((number for *_, number in histogram), default=1)
    names = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high, _ in histogram]
    width = max(map(len, names), default=0)
    return [
        f"  {name:>{width}}  {'█' * math.ceil(BAR_WIDTH * number / most):<{BAR_WIDTH}}  {number:,}"
        for name, (_, _, number) in zip(names, histogram)
    ]


def _count_ids(dataset: IndexedTokens) -> tuple[Counter[int], int]:
    """How often each id occurs in evenly spread blocks, or in all of a small dataset; and how many were read."""
    counts: Counter[int] = Counter()
    ordinary, read = np.zeros(0, dtype=np.int64), 0
    blocks = math.ceil(dataset.token_count / SAMPLED_BLOCK)
    for block in spread(blocks, SAMPLED_TOKENS // SAMPLED_BLOCK):
        start = block * SAMPLED_BLOCK
        ids = dataset.read(start, min(SAMPLED_BLOCK, dataset.token_count - start))
        read += len(ids)
        possible = (ids >= 0) & (ids.astype(np.int64) < COUNTED_IDS)
        found = np.bincount(ids[possible])
        if len(found) > len(ordinary):
            found, ordinary = ordinary, found
        ordinary[: len(found)] += found
        counts.update(ids[~possible].tolist())
    counts.update({int(index): int(ordinary[index]) for index in np.flatnonzero(ordinary)})
    return counts, read


def _count_ends(dataset: IndexedTokens, separator: int | None) -> tuple[int, int | None]:
    looked = ended = 0
    for number in spread(dataset.document_count, SAMPLED_DOCUMENTS):
        start, stop = document_start(dataset, number), document_start(dataset, number + 1)
        if stop > start:
            looked += 1
            ended += int(dataset.read(stop - 1, 1)[0]) == separator
    return looked, None if separator is None else ended


def _made(manifest: dict[str, Any] | None) -> dict[str, Any]:
    if manifest is None:
        return {}
    version = manifest["software"]["megatron-native"]
    facts = {"made by": f"{manifest['stage']}, {manifest['created']}, megatron-native {version}"}
    if tokenizer := manifest.get("tokenizer"):
        facts["tokenizer"] = f"{tokenizer['model']} ({tokenizer['vocab_size']:,} ids, hash {tokenizer['hash'][:16]}…)"
    if (learned := manifest["counts"].get("learned_tokens")) is not None:
        facts["mask"] = f"{learned:,} of {manifest['tokens']:,} tokens are learned"
    elif policy := manifest.get("document_policy"):
        begin, end = (policy.get(place) or "their text" for place in ("begin", "end"))
        facts["begin and end"] = f"documents begin with {begin} and end with {end}"
    return facts


def _decode(tokenizer: Tokenizer | None, ids: list[int]) -> str | None:
    if tokenizer is None:
        return None
    return tokenizer.decode([index for index in ids if 0 <= index < tokenizer.vocab_size])


def shown(text: str, keep_lines: bool = False) -> str:
    """Text that is safe on a terminal: control characters as pictures (␛, ␊); Arabic and its marks as they are."""
    kept = "\n\t" if keep_lines else ""
    pictures = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in kept} | {0x7F: "␡"}
    return text.translate(pictures | dict.fromkeys(range(128, 160), "�"))


def cut_to_width(text: str, width: int) -> str:
    """As much of a line as fits into `width` columns: marks take none, East Asian wide characters two."""
    used = 0
    for at, character in enumerate(text):
        if unicodedata.category(character) in ("Mn", "Me", "Cf"):
            continue
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > width - 1 and at + 1 < len(text):
            return text[:at] + "…"
    return text


def terminal_width() -> int:
    """Columns of the terminal, 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns
