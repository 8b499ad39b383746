"""The dedup stage: exact and near copies out, over all inputs at once, with the layout of the inputs kept.

Two passes. The first reads every document's matching view into a digest and a MinHash signature (about 500 bytes a
document in memory); the second writes what stays. Of a group of copies the longest text stays, of equally long ones
the first in the order of the inputs; `duplicates.jsonl` says for every other one which it is a copy of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megatron_native.corpus.arabic import fold
from megatron_native.corpus.minhash import Components, MinHasher, MinHashSettings, near_copies
from megatron_native.corpus.readers import Document, Refusal, expand_inputs, read_documents
from megatron_native.corpus.stage import (
    QUARANTINE,
    Account,
    PartResult,
    ShardWriter,
    StageResult,
    common_root,
    run_stage,
    settings_of,
)
from megatron_native.progress import progress

EXACT, NEAR, EMPTY = "exact copy", "near copy", "empty"
DUPLICATES = "duplicates.jsonl"


@dataclass(frozen=True)
class DedupSettings:
    """What decides the output of dedup, and so belongs into its manifest."""

    shingle_words: int = 5
    bands: int = 14
    rows: int = 8
    threshold: float = 0.8
    text_key: str = "text"
    id_key: str = "id"
    text_unit: str = "file"
    max_line_bytes: int = 64 << 20

    def minhash(self) -> MinHashSettings:
        """The part that is about signatures."""
        return MinHashSettings(self.shingle_words, self.bands, self.rows, self.threshold)


@dataclass(frozen=True)
class _Copy:
    """Why a document leaves."""

    reason: str
    kept_id: str
    similarity: float


def dedup(inputs: Sequence[str], output: Path, settings: DedupSettings) -> StageResult:
    """Deduplicate the documents of `inputs` (files, globs, stage folders) into the stage folder `output`.

    Raises:
        UserError: an input or the output folder can't be used.
    """
    settings.minhash().check()
    paths = expand_inputs(inputs)
    stage = _DedupStage(paths, output, settings)
    return run_stage(
        "dedup", paths, output, settings_of(settings), stage.work, 1, ("numpy", "xxhash", "regex", "zstandard"),
        stage.leave_duplicates,
    )  # fmt: skip


class _DedupStage:
    def __init__(self, paths: Sequence[Path], output: Path, settings: DedupSettings) -> None:
        self._paths, self._output, self._settings = paths, output, settings
        self._root = common_root(paths)
        self._targets = Counter(_target_of(path, self._root) for path in paths)
        self._copies: dict[int, _Copy] | None = None
        self._first_number: dict[Path, int] = {}
        self._ids: list[str] = []

    def work(self, number: int, path: Path, output: Path) -> PartResult:
        """Write what stays of one file."""
        copies = self._find_copies()
        account = Account()
        target = _target_of(path, self._root)
        if self._targets[target] > 1:
            target = target.with_name(f"{path.name.replace('.', '_')}.jsonl.zst")
        document_number = self._first_number[path]
        with ShardWriter(output / target) as kept, ShardWriter(output / QUARANTINE / f"part-{number:05d}.jsonl.zst") as refused:
            for record in self._read(path):
                account.read += 1
                if isinstance(record, Refusal):
                    account.quarantined[record.reason] += 1
                    refused.write(record)
                    continue
                size = len(record.text.encode())
                account.bytes_read += size
                copy = copies.get(document_number)
                document_number += 1
                if copy is not None:
                    account.dropped[copy.reason] += 1
                    continue
                account.kept += 1
                account.kept_by_language[str(record.metadata.get("lang", "?"))] += 1
                account.bytes_kept += size
                kept.write({"text": record.text, "id": record.id, "metadata": record.metadata})
        outputs = [(str(w.path.relative_to(output)), w.records) for w in (kept, refused) if w.records]
        return PartResult(account, outputs)

    def leave_duplicates(self) -> dict[str, Any]:
        """Write `duplicates.jsonl` and say how the groups are."""
        import msgspec

        copies = self._find_copies()
        lines = [
            msgspec.json.encode({
                "id": self._ids[number], "copy_of": copy.kept_id, "reason": copy.reason,
                "similarity": round(copy.similarity, 4),
            })
            for number, copy in sorted(copies.items())
            if copy.reason != EMPTY
        ]  # fmt: skip
        partial = self._output / (DUPLICATES + ".partial")
        partial.write_bytes(b"".join(line + b"\n" for line in lines))
        partial.replace(self._output / DUPLICATES)
        return {"duplicates": DUPLICATES}

    def _read(self, path: Path) -> Iterator[Document | Refusal]:
        settings = self._settings
        return read_documents(path, settings.text_key, settings.id_key, settings.max_line_bytes, settings.text_unit)

    def _find_copies(self) -> dict[int, _Copy]:
        """Which documents leave, by their number over all inputs; worked out once."""
        if self._copies is not None:
            return self._copies
        minhash = self._settings.minhash()
        hasher = MinHasher(minhash)
        lengths: list[int] = []
        empty: list[int] = []
        first_of_digest: dict[bytes, int] = {}
        signatures: list[np.ndarray] = []
        numbers: list[int] = []
        groups_of_exact: list[tuple[int, int]] = []
        with progress("dedup: signatures", unit="documents") as bar:
            for path in self._paths:
                self._first_number[path] = len(self._ids)
                for record in self._read(path):
                    if isinstance(record, Refusal):
                        continue
                    number = len(self._ids)
                    self._ids.append(record.id)
                    lengths.append(len(record.text))
                    folded = fold(record.text)
                    bar.advance()
                    # Text of signs alone folds to nothing: then the signs themselves are compared.
                    compared = folded or "\0" + record.text.strip()
                    if not record.text.strip():
                        empty.append(number)
                        continue
                    first = first_of_digest.setdefault(xxhash.xxh3_128_digest(compared.encode()), number)
                    if first != number:
                        groups_of_exact.append((first, number))
                        continue
                    signatures.append(hasher.signature(compared))
                    numbers.append(number)
        exact, near = Components(len(self._ids)), Components(len(self._ids))
        for first, number in groups_of_exact:
            exact.join(first, number)
            near.join(first, number)
        if signatures:
            for one, other, _ in near_copies(np.stack(signatures), minhash):
                near.join(numbers[one], numbers[other])
        row_of = {number: row for row, number in enumerate(numbers)}
        self._copies = self._decide(exact, near, lengths, set(empty), signatures, row_of)
        for number in empty:
            self._copies[number] = _Copy(EMPTY, "", 0.0)
        return self._copies

    def _decide(
        self, exact: Components, near: Components, lengths: list[int], empty: set[int],
        signatures: list[np.ndarray], row_of: dict[int, int],
    ) -> dict[int, _Copy]:  # fmt: skip
        groups: dict[int, list[int]] = {}
        for number in range(len(lengths)):
            if number not in empty:
                groups.setdefault(near.find(number), []).append(number)
        copies: dict[int, _Copy] = {}
        for members in groups.values():
            keep = min(members, key=lambda number: (-lengths[number], number))
            for number in members:
                if number == keep:
                    continue
                if exact.find(number) == exact.find(keep):
                    copies[number] = _Copy(EXACT, self._ids[keep], 1.0)
                    continue
                # An exact copy of a near copy has the signature of its first occurrence.
                ours, kept = (signatures[row_of[exact.find(item)]] for item in (number, keep))
                copies[number] = _Copy(NEAR, self._ids[keep], float((ours == kept).mean()))
        return copies


def _target_of(path: Path, root: Path) -> Path:
    """Place of a file's documents below the output: the place of the file (not of what it may link to) below `root`."""
    return path.parent.resolve().relative_to(root) / f"{path.name.split('.')[0]}.jsonl.zst"

