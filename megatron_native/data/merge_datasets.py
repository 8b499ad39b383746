"""Indexed datasets joined into one, in constant memory whatever their number, bit for bit as megatron-core joins them.

Every input is surveyed first (structure, dtype, tokenizer, document ids), so that where each piece goes is known before
a byte is written. Then the index is written at offsets, and `.bin` is copied at offsets by several threads, inside the
kernel where the file system can. At last the result is read once: its checksum, and that of each piece as it arrived,
which must be the one that the input's manifest recorded. Killed at any moment, the same command begins anew.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megatron_native import manifest as manifests
from megatron_native.data.dataset_files import (
    TOKENS_AT_A_TIME,
    DatasetFiles,
    IndexRegions,
    copy_bytes,
    find_datasets,
    index_bytes,
    masks_in_blocks,
    write_at,
)
from megatron_native.data.indexed import BLOCK, IndexedTokens
from megatron_native.data.merge_plan import Piece, common_chat, common_dtype, refuse_mixture, sum_of_counts, survey
from megatron_native.errors import UserError
from megatron_native.progress import Progress, progress

STAGE = "merge"
COPIED_AT_A_TIME = 1 << 26
"""Bytes of `.bin` that one thread copies before it takes the next piece of work."""
SPARE_BYTES = 1 << 24
"""Free space that is left over when a merge is let begin: 16 MiB."""


@dataclass(frozen=True)
class MergedDataset:
    """The joined dataset: its prefix, its manifest, what could not be carried over, whether it was there already."""

    prefix: Path
    manifest: dict[str, Any]
    remarks: list[str]
    skipped: bool

    def summary(self) -> str:
        """The account, readable."""
        manifest, counts = self.manifest, self.manifest["counts"]
        datasets = sum("documents" in entry for entry in manifest["inputs"])
        lines = [
            f"{self.prefix}.bin: {datasets:,} datasets, {manifest['documents']:,} documents, "
            f"{manifest['tokens']:,} tokens ({manifest['dtype']})",
            f"  records read for them {counts['read']:,}, kept {counts['kept']:,}, dropped "
            f"{sum(counts['dropped'].values()):,}, quarantined {sum(counts['quarantined'].values()):,}",
        ]
        return "\n".join(lines + [f"  NOTE: {remark}" for remark in self.remarks])


def merge_datasets(
    inputs: Sequence[str], output_prefix: str | Path, dtype: str | None = None, workers: int = 1,
    say: Callable[[str], None] = print,
) -> MergedDataset:
    """Join the datasets that `inputs` name (see `find_datasets`), in that order, into `output_prefix`.

    `dtype` widens all ids to a larger integer type; without it all inputs must have the same.

    Raises:
        UserError: an input that is damaged or of another dtype, tokenizer or document policy than the others; an
            output that is something else's; too little space; nothing to merge.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}; at least one is needed.")
    target = DatasetFiles(Path(output_prefix))
    prefixes = find_datasets(inputs, ignored=target.prefix)
    if any(prefix.resolve() == target.prefix.resolve() for prefix in prefixes):
        raise UserError(f"{target.prefix} is both an input and the output; choose another --output-prefix.")
    target.prefix.parent.mkdir(parents=True, exist_ok=True)
    pieces = survey(prefixes, target.prefix.parent)
    refuse_mixture(pieces)
    chosen = common_dtype(pieces, dtype)
    merge = _Merge(pieces, target, chosen, workers)
    finished = merge.finished()
    if finished is not None:
        say(f"{target.prefix}: already done, skipped ({finished['tokens']:,} tokens)")
        return MergedDataset(target.prefix, finished, [], skipped=True)
    with _only_merge(target):
        merge.refuse_too_little_space()
        merge.write()
        manifest, remarks = merge.publish()
    return MergedDataset(target.prefix, manifest, remarks, skipped=False)


