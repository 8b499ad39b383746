"""A damaged indexed dataset made usable again, with the loss said exactly.

A `.bin` that is shorter than its index says (an interrupted copy, a full disk) is cut back to its last whole document. A
missing or damaged `.idx` is made again from `.bin`, where documents end with a known id. The result is written as a new
dataset, unless it is asked for in place; then every step leaves something that the same command can go on from.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_native import manifest as manifests
from megatron_native.data.dataset_files import (
    DTYPE_NAMES,
    TOKENS_AT_A_TIME,
    DatasetFiles,
    IndexRegions,
    copy_bytes,
    count_document_ids,
    damaged_file,
    document_id_lines,
    document_policy,
    document_starts,
)
from megatron_native.data.indexed import BLOCK, DTYPES, HEADER_BYTES, MAGIC, IndexedTokens, verify_structure
from megatron_native.errors import UserError

STAGE = "repair"
LOST = "lost in repair"
"""The reason under which the account lists documents that could not be saved."""
SHOWN_IDS = 10


@dataclass
class Repair:
    """What was done, and what was lost.

    Attributes:
        prefix: the dataset that is whole now.
        damage: what was wrong, or None where nothing was.
        documents, tokens: what the result has.
        lost_documents: documents that are gone; None where their number is not known, as no manifest says it.
        lost_tokens: ids that the result lacks, of those the index (or, for a new index, `.bin`) described.
        cut_bytes: bytes of `.bin` that belong to no whole document and were left out.
        first_lost_ids: of the lost documents, the first few.
        lost_ids_file: where all of them are, or None.
        remarks: what else is to be known.
    """

    prefix: str
    damage: str | None = None
    documents: int = 0
    tokens: int = 0
    lost_documents: int | None = 0
    lost_tokens: int = 0
    cut_bytes: int = 0
    first_lost_ids: list[str] = field(default_factory=list)
    lost_ids_file: str | None = None
    remarks: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """The account, readable."""
        if self.damage is None:
            return f"{self.prefix}: nothing to repair; megatron-native verify looks further"
        lost = "an unknown number of" if self.lost_documents is None else f"{self.lost_documents:,}"
        lines = [
            f"{self.damage}",
            f"{self.prefix}: {self.documents:,} documents, {self.tokens:,} tokens are whole",
            f"  lost: {lost} documents, {self.lost_tokens:,} tokens; {self.cut_bytes:,} bytes of .bin left out",
        ]
        if self.first_lost_ids:
            shown = ", ".join(self.first_lost_ids)
            more = "" if self.lost_documents == len(self.first_lost_ids) else ", …"
            lines.append(f"  their ids: {shown}{more} (all in {self.lost_ids_file})")
        return "\n".join(lines + [f"  NOTE: {remark}" for remark in self.remarks])


def repair_dataset(
    prefix: str | Path, output_prefix: str | Path | None = None, in_place: bool = False, eod_id: int | None = None,
    dtype: str | None = None,
) -> Repair:
    """Repair the dataset `prefix` into `output_prefix` (default: `PREFIX_repaired`), or in place.

    `eod_id` (the id every document ends with) and `dtype` are what a new index is made by, where no manifest says them.

    Raises:
        UserError: nothing there to repair from, an output that exists, what a new index needs is not known, no space.
    """
    if in_place and output_prefix is not None:
        raise UserError("--in-place and --output-prefix exclude each other: choose one.")
    files = DatasetFiles(Path(prefix))
    if not files.bin.is_file():
        raise UserError(f"{files.bin} is not there, and it alone holds the ids: there is nothing to repair from.")
    if files.mask.exists() or files.recorded_output(files.mask, files.manifest()) is not None:
        raise UserError(
            f"{files.prefix} is a masked dataset, of which a part without its exact mask would teach the wrong tokens: it is "
            "not repaired. Copy it again, or prepare it again from its conversations."
        )
    try:
        verify_structure(files.prefix)
    except UserError as error:
        damaged, damage = damaged_file(error, files), str(error)
    else:
        return Repair(str(files.prefix))
    target = files if in_place else DatasetFiles(Path(output_prefix or f"{files.prefix}_repaired"))
    if not in_place:
        _refuse_output(files, target)
    kept = _CutBack(files) if damaged == files.bin else _NewIndex(files, eod_id, dtype)
    return _Rescue(files, target, kept, damage).write()


def _refuse_output(files: DatasetFiles, target: DatasetFiles) -> None:
    for path in (target.bin, target.idx):
        if path.exists():
            raise UserError(f"{path} is there already. Choose another --output-prefix, or move it away.")
    target.prefix.parent.mkdir(parents=True, exist_ok=True)
    needed, free = files.bin.stat().st_size, shutil.disk_usage(target.prefix.parent).free
    if free < needed:
        raise UserError(
            f"{target.prefix.parent} has {free / 1e9:,.2f} GB free, and the repaired copy needs {needed / 1e9:,.2f} GB. Choose "
            "an --output-prefix on another disk, or --in-place."
        )


class _CutBack:
    """What an index that is whole says of a `.bin` that has another size.

    Attributes:
        dtype, documents, sequences, tokens: of the whole documents.
        kept: those of the documents that have ids.
        lost_documents, lost_tokens: what the index describes beyond them.
    """

    how = "cut back to the last whole document"

    def __init__(self, files: DatasetFiles) -> None:
        self._dataset = dataset = IndexedTokens(files.prefix)
        self.dtype = np.dtype(dataset.dtype.name)
        available = files.bin.stat().st_size // self.dtype.itemsize
        self.documents = self.tokens = self.kept = described = 0
        for first, starts in document_starts(dataset):
            described = int(starts[-1])
            whole = int(np.searchsorted(starts[1:], available, side="right"))
            if self.documents == first:  # no document before this block was cut
                self.documents += whole
                self.tokens = int(starts[whole])
                self.kept += int(np.count_nonzero(np.diff(starts[: whole + 1])))
        self.sequences = int(dataset.document_boundaries[self.documents])
        self.lost_documents = dataset.document_count - self.documents
        self.lost_tokens = described - self.tokens
        self.documents_before: int | None = dataset.document_count

    def write_index(self, path: Path) -> None:
        """The `.idx` of the whole documents, from the old one."""
        with IndexRegions(path, self.dtype, self.sequences, self.documents) as index:
            token = 0
            for start in range(0, self.sequences, BLOCK):
                stop = min(start + BLOCK, self.sequences)
                token = index.write_sequences(start, self._dataset.sequence_lengths[start:stop], token)
            for start in range(0, self.documents, BLOCK):
                stop = min(start + BLOCK, self.documents)
                index.write_ends(start, self._dataset.document_boundaries[start + 1 : stop + 1])


class _NewIndex:
    """Documents found in `.bin` by the id they end with: one sequence each, none of them empty.

    Attributes: as `_CutBack`; `lost_documents` is 0, as what the index described is not known.
    """

    how = "a new index, by the id that documents end with"

    def __init__(self, files: DatasetFiles, eod_id: int | None, dtype: str | None) -> None:
        manifest = files.manifest()
        self._path = files.bin
        end_id = document_policy(manifest).end_id if eod_id is None else eod_id
        if end_id is None:
            raise UserError(
                f"{files.idx} can only be made again from an id that every document ends with, and no manifest says one: "
                "give --eod-id, if the documents were tokenized with --append-eod."
            )
        self.end_id = end_id
        self.dtype = self._find_dtype(files, manifest, dtype)
        self.tokens = self.documents = 0
        for ends in self._ends():
            self.documents += len(ends)
            self.tokens = int(ends[-1])
        if not self.documents:
            raise UserError(
                f"the id {end_id} occurs nowhere in {files.bin} (read as {self.dtype}): it is not what documents end with "
                "there, or --dtype is another one."
            )
        self.sequences = self.kept = self.documents
        self.lost_documents = 0
        self.lost_tokens = files.bin.stat().st_size // self.dtype.itemsize - self.tokens
        self.documents_before: int | None = (manifest or {}).get("documents")

    def write_index(self, path: Path) -> None:
        """The new `.idx`."""
        with IndexRegions(path, self.dtype, self.sequences, self.documents) as index:
            document = token = 0
            for ends in self._ends():
                index.write_sequences(document, np.diff(ends, prepend=token), token)
                index.write_ends(document, np.arange(document + 1, document + len(ends) + 1))
                document, token = document + len(ends), int(ends[-1])

    def _ends(self) -> Iterator[NDArray[np.int64]]:
        """Where documents end, in tokens, in blocks that are not empty."""
        at = 0
        with open(self._path, "rb") as file:
            while raw := file.read(TOKENS_AT_A_TIME * self.dtype.itemsize):
                ids = np.frombuffer(raw[: len(raw) // self.dtype.itemsize * self.dtype.itemsize], dtype=self.dtype)
                ends = np.flatnonzero(ids == self.end_id) + (at + 1)
                at += len(ids)
                if len(ends):
                    yield ends

    @staticmethod
    def _find_dtype(files: DatasetFiles, manifest: dict[str, Any] | None, chosen: str | None) -> np.dtype[Any]:
        """The one asked for, the manifest's, or that of a header that can still be read."""
        name = chosen or (manifest or {}).get("dtype")
        if name is None and files.idx.is_file():
            with open(files.idx, "rb") as file:
                header = file.read(HEADER_BYTES)
            code = header[len(MAGIC) + 8] if header.startswith(MAGIC) and len(header) > len(MAGIC) + 8 else 0
            name = np.dtype(DTYPES[code]).name if code in DTYPES else None
        if name not in DTYPE_NAMES:
            raise UserError(
                f"how many bytes an id of {files.bin} has is not known, as neither a manifest nor {files.idx.name} says it: "
                "give --dtype (uint16 for vocabularies below 65,500 ids, else int32)."
            )
        return np.dtype(name)


