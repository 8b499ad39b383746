"""What belongs to an indexed dataset on disk: which prefixes a word names, the files beside each, its index in blocks.

The tools for datasets (merge, inspect, verify, repair) start here. Everything is walked in blocks, so that memory does
not depend on the size of a dataset or on the number of shards.
"""

from __future__ import annotations

import errno
import glob
import io
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_native.data.indexed import (
    BLOCK,
    DTYPES,
    HEADER_BYTES,
    MAGIC,
    TOKEN_DTYPES,
    VERSION,
    IndexedTokens,
    bin_path,
    idx_path,
    mask_path,
)
from megatron_native.data.tokenizers import Tokenizer, load_tokenizer
from megatron_native.errors import UserError
from megatron_native.manifest import read_manifest

TOKENS_AT_A_TIME = 1 << 21
"""Ids of `.bin` held at a time: 8 MiB of int32."""
_NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
DTYPE_NAMES = tuple(np.dtype(dtype).name for dtype in TOKEN_DTYPES)


@dataclass(frozen=True)
class DatasetFiles:
    """The files of the dataset PREFIX, whether they are there or not."""

    prefix: Path

    @property
    def bin(self) -> Path:
        """`PREFIX.bin`: the ids."""
        return bin_path(self.prefix)

    @property
    def idx(self) -> Path:
        """`PREFIX.idx`: where each document lies."""
        return idx_path(self.prefix)

    @property
    def mask(self) -> Path:
        """`PREFIX.mask`: of a masked dataset, which ids are learned."""
        return mask_path(self.prefix)

    @property
    def ids(self) -> Path:
        """`PREFIX.ids.jsonl.zst`: the documents' ids, one JSON string a line."""
        return self._beside("ids.jsonl.zst")

    @property
    def manifest_path(self) -> Path:
        """`PREFIX.manifest.json`."""
        return self._beside("manifest.json")

    @property
    def lost_ids(self) -> Path:
        """`PREFIX.lost.jsonl.zst`: the ids of documents that a repair could not save."""
        return self._beside("lost.jsonl.zst")

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None where there is none. Raises `UserError` for one that can't be read."""
        return read_manifest(self.manifest_path)

    def recorded_output(self, path: Path, manifest: dict[str, Any] | None) -> dict[str, Any] | None:
        """What the manifest records of one of these files (bytes, xxh3_128), under whatever prefix it was written."""
        suffix = path.name[len(self.prefix.name) :]
        entries = [] if manifest is None else manifest["outputs"]
        return next((entry for entry in entries if entry["path"].endswith(suffix)), None)

    def refuse_lost_mask(self, manifest: dict[str, Any] | None) -> None:
        """Refuse a dataset whose mask is gone: without it, every token would be learned."""
        if self.recorded_output(self.mask, manifest) is not None and not self.mask.is_file():
            raise UserError(
                f"{self.mask} is gone, and {self.manifest_path.name} lists it: without it nothing says which tokens are "
                "answers. Copy it again from where the dataset was made, or prepare the dataset again."
            )

    def _beside(self, suffix: str) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.{suffix}")


@dataclass(frozen=True)
class DocumentPolicy:
    """What is known of a dataset's ids: their tokenizer's hash and size, and what documents begin and end with.

    Attributes:
        tokenizer_hash: or None where it is not known.
        vocab_size: one more than the largest id that may occur, or None.
        begin_id: the id every document begins with, or None where it begins with its text.
        end_id: the id every document ends with, or None where it ends with its text.
        separator_id: the tokenizer's document separator, whether or not documents end with it; or None.
    """

    tokenizer_hash: str | None = None
    vocab_size: int | None = None
    begin_id: int | None = None
    end_id: int | None = None
    separator_id: int | None = None


def document_policy(manifest: dict[str, Any] | None) -> DocumentPolicy:
    """The policy that a dataset's manifest records; one of nothing known where there is no manifest."""
    tokenizer = (manifest or {}).get("tokenizer")
    if manifest is None or not tokenizer:
        return DocumentPolicy()
    policy = manifest.get("document_policy") or {}
    return DocumentPolicy(
        tokenizer_hash=tokenizer["hash"], vocab_size=tokenizer["vocab_size"],
        begin_id=tokenizer["bos_id"] if policy.get("begin") else None,
        end_id=tokenizer["eod_id"] if policy.get("end") else None,
        separator_id=tokenizer["eod_id"],
    )