class _Merge:
    """The pieces on their way into the result."""

    def __init__(self, pieces: list[Piece], target: DatasetFiles, dtype: np.dtype[Any], workers: int) -> None:
        self.pieces, self.target, self.dtype, self.workers = pieces, target, dtype, workers
        self.folder = target.prefix.parent
        self.sequences = sum(piece.sequences for piece in pieces)
        self.documents = sum(piece.documents for piece in pieces)
        self.tokens = sum(piece.tokens for piece in pieces)
        self._ids_complete = all(piece.files.ids.exists() for piece in pieces if piece.documents)
        self._partial = {
            path: path.with_name(path.name + ".partial") for path in (target.mask, target.bin, target.ids, target.idx)
        }
        self.masked = pieces[0].masked
        self.chat = common_chat(pieces)

    @property
    def parameters(self) -> dict[str, Any]:
        """What the bytes depend on, besides the inputs and their order."""
        return {"dtype": self.dtype.name}

    def finished(self) -> dict[str, Any] | None:
        """The manifest, if this very merge is done already and its files are there."""
        manifest = self.target.manifest()
        if manifest is None:
            return None
        masks = [manifests.file_digest(piece.files.mask) for piece in self.pieces if self.masked]
        entries = self._input_entries([manifests.file_digest(piece.files.bin) for piece in self.pieces], masks)
        manifests.already_done(self.target.manifest_path, STAGE, self.parameters, entries)
        if [entry["xxh3_128"] for entry in manifest["inputs"]] != [entry["xxh3_128"] for entry in entries]:
            raise UserError(
                f"{self.target.manifest_path} was made of the same inputs in another order, which is another dataset. "
                "Choose another --output-prefix, or delete that manifest and its dataset to make it anew."
            )
        for output in manifest["outputs"]:
            path = self.folder / output["path"]
            if not path.is_file() or path.stat().st_size != output["bytes"]:
                raise UserError(
                    f"{self.target.manifest_path} says that {path.name} has {output['bytes']:,} bytes, and it "
                    f"{'has another size' if path.is_file() else 'is gone'}. Delete the dataset to make it again."
                )
        return manifest

    def refuse_too_little_space(self) -> None:
        """Before anything is written: does the result fit?"""
        for partial in self._partial.values():
            partial.unlink(missing_ok=True)
        needed = self.tokens * (self.dtype.itemsize + self.masked) + index_bytes(self.sequences, self.documents) + SPARE_BYTES
        if self._ids_complete:
            needed += sum(piece.files.ids.stat().st_size for piece in self.pieces if piece.documents)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"{self.folder} has {free / 1e9:,.2f} GB free, and the result needs {needed / 1e9:,.2f} GB. Make room, or "
                "choose an --output-prefix on another disk."
            )

    def write(self) -> None:
        """All of the result, beside its place; nothing is left behind when that fails."""
        try:
            write_index(self._partial[self.target.idx], self.pieces, self.dtype)
            self._copy_tokens()
            if self._ids_complete:
                _concatenate([piece.files.ids for piece in self.pieces if piece.documents], self._partial[self.target.ids])
            self._digest, self._piece_digests = self._read_back()
            self._mask_digests = self._copy_masks() if self.masked else []
        except BaseException as error:
            for partial in self._partial.values():
                partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise UserError(f"{self.folder} has no space left; nothing was kept of the merge.") from error
            raise

    def publish(self) -> tuple[dict[str, Any], list[str]]:
        """Put the files in their place: `.idx` after its data and their mask, the manifest last."""
        self.target.idx.unlink(missing_ok=True)  # of an earlier, killed merge
        for path, partial in self._partial.items():
            if partial.exists():
                os.replace(partial, path)
            else:
                path.unlink(missing_ok=True)  # the ids of an earlier, killed merge of something else
        size = self.target.bin.stat().st_size
        outputs = [{"path": self.target.bin.name, "bytes": size, "xxh3_128": self._digest}]
        outputs += [manifests.file_entry(path, self.folder) for path in (self.target.idx, self.target.ids, self.target.mask)
                    if path.exists()]
        manifest = manifests.build_manifest(
            STAGE, self.parameters, self._input_entries(self._piece_digests, self._mask_digests), outputs,
            sum_of_counts(self.pieces),
            ("numpy",), **self._what_is_known(), dtype=self.dtype.name, tokens=self.tokens, documents=self.documents,
            lineage=[piece.lineage for piece in self.pieces if piece.lineage], **({"chat": self.chat} if self.masked else {}),
        )
        manifests.write_json(self.target.manifest_path, manifest)
        return manifest, self._remarks()

    def _what_is_known(self) -> dict[str, Any]:
        """Tokenizer, policy and range of ids, which the result has only where every input says them."""
        recorded = [piece.recorded for piece in self.pieces]
        if any(piece is None or not piece["tokenizer"] for piece in recorded):
            return {"tokenizer": None, "document_policy": None, "id_range": None}
        ranges = [piece["id_range"] for piece, at in zip(recorded, self.pieces) if piece and at.tokens]
        known = [one for one in ranges if one]
        complete = bool(known) and len(known) == len(ranges)
        first = recorded[0] or {}
        return {
            "tokenizer": first["tokenizer"], "document_policy": first["document_policy"],
            "id_range": [min(low for low, _ in known), max(high for _, high in known)] if complete else None,
        }

    def _remarks(self) -> list[str]:
        remarks = []
        unknown = [piece for piece in self.pieces if piece.recorded is None or not piece.recorded["tokenizer"]]
        if unknown:
            remarks.append(
                f"{len(unknown):,} of {len(self.pieces):,} inputs have no manifest that names their tokenizer (the first is "
                f"{unknown[0].files.prefix}), so that all agree could not be checked and the result's manifest names none"
            )
        without = [piece for piece in self.pieces if piece.documents and not piece.files.ids.exists()]
        if without:
            remarks.append(
                f"{len(without):,} of {len(self.pieces):,} inputs have no table of document ids (the first is "
                f"{without[0].files.prefix}), so the result has none"
            )
        return remarks

    def _input_entries(self, digests: Sequence[str], mask_digests: Sequence[str]) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for number, (piece, digest) in enumerate(zip(self.pieces, digests)):
            files, tokens = piece.files, piece.tokens
            entries.append({
                "path": os.path.relpath(files.bin, self.folder), "bytes": tokens * piece.dtype.itemsize,
                "xxh3_128": digest, "tokens": tokens,
            })  # fmt: skip
            entries.append({
                "path": os.path.relpath(files.idx, self.folder),
                "bytes": index_bytes(piece.sequences, piece.documents), "xxh3_128": piece.index_digest,
                "documents": piece.documents,
            })  # fmt: skip
            if piece.masked:
                mask = {"path": os.path.relpath(files.mask, self.folder), "bytes": tokens}
                entries.append({**mask, "xxh3_128": mask_digests[number]})
        return entries

    def _copy_masks(self) -> list[str]:
        """The masks one after another; xxh3_128 of each, which must be the recorded one."""
        digests = []
        with open(self._partial[self.target.mask], "wb") as out:
            for piece in self.pieces:
                own = xxhash.xxh3_128()
                for _, learned in masks_in_blocks(IndexedTokens(piece.files.prefix)):
                    own.update(learned.data)
                    out.write(learned.data)
                digests.append(own.hexdigest())
                recorded = piece.recorded and piece.recorded["mask"]
                if recorded and recorded != digests[-1]:
                    raise _not_as_recorded(piece.files.mask, piece, digests[-1], recorded)
            out.flush()
            os.fsync(out.fileno())
        return digests

    def _copy_tokens(self) -> None:
        size = self.tokens * self.dtype.itemsize
        with open(self._partial[self.target.bin], "wb") as out, progress("merge: copy", size, "B") as bar:
            out.truncate(size)
            _in_threads(self._copies(out.fileno()), self.workers, bar)
            os.fsync(out.fileno())

    def _copies(self, out: int) -> Iterator[Callable[[], int]]:
        """The work, piece by piece; each part says how many bytes of the result it wrote."""
        for piece in self.pieces:
            at_a_time = COPIED_AT_A_TIME // piece.dtype.itemsize
            for start in range(0, piece.tokens, at_a_time):
                yield _Copy(piece, start, min(at_a_time, piece.tokens - start), self.dtype, out)

    def _read_back(self) -> tuple[str, list[str]]:
        """xxh3_128 of the result's `.bin`, and of each input's as it arrived there."""
        whole, digests = xxhash.xxh3_128(), []
        path = self._partial[self.target.bin]
        with open(path, "rb") as file, progress("merge: checksum", path.stat().st_size, "B") as bar:
            for piece in self.pieces:
                own = xxhash.xxh3_128()
                for start in range(0, piece.tokens, TOKENS_AT_A_TIME):
                    count = min(TOKENS_AT_A_TIME, piece.tokens - start)
                    content = file.read(count * self.dtype.itemsize)
                    whole.update(content)
                    if piece.dtype != self.dtype:  # widening loses nothing, so the input's own bytes come back
                        content = np.frombuffer(content, dtype=self.dtype).astype(piece.dtype).tobytes()
                    own.update(content)
                    bar.advance(count * self.dtype.itemsize)
                digests.append(own.hexdigest())
                recorded = piece.recorded and piece.recorded["bin"]
                if recorded and recorded != digests[-1]:
                    raise _not_as_recorded(piece.files.bin, piece, digests[-1], recorded)
        return whole.hexdigest(), digests