class _Rescue:
    """What is whole, on its way into the target."""

    def __init__(self, files: DatasetFiles, target: DatasetFiles, kept: _CutBack | _NewIndex, damage: str) -> None:
        self.files, self.target, self.kept = files, target, kept
        self.in_place = files is target
        self.bytes = kept.tokens * kept.dtype.itemsize
        before = kept.documents_before
        lost = None if before is None else max(0, before - kept.documents)
        cut = files.bin.stat().st_size - self.bytes
        self.repair = Repair(str(target.prefix), damage, kept.documents, kept.tokens, lost, kept.lost_tokens, cut)

    def write(self) -> Repair:
        """Ids and manifest, then `.bin`, and `.idx` last: until it is there, the damage is, and the same command goes on."""
        old, target, folder = self.files.manifest(), self.target, self.target.prefix.parent
        inputs = [manifests.file_entry(path, folder) for path in (self.files.bin, self.files.idx) if path.is_file()]
        index = target.idx.with_name(target.idx.name + ".partial")
        self.kept.write_index(index)
        self._write_bin()
        outputs = [target.ids] if self._write_ids(old) else []
        outputs += [target.lost_ids] if target.lost_ids.exists() else []
        entries = [manifests.file_entry(path, folder) for path in (target.bin, *outputs)]
        entries.append({**manifests.file_entry(index, folder), "path": target.idx.name})
        manifests.write_json(target.manifest_path, self._manifest(old, inputs, entries, self._lineage(old)))
        os.replace(index, target.idx)
        return self.repair

    def _write_bin(self) -> None:
        if self.in_place:
            os.truncate(self.target.bin, self.bytes)
            return
        partial = self.target.bin.with_name(self.target.bin.name + ".partial")
        with open(self.files.bin, "rb", buffering=0) as source, open(partial, "wb", buffering=0) as out:
            copy_bytes(source.fileno(), 0, out.fileno(), 0, self.bytes, self.files.bin)
            os.fsync(out.fileno())
        os.replace(partial, self.target.bin)

    def _write_ids(self, old: dict[str, Any] | None) -> bool:
        """The ids of the documents that are whole, and those of the lost; False where they can't be told apart."""
        reason = self._ids_unusable(old)
        if reason is not None:
            if reason:
                self.repair.remarks.append(f"{self.files.ids.name} is left out: {reason}")
            if self.in_place and self.target.ids.exists():
                os.replace(self.target.ids, self.target.ids.with_name(self.target.ids.name + ".before-repair"))
            return False
        kept, lost = (path.with_name(path.name + ".partial") for path in (self.target.ids, self.target.lost_ids))
        number_lost = 0
        with _ZstdLines(kept) as kept_lines, _ZstdLines(lost) as lost_lines:
            for number, line in enumerate(document_id_lines(self.files.ids)):
                if number < self.kept.documents:
                    kept_lines.write(line)
                    continue
                lost_lines.write(line)
                number_lost += 1
                if number_lost <= SHOWN_IDS:
                    self.repair.first_lost_ids.append(line.decode().strip().strip('"'))
        if number_lost:
            os.replace(lost, self.target.lost_ids)
            self.repair.lost_ids_file = str(self.target.lost_ids)
        else:
            lost.unlink()
        os.replace(kept, self.target.ids)
        return True

    def _ids_unusable(self, old: dict[str, Any] | None) -> str | None:
        """Why the table of ids can't be carried over ("" where there is none); None where it can."""
        if not self.files.ids.is_file():
            return ""
        try:
            lines = count_document_ids(self.files.ids)
        except UserError as error:
            return str(error)
        before = self.kept.documents_before
        if lines not in (before, self.kept.documents):  # the latter after a repair in place that was broken off
            return f"it has {lines:,} ids, which is not the number of documents"
        if isinstance(self.kept, _CutBack):
            return None
        counts = (old or {}).get("counts", {})
        empty = (before or 0) - counts.get("kept", before or 0)
        if empty > 0:
            return f"{empty:,} empty documents had ids and left no trace in .bin, so which id is whose is not known"
        if counts.get("separators_from_text") or self.kept.documents > lines:
            return "separators stand inside documents and cut them, so which id is whose is not known"
        return None

    def _lineage(self, old: dict[str, Any] | None) -> list[dict[str, Any]]:
        """The manifest before the repair; in place, it is kept under another name."""
        if old is None:
            return []
        path = self.files.manifest_path
        if self.in_place:
            backup = path.with_name(f"{self.files.prefix.name}.manifest.before-repair.json")
            if not backup.exists():
                shutil.copyfile(path, backup)
            path = backup
        return [{**manifests.file_entry(path, self.target.prefix.parent), "stage": old["stage"]}]

    def _manifest(
        self, old: dict[str, Any] | None, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]],
        lineage: list[dict[str, Any]],
    ) -> dict[str, Any]:
        kept, repair, known = self.kept, self.repair, old or {}
        end_id = kept.end_id if isinstance(kept, _NewIndex) else None
        return manifests.build_manifest(
            STAGE, {"how": kept.how, "in_place": self.in_place, "eod_id": end_id}, inputs, outputs,
            self._counts(known.get("counts")), ("numpy",),
            tokenizer=known.get("tokenizer"), document_policy=known.get("document_policy"), dtype=kept.dtype.name,
            id_range=known.get("id_range"), tokens=kept.tokens, documents=kept.documents, lineage=lineage,
            repair={
                "damage": repair.damage, "lost_documents": repair.lost_documents, "lost_tokens": repair.lost_tokens,
                "cut_bytes": repair.cut_bytes, "remarks": repair.remarks,
            },
        )

    def _counts(self, old: dict[str, Any] | None) -> dict[str, Any]:
        """The old account with the lost documents in it; without one, an account of the index alone."""
        kept = self.kept
        if old is None or kept.kept > old["kept"]:
            empty, lost = kept.documents - kept.kept, self.repair.lost_documents or 0
            dropped = {reason: number for reason, number in (("empty", empty), (LOST, lost)) if number}
            return {"read": kept.documents + lost, "kept": kept.kept, "dropped": dropped, "quarantined": {}}
        lost = old["kept"] - kept.kept
        dropped = dict(old["dropped"])
        if lost:
            dropped[LOST] = dropped.get(LOST, 0) + lost
        # of the other numbers, what was nothing in the whole is nothing in a part; the rest is no longer known
        zeros = {key: 0 for key, value in old.items() if value == 0 and key not in ("read", "kept")}
        return {**zeros, "read": old["read"], "kept": kept.kept, "dropped": dropped, "quarantined": old["quarantined"]}


class _ZstdLines:
    """Lines into a zstd file; a context manager."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = open(path, "wb")  # noqa: SIM115 — closed on exit
        self._stream: Any = zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(self._file)

    def __enter__(self) -> _ZstdLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()  # closes the file too

    def write(self, line: bytes) -> None:
        """Append a line, which ends in its newline."""
        self._stream.write(line)