def find_tokenizer(manifest: dict[str, Any] | None, chosen: Path | None) -> tuple[Tokenizer | None, str]:
    """The tokenizer `chosen`, or the one that the manifest names where it is still there; and a remark about it.

    A tokenizer that is there but has become another one (by its hash) is not used.
    """
    if chosen is not None:
        if not chosen.exists():
            raise UserError(f"--tokenizer {chosen}: there is no such file or folder (nothing is downloaded).")
        return load_tokenizer(_tokenizer_type(chosen), chosen), f"tokenizer {chosen}"
    recorded = (manifest or {}).get("tokenizer")
    if not recorded:
        return None, "no tokenizer is known; give one with --tokenizer"
    if not Path(recorded["model"]).exists():
        return None, f"the tokenizer {recorded['model']} is no longer there; give it with --tokenizer"
    try:
        tokenizer = load_tokenizer(recorded["type"], recorded["model"])
    except UserError as error:
        return None, str(error)
    if tokenizer.hash != recorded["hash"]:
        return None, f"{recorded['model']} is another tokenizer now than the dataset's; give that one with --tokenizer"
    return tokenizer, f"tokenizer {recorded['model']}"


def _tokenizer_type(path: Path) -> str:
    only_sentencepiece = (path / "tokenizer.model").is_file() and not (path / "tokenizer.json").is_file()
    return "SentencePieceTokenizer" if path.suffix == ".model" or only_sentencepiece else "HuggingFaceTokenizer"


def masks_in_blocks(dataset: IndexedTokens) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The mask of a masked dataset: where each block begins, in ids, and its bytes."""
    for at in range(0, dataset.token_count, TOKENS_AT_A_TIME):
        yield at, dataset.read_learned(at, min(TOKENS_AT_A_TIME, dataset.token_count - at))


def find_datasets(words: Sequence[str], ignored: Path | None = None) -> list[Path]:
    """The prefixes that `words` name: prefixes, their `.bin` or `.idx`, folders (all below) and globs.

    The words keep their order; what a folder or glob names is sorted as people count (part2 before part10), without the
    prefix `ignored`. In folders, unfinished parts (`*.parts/`) and names that begin with `.` or `_` are passed over.

    Raises:
        UserError: a word that names nothing, or a dataset that is named twice.
    """
    prefixes: list[Path] = []
    for word in words:
        path = Path(word)
        if idx_path(path).exists() or bin_path(path).exists():
            found = [path]
        elif path.is_dir():
            inside = (file for file in path.rglob("*.idx") if not _passed_over(file.relative_to(path)))
            found = _sorted_prefixes(inside, ignored)
            if not found:
                raise UserError(f"the folder {word} holds no indexed dataset (no .idx file).")
        elif path.suffix in (".idx", ".bin") and path.exists():
            found = [path.with_suffix("")]
        else:
            matches = (Path(match) for pattern in (word, f"{word}.idx") for match in glob.iglob(pattern, recursive=True))
            found = _sorted_prefixes((match for match in matches if match.suffix in (".idx", ".bin")), ignored)
            if not found:
                raise UserError(f"{word} names no indexed dataset: there is no {word}.idx, no such folder, and no match of it.")
        prefixes += found
    seen: set[Path] = set()
    for prefix in prefixes:
        resolved = prefix.resolve()
        if resolved in seen:
            raise UserError(f"{prefix} is named twice; its documents would be read twice. Name it once.")
        seen.add(resolved)
    return prefixes


def _sorted_prefixes(files: Iterable[Path], ignored: Path | None) -> list[Path]:
    found = {file.with_suffix("") for file in files}
    if ignored is not None:
        found = {prefix for prefix in found if prefix.resolve() != ignored.resolve()}
    return sorted(found, key=natural_key)


def _passed_over(file: Path) -> bool:
    return any(part.startswith((".", "_")) or part.endswith(".parts") for part in file.parts)


def natural_key(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sorts names as people count: part2 before part10; equal numbers by their digits (2 before 02)."""
    pieces = re.split(r"(\d+)", str(path))
    return tuple((1, int(piece), piece) if piece.isdecimal() else (0, 0, piece) for piece in pieces if piece)