def _not_as_recorded(path: Path, piece: Piece, digest: str, recorded: str) -> UserError:
    return UserError(
        f"{path} is not what {piece.files.manifest_path.name} recorded (xxh3_128 {digest}, {recorded} there): it was changed "
        "or damaged. Copy it again; nothing was merged."
    )


def write_index(path: Path, pieces: Sequence[Piece], dtype: np.dtype[Any]) -> None:
    """The `.idx` of the joined pieces, from the pieces' own, in blocks."""
    sequences = sum(piece.sequences for piece in pieces)
    with IndexRegions(path, dtype, sequences, sum(piece.documents for piece in pieces)) as index:
        for piece in pieces:
            dataset, token = IndexedTokens(piece.files.prefix), piece.first_token
            for start in range(0, piece.sequences, BLOCK):
                lengths = dataset.sequence_lengths[start : start + BLOCK]
                token = index.write_sequences(piece.first_sequence + start, lengths, token)
            for start in range(0, piece.documents, BLOCK):
                ends = dataset.document_boundaries[start + 1 : start + BLOCK + 1]
                index.write_ends(piece.first_document + start, ends + piece.first_sequence)


@dataclass(frozen=True)
class _Copy:
    """`count` tokens of a piece from the `start`-th on, to their place in the open file `out`."""

    piece: Piece
    start: int
    count: int
    dtype: np.dtype[Any]
    out: int

    def __call__(self) -> int:
        piece, size = self.piece, self.count * self.dtype.itemsize
        to = (piece.first_token + self.start) * self.dtype.itemsize
        with open(piece.files.bin, "rb", buffering=0) as source:
            if piece.dtype == self.dtype:
                copy_bytes(source.fileno(), self.start * self.dtype.itemsize, self.out, to, size, piece.files.bin)
            else:
                self._widen(source.fileno(), to)
        return size

    def _widen(self, source: int, to: int) -> None:
        for start in range(self.start, self.start + self.count, TOKENS_AT_A_TIME):
            count = min(TOKENS_AT_A_TIME, self.start + self.count - start)
            raw = os.pread(source, count * self.piece.dtype.itemsize, start * self.piece.dtype.itemsize)
            if len(raw) != count * self.piece.dtype.itemsize:
                raise UserError(f"{self.piece.files.bin} became shorter while it was read.")
            content = np.frombuffer(raw, dtype=self.piece.dtype).astype(self.dtype).tobytes()
            write_at(self.out, content, to)
            to += len(content)


def _in_threads(work: Iterator[Callable[[], int]], workers: int, bar: Progress) -> None:
    """Do the pieces of work, each thread taking the next when it is free; the first error ends all."""
    lock, stopped = threading.Lock(), threading.Event()

    def take_and_do() -> None:
        while not stopped.is_set():
            with lock:
                task = next(work, None)
            if task is None:
                return
            try:
                size = task()
            except BaseException:
                stopped.set()
                raise
            with lock:
                bar.advance(size)

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(take_and_do) for _ in range(workers)]
        try:
            for future in running:
                future.result()
        finally:
            stopped.set()


def _concatenate(sources: Sequence[Path], target: Path) -> None:
    """Join zstd files, frame after frame."""
    if not sources:
        return
    with open(target, "wb") as out:
        for source in sources:
            with open(source, "rb") as file:
                shutil.copyfileobj(file, out, 1 << 22)


@contextmanager
def _only_merge(target: DatasetFiles) -> Iterator[None]:
    """Hold the marker `PREFIX.merge`: it locks out other merges, and tells files of a killed merge from foreign ones."""
    marker = target.prefix.with_name(target.prefix.name + ".merge")
    new = not marker.exists()
    for path in (target.bin, target.idx):
        if new and path.exists():
            raise UserError(
                f"{path} is there without {target.manifest_path.name}, so it was made by something else. Choose another "
                "--output-prefix, or move it away."
            )
    with open(marker, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another merge is writing {target.prefix}; wait for it, or stop it.") from error
        if not marker.exists() or os.fstat(lock.fileno()).st_ino != marker.stat().st_ino:
            raise UserError(f"another merge has just finished {target.prefix}; look at it before you start again.")
        try:
            yield
        except BaseException:
            if new and not target.bin.exists():  # nothing of this merge is there
                marker.unlink()
            raise
        marker.unlink()