def document_starts(dataset: IndexedTokens) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Blocks of documents: the first one's number, and int64 [n + 1] where each starts, and the last ends, in tokens.

    The index must be whole (`verify_structure`). Memory is that of a block, however many sequences a document has.
    """
    sequence, token = 0, 0  # `token` is where `sequence` starts
    for first in range(0, dataset.document_count, BLOCK):
        boundaries = dataset.document_boundaries[first : first + BLOCK + 1]
        starts = np.empty(len(boundaries), dtype=np.int64)
        filled = 0
        while filled < len(starts):
            stop = min(sequence + BLOCK, int(boundaries[-1]))
            offsets = np.zeros(stop - sequence + 1, dtype=np.int64)
            np.cumsum(dataset.sequence_lengths[sequence:stop], dtype=np.int64, out=offsets[1:])
            until = int(np.searchsorted(boundaries, stop, side="right"))
            starts[filled:until] = token + offsets[boundaries[filled:until] - sequence]
            filled, sequence, token = until, stop, token + int(offsets[-1])
        yield first, starts


def token_blocks(dataset: IndexedTokens) -> Iterator[tuple[int, NDArray[np.int64], int, NDArray[Any]]]:
    """All ids in blocks: (first document, starts of the documents' block, where the ids stand, the ids)."""
    for first, starts in document_starts(dataset):
        for at in range(int(starts[0]), int(starts[-1]), TOKENS_AT_A_TIME):
            yield first, starts, at, dataset.read(at, min(TOKENS_AT_A_TIME, int(starts[-1]) - at))


def document_start(dataset: IndexedTokens, number: int) -> int:
    """Where a document begins in `.bin`, in tokens; for the number of documents, where the last one ends."""
    first = int(dataset.document_boundaries[number])
    if first == dataset.sequence_count:
        return dataset.token_count
    return int(dataset.sequence_pointers[first]) // dataset.dtype.itemsize


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `count`, evenly spread, the first and the last among them."""
    if count == 0:
        return []
    return [int(number) for number in np.unique(np.linspace(0, count - 1, num=min(wanted, count), dtype=np.int64))]


def count_document_ids(path: Path) -> int:
    """Lines of a table of document ids, decompressed block by block. Raises `UserError` for a file that is damaged."""
    import zstandard

    lines, last = 0, b"\n"
    with open(path, "rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        try:
            for block in iter(lambda: stream.read(1 << 20), b""):
                lines += block.count(b"\n")
                last = block[-1:]
        except zstandard.ZstdError as error:
            raise UserError(f"{path} is damaged after {lines:,} lines ({error}).") from error
    if last != b"\n":
        raise UserError(f"{path} is cut short: it ends in the middle of line {lines + 1:,}.")
    return lines


def document_id_lines(path: Path) -> Iterator[bytes]:
    """The lines of a table of document ids, as they are (JSON and newline)."""
    import zstandard

    with open(path, "rb") as file:
        yield from io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))


def damaged_file(error: UserError, files: DatasetFiles) -> Path:
    """The file that `verify_structure` complains of: every sentence of its begins with the name."""
    return next((path for path in (files.bin, files.mask) if str(error).startswith(f"{path} ")), files.idx)


def copy_bytes(source: int, start: int, out: int, to: int, count: int, name: Path) -> None:
    """Copy `count` bytes between open files, from one offset to another; `name` is the source's, for messages.

    Inside the kernel where it can (which shares blocks on some file systems), else through memory.
    """
    in_kernel = hasattr(os, "copy_file_range")
    while count:
        done = 0
        if in_kernel:
            try:
                done = os.copy_file_range(source, out, count, start, to)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
            in_kernel = done > 0
        if not in_kernel:
            content = os.pread(source, min(count, 1 << 23), start)
            if not content:
                raise UserError(f"{name} became shorter while it was read.")
            write_at(out, content, to)
            done = len(content)
        start, to, count = start + done, to + done, count - done


def write_at(out: int, content: bytes, to: int) -> None:
    """Write all of `content` into the open file `out` from the byte `to` on."""
    view = memoryview(content)
    while view:
        done = os.pwrite(out, view, to)
        view, to = view[done:], to + done


class IndexRegions:
    """An `.idx` of known size, whose regions are written at offsets: in any order, by several threads at once.

    A context manager; the file is complete, and on the disk, once its block ends without an error.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], sequences: int, documents: int) -> None:
        self._itemsize = dtype.itemsize
        self._lengths = HEADER_BYTES
        self._pointers = self._lengths + 4 * sequences
        self._boundaries = self._pointers + 8 * sequences
        code = next(code for code, known in DTYPES.items() if np.dtype(known) == dtype)
        self._file: io.FileIO = open(path, "wb", buffering=0)  # noqa: SIM115 — closed on exit
        self._file.truncate(index_bytes(sequences, documents))
        self._write(0, MAGIC + struct.pack("<QBQQ", VERSION, code, sequences, documents + 1))
        self._write(self._boundaries, struct.pack("<q", 0))

    def __enter__(self) -> IndexRegions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                os.fsync(self._file.fileno())

    def write_sequences(self, first: int, lengths: NDArray[Any], start: int) -> int:
        """Lengths and pointers of sequences from the `first` on, which begin at the `start`-th token of `.bin`.

        Returns where they end, in tokens. Pointers are computed as 64-bit integers throughout.
        """
        sizes = lengths.astype(np.int64)
        ends = start + np.cumsum(sizes)
        self._write(self._lengths + 4 * first, lengths.astype("<i4", copy=False).tobytes())
        self._write(self._pointers + 8 * first, ((ends - sizes) * self._itemsize).astype("<i8", copy=False).tobytes())
        return int(ends[-1]) if len(ends) else start

    def write_ends(self, first: int, ends: NDArray[Any]) -> None:
        """Where documents from the `first` on end, in sequences of the whole dataset."""
        self._write(self._boundaries + 8 * (first + 1), ends.astype("<i8", copy=False).tobytes())

    def _write(self, offset: int, content: bytes) -> None:
        write_at(self._file.fileno(), content, offset)


def index_bytes(sequences: int, documents: int) -> int:
    """The size of an `.idx`."""
    return HEADER_BYTES + 12 * sequences + 8 * (documents + 1)
