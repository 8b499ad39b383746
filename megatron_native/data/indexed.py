r"""Megatron's indexed datasets: token ids in `PREFIX.bin`, where each document lies in `PREFIX.idx`.

Written here beside their place and renamed whole, in constant memory, bit for bit as megatron-core's
`IndexedDatasetBuilder` writes them; read here by numpy alone, so that tools start without torch.

The layout of `.idx` (little-endian, from `megatron/core/datasets/indexed_dataset.py`): 9 bytes `MMIDIDX\0\0`; u64
version 1; u8 dtype code (4 int32, 8 uint16, …); u64 S sequences; u64 D boundaries = documents + 1; S × int32 lengths in
tokens; S × int64 pointers in bytes into `.bin`; D × int64 boundaries, in sequences, from 0 to S. `.bin` is raw ids.

A *masked* dataset has `PREFIX.mask` too, at which Megatron doesn't look: a byte an id, 1 where it is learned as a label.
"""

from __future__ import annotations

import os
import shutil
import struct
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_native.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER_BYTES = len(MAGIC) + 8 + 1 + 8 + 8
DTYPES: dict[int, type[np.number[Any]]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16,
}
TOKEN_DTYPES = (np.int32, np.uint16, np.int64, np.uint8, np.int8, np.int16)
BLOCK = 1 << 20
"""Entries handled at a time where a whole `.idx` is walked: 8 MiB of pointers."""
SAMPLED_IDS = 4096
"""Ids in each block of `.bin` that a sampled check reads."""
_READERS = 8
"""Blocks of `.bin` that are read at once."""


def token_dtype(vocab_size: int) -> type[np.number[Any]]:
    """Megatron's choice: uint16 for a vocabulary below 65,500 ids, else int32."""
    return np.uint16 if vocab_size < 65500 else np.int32


def bin_path(prefix: Path) -> Path:
    """`PREFIX.bin`."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """`PREFIX.idx`."""
    return prefix.with_name(prefix.name + ".idx")


def mask_path(prefix: Path) -> Path:
    """`PREFIX.mask`."""
    return prefix.with_name(prefix.name + ".mask")


class IndexedWriter:
    """Writes one indexed dataset; a context manager that leaves nothing behind when its block fails.

    Lengths and boundaries are spooled to files as they come, so memory does not grow with the documents.
    """

    def __init__(self, prefix: Path, dtype: type[np.number[Any]], masked: bool = False) -> None:
        self.prefix = prefix
        self.dtype = np.dtype(dtype)
        self._sequences = 0
        self._documents = 0
        suffixes = ("bin", "idx", "lengths", "ends", "mask") if masked else ("bin", "idx", "lengths", "ends")
        self._temporary = {suffix: prefix.with_name(f"{prefix.name}.{suffix}.partial") for suffix in suffixes}
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin = open(self._temporary["bin"], "wb")  # noqa: SIM115 — closed by close() or abort()
        self._lengths = open(self._temporary["lengths"], "wb")  # noqa: SIM115 — likewise
        self._ends = open(self._temporary["ends"], "wb")  # noqa: SIM115 — likewise
        self._mask = open(self._temporary["mask"], "wb") if masked else None  # noqa: SIM115 — likewise

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def add_document(
        self, ids: NDArray[Any], sequence_lengths: Sequence[int] | None = None, learned: NDArray[np.uint8] | None = None
    ) -> None:
        """Append a document's ids, as one sequence or cut into sequences of the given lengths (their sum is all ids).

        A document without ids adds a boundary and no sequence, as Megatron's classic script has it. `learned` (uint8, 0 or
        1 for each id) belongs to a `masked` dataset and to no other.
        """
        if (learned is None) != (self._mask is None) or (learned is not None and len(learned) != len(ids)):
            raise ValueError(f"{self.prefix}: {len(ids)} ids with {'no' if learned is None else len(learned)} mask")
        if self._mask is not None:
            self._mask.write(np.ascontiguousarray(learned, dtype=np.uint8).data)
        lengths = ([len(ids)] if len(ids) else []) if sequence_lengths is None else sequence_lengths
        self._bin.write(np.asarray(ids).astype(self.dtype, copy=False).tobytes())
        self._lengths.write(np.asarray(lengths, dtype="<i4").tobytes())
        self._sequences += len(lengths)
        self._documents += 1
        self._ends.write(struct.pack("<q", self._sequences))

    def add_documents(
        self, ids: NDArray[Any], lengths: Sequence[int] | NDArray[Any], sequences: Sequence[int] | NDArray[Any]
    ) -> None:
        """Append several documents at once: all their ids, every sequence's length, and how many sequences each has."""
        assert self._mask is None, "documents of a masked dataset are added one by one, with what is learned"
        self._bin.write(np.ascontiguousarray(ids, dtype=self.dtype).data)
        self._lengths.write(np.asarray(lengths, dtype="<i4").tobytes())
        ends = np.cumsum(np.asarray(sequences, dtype="<i8")) + self._sequences
        self._ends.write(ends.astype("<i8", copy=False).tobytes())
        self._sequences += len(lengths)
        self._documents += len(sequences)

    def append_dataset(self, prefix: Path) -> None:
        """Append a whole indexed dataset of the same dtype, in constant memory."""
        part = IndexedTokens(prefix)
        if part.dtype != self.dtype:
            raise UserError(f"{idx_path(prefix)} holds {part.dtype} and can't be joined with {self.dtype} data.")
        if part.masked != (self._mask is not None):
            raise UserError(f"{mask_path(prefix)}: masked and unmasked data can't be joined.")
        if self._mask is not None:
            with open(mask_path(prefix), "rb") as mask:
                shutil.copyfileobj(mask, self._mask, 1 << 22)
        with open(bin_path(prefix), "rb") as source:
            shutil.copyfileobj(source, self._bin, 1 << 22)
        for block in _blocks(part.sequence_lengths):
            self._lengths.write(block.astype("<i4", copy=False).tobytes())
        for block in _blocks(part.document_boundaries[1:]):
            self._ends.write((block + self._sequences).astype("<i8", copy=False).tobytes())
        self._sequences += part.sequence_count
        self._documents += part.document_count

    def close(self) -> None:
        """Write the index and put the files in their place: `.idx` last, so that an `.idx` never lacks its data."""
        for file in self._files():
            _flush(file)
        with open(self._temporary["idx"], "wb") as out:
            code = next(code for code, dtype in DTYPES.items() if np.dtype(dtype) == self.dtype)
            out.write(MAGIC + struct.pack("<QBQQ", VERSION, code, self._sequences, self._documents + 1))
            with open(self._temporary["lengths"], "rb") as lengths:
                shutil.copyfileobj(lengths, out, 1 << 22)
            self._write_pointers(out)
            out.write(struct.pack("<q", 0))
            with open(self._temporary["ends"], "rb") as ends:
                shutil.copyfileobj(ends, out, 1 << 22)
            _flush(out)
        mask_path(self.prefix).unlink(missing_ok=True)  # of a dataset that was there
        if self._mask is not None:
            os.replace(self._temporary["mask"], mask_path(self.prefix))
        os.replace(self._temporary["bin"], bin_path(self.prefix))
        os.replace(self._temporary["idx"], idx_path(self.prefix))
        self._remove_temporary()

    def abort(self) -> None:
        """Give up: remove what was written so far."""
        for file in self._files():
            file.close()
        self._remove_temporary()

    def _files(self) -> list[IO[bytes]]:
        return [file for file in (self._bin, self._lengths, self._ends, self._mask) if file is not None]

    def _write_pointers(self, out: IO[bytes]) -> None:
        pointer = np.int64(0)
        with open(self._temporary["lengths"], "rb") as lengths:
            while chunk := lengths.read(4 * BLOCK):
                sizes = np.frombuffer(chunk, dtype="<i4").astype(np.int64) * self.dtype.itemsize
                ends = np.cumsum(sizes) + pointer
                out.write((ends - sizes).astype("<i8", copy=False).tobytes())
                pointer = ends[-1]

    def _remove_temporary(self) -> None:
        for path in self._temporary.values():
            path.unlink(missing_ok=True)


def merge(parts: Iterable[Path], prefix: Path, dtype: type[np.number[Any]], masked: bool = False) -> None:
    """Join indexed datasets in the given order into `prefix`, in constant memory; all are `masked`, or none."""
    with IndexedWriter(prefix, dtype, masked) as writer:
        for part in parts:
            writer.append_dataset(part)


class IndexedTokens:
    """A read-only view of one indexed dataset, nothing loaded; safe to fork and to pickle.

    Args:
        prefix: of `.bin` and `.idx`.
        digest: what `digest()` would find, where that is known: it reads the whole `.idx`.

    The index is memory-mapped. Ids are read by `pread`, since random pieces of a large map cost a page fault each, which
    on some machines takes a thousand times as long as the read.

    Attributes:
        sequence_lengths: int32 [S] tokens.
        sequence_pointers: int64 [S] bytes into `.bin`.
        document_boundaries: int64 [documents + 1], in sequences; document d is sequences b[d] … b[d + 1] − 1.
        token_count: ids in `.bin`.
        masked: whether `.mask` says what is learned.

    Raises:
        UserError: a file that is missing, damaged, or of another dataset's size.
    """

    def __init__(self, prefix: str | Path, digest: str | None = None) -> None:
        self.prefix = Path(prefix)
        index, data = idx_path(self.prefix), bin_path(self.prefix)
        self.dtype, self.sequence_count, boundaries = _read_header(index)
        _check_file(data, ".bin")
        self.document_count = boundaries - 1
        # numpy maps no empty array: a dataset of nothing is read as empty arrays
        raw = np.memmap(index, mode="r", dtype=np.uint8)
        lengths_end = HEADER_BYTES + 4 * self.sequence_count
        pointers_end = lengths_end + 8 * self.sequence_count
        self.sequence_lengths = _view(raw, HEADER_BYTES, lengths_end, "<i4")
        self.sequence_pointers = _view(raw, lengths_end, pointers_end, "<i8")
        self.document_boundaries = _view(raw, pointers_end, pointers_end + 8 * boundaries, "<i8")
        self.token_count = data.stat().st_size // self.dtype.itemsize
        self._digest = digest
        self._file = os.open(data, os.O_RDONLY)
        self._index_file = os.open(index, os.O_RDONLY)
        self._mask_file = self._open_mask()
        self.masked = self._mask_file is not None
        for descriptor in filter(None, (self._file, self._index_file, self._mask_file)):
            weakref.finalize(self, os.close, descriptor)

    def _open_mask(self) -> int | None:
        path = mask_path(self.prefix)
        if not path.exists():
            return None
        if path.stat().st_size != self.token_count:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes, and {bin_path(self.prefix).name} has {self.token_count:,} ids, "
                "which need one byte each: they do not belong together. Copy the dataset again, or prepare it again."
            )
        return os.open(path, os.O_RDONLY)

    def __reduce__(self) -> tuple[type[IndexedTokens], tuple[Path]]:
        return IndexedTokens, (self.prefix,)

    def __len__(self) -> int:
        """Sequences, as megatron-core's `IndexedDataset` counts them."""
        return self.sequence_count

    def __getitem__(self, sequence: int) -> NDArray[Any]:
        """The ids of one sequence."""
        start = int(self.sequence_pointers[sequence]) // self.dtype.itemsize
        return self.read(start, int(self.sequence_lengths[sequence]))

    def read(self, start: int, count: int) -> NDArray[Any]:
        """`count` ids from the `start`-th of `.bin`.

        Raises:
            UserError: the file has become shorter than its index says.
        """
        size = self.dtype.itemsize
        return np.frombuffer(_read_bytes(self._file, start * size, count * size, bin_path(self.prefix)), self.dtype)

    def read_learned(self, start: int, count: int) -> NDArray[np.uint8]:
        """uint8 [count]: 1 where an id, from the `start`-th on, is learned when it is a label; without a mask, all are."""
        if self._mask_file is None:
            return np.ones(count, dtype=np.uint8)
        return np.frombuffer(_read_bytes(self._mask_file, start, count, mask_path(self.prefix)), dtype=np.uint8)

    def document(self, index: int) -> NDArray[Any]:
        """The ids of one document, its sequences joined."""
        return self.read(*self.document_place(index))

    @property
    def indexed_tokens(self) -> int:
        """Ids that the index describes; `token_count` where the files belong together."""
        if self.sequence_count == 0:
            return 0
        return int(self.sequence_pointers[-1]) // self.dtype.itemsize + int(self.sequence_lengths[-1])

    def document_lengths(self) -> NDArray[np.integer[Any]]:
        """[documents]: each document's length in ids; int32 unless one is longer than that holds. In chunks, so that the
        result is all that it takes.
        """
        lengths: NDArray[np.integer[Any]] = np.empty(self.document_count, dtype=np.int32)
        for first in range(0, self.document_count, BLOCK):
            boundaries = self._boundaries(first, min(BLOCK, self.document_count - first) + 1)
            low, high = int(boundaries[0]), int(boundaries[-1])
            ends = np.zeros(high - low + 1, dtype=np.int64)
            np.cumsum(self._entries(HEADER_BYTES + 4 * low, high - low, "<i4"), dtype=np.int64, out=ends[1:])
            found = np.diff(ends[boundaries - low])
            if lengths.dtype == np.int32 and len(found) and int(found.max()) >= 1 << 31:
                lengths = lengths.astype(np.int64)
            lengths[first : first + len(found)] = found
        return lengths

    def document_place(self, index: int) -> tuple[int, int]:
        """(start, length) of a document in `.bin`, in ids: a few entries of the index, and nothing that grows with it."""
        first, last = (int(boundary) for boundary in self._boundaries(index, 2))
        if first == last:
            return 0, 0
        pointers = HEADER_BYTES + 4 * self.sequence_count
        start = int(self._entries(pointers + 8 * first, 1, "<i8")[0]) // self.dtype.itemsize
        lengths = self._entries(HEADER_BYTES + 4 * first, last - first, "<i4")
        return start, int(lengths.sum(dtype=np.int64))

    def _boundaries(self, first: int, count: int) -> NDArray[np.int64]:
        """Entries of `document_boundaries`, read and not mapped."""
        return self._entries(HEADER_BYTES + 12 * self.sequence_count + 8 * first, count, "<i8")

    def _entries(self, offset: int, count: int, dtype: str) -> NDArray[Any]:
        return _read_entries(self._index_file, offset, count, dtype, idx_path(self.prefix))

    def digest(self) -> str:
        """xxh3_128 of `.idx`: a name of the dataset that does not change when it is moved."""
        if self._digest is None:
            digest = xxhash.xxh3_128()
            with open(idx_path(self.prefix), "rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
            self._digest = digest.hexdigest()
        return self._digest


def verify_structure(prefix: str | Path, vocab_size: int | None = None, sampled_blocks: int = 64) -> IndexedTokens:
    """Check that an indexed dataset is whole, in seconds whatever its size, and open it.

    The whole `.idx` is checked (header, sizes, lengths, pointers, boundaries); of `.bin` its size and, with a
    `vocab_size`, the ids of `sampled_blocks` evenly spread blocks of `SAMPLED_IDS`. Memory is that of a few blocks: the
    index is read, not mapped, and `.bin` is read at several places at once.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    dataset = IndexedTokens(prefix)
    index, data = idx_path(dataset.prefix), bin_path(dataset.prefix)
    with open(index, "rb", buffering=0) as file:
        expected = _check_pointers(file.fileno(), dataset, index)
        _check_boundaries(file.fileno(), dataset, index)
    size = data.stat().st_size
    if size != expected:
        what = "cut short" if size < expected else "longer than its index"
        raise UserError(
            f"{data} is {what}: it has {size:,} bytes, and {index.name} describes {expected:,}. Copy it again, "
            "or make it again with tools/preprocess_data.py."
        )
    if vocab_size is not None:
        _check_ids(dataset, data, vocab_size, sampled_blocks)
    return dataset


def _check_pointers(file: int, dataset: IndexedTokens, index: Path) -> int:
    """Every sequence begins where the one before it ends; the bytes that they describe together."""
    count, itemsize, expected = dataset.sequence_count, dataset.dtype.itemsize, 0
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        lengths = _read_entries(file, HEADER_BYTES + 4 * start, size, "<i4", index)
        pointers = _read_entries(file, HEADER_BYTES + 4 * count + 8 * start, size, "<i8", index)
        if int(lengths.min()) < 0:
            _refuse_first(lengths < 0, start, lengths, index, "a negative length")
        starts = np.empty(size + 1, dtype=np.int64)
        starts[0] = 0
        np.cumsum(lengths, dtype=np.int64, out=starts[1:])
        starts *= itemsize
        starts += expected
        if not np.array_equal(pointers, starts[:-1]):
            _refuse_first(pointers != starts[:-1], start, pointers, index,
                          "a pointer that is not where the sequence before it ends")
        expected = int(starts[-1])
    return expected


def _check_boundaries(file: int, dataset: IndexedTokens, index: Path) -> None:
    boundaries, offset = dataset.document_count + 1, HEADER_BYTES + 12 * dataset.sequence_count
    first = int(_read_entries(file, offset, 1, "<i8", index)[0])
    last = int(_read_entries(file, offset + 8 * (boundaries - 1), 1, "<i8", index)[0])
    if first != 0 or last != dataset.sequence_count:
        raise UserError(
            f"{index} is damaged: its documents go from sequence {first} to {last}, where 0 to "
            f"{dataset.sequence_count} was expected. Make it again with tools/preprocess_data.py."
        )
    for start in range(0, boundaries - 1, BLOCK):
        block = _read_entries(file, offset + 8 * start, min(BLOCK + 1, boundaries - start), "<i8", index)
        backwards = block[1:] < block[:-1]
        _refuse_first(backwards, start, block[1:], index, "a document boundary that goes backwards")


def _read_entries(file: int, offset: int, count: int, dtype: str, index: Path) -> NDArray[Any]:
    """`count` numbers of an open `.idx` from the byte `offset` on: random pieces of a map would cost a fault a page."""
    entries = np.empty(count, dtype=dtype)
    view, at = memoryview(entries.view(np.uint8).data), offset
    while view:
        done = os.preadv(file, [view], at)
        if not done:
            raise UserError(f"{index} became shorter while it was read.")
        view, at = view[done:], at + done
    return entries


def _read_bytes(file: int, start: int, count: int, path: Path) -> bytes:
    """`count` bytes of an open file from the byte `start` on; `path` is for the message."""
    content = os.pread(file, count, start)
    while len(content) < count:  # a read is cut at 2 GiB, and where the file ends
        at = start + len(content)
        further = os.pread(file, count - len(content), at)
        if not further:
            raise UserError(f"{path} ends at byte {at:,}, where ids were expected: it was cut.")
        content += further
    return content


def _check_ids(dataset: IndexedTokens, data: Path, vocab_size: int, sampled_blocks: int) -> None:
    """The ids of evenly spread blocks; of a dataset with fewer than `sampled_blocks` blocks every id."""
    size = min(SAMPLED_IDS, dataset.token_count)
    blocks = min(sampled_blocks, -(-dataset.token_count // SAMPLED_IDS))
    starts = np.unique(np.linspace(0, dataset.token_count - size, num=blocks, dtype=np.int64)).tolist()

    def first_wrong(start: int) -> tuple[int, int] | None:
        ids = dataset.read(start, size)
        if int(ids.min()) >= 0 and int(ids.max()) < vocab_size:
            return None
        at = int(np.flatnonzero((ids < 0) | (ids.astype(np.int64) >= vocab_size))[0])
        return start + at, int(ids[at])

    with ThreadPoolExecutor(_READERS) as readers:  # waiting for a disk or a network is most of it
        for found in readers.map(first_wrong, starts):
            if found is not None:
                readers.shutdown(wait=False, cancel_futures=True)
                raise UserError(
                    f"{data} holds the id {found[1]} at token {found[0]:,}, outside the vocabulary of {vocab_size:,} "
                    "ids: the data is damaged, or was made with another tokenizer (its .manifest.json says which)."
                )


def _refuse_first(wrong: NDArray[np.bool_], start: int, values: NDArray[Any], index: Path, what: str) -> None:
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{index} is damaged: entry {start + at:,} is {what} ({values[at]}). Copy it again, or make it again with "
            "tools/preprocess_data.py."
        )


def _read_header(index: Path) -> tuple[np.dtype[Any], int, int]:
    """The dtype, S and D of an `.idx` of exactly the right size."""
    _check_file(index, ".idx")
    with open(index, "rb") as file:
        header = file.read(HEADER_BYTES)
    if not header.startswith(MAGIC[: len(header)]) or not header:
        raise UserError(f"{index} is not a Megatron index: it does not begin with {MAGIC[:7].decode()}.")
    if len(header) < HEADER_BYTES:
        raise UserError(f"{index} is cut short: {len(header)} bytes, and its header alone has {HEADER_BYTES}.")
    version, code, sequences, boundaries = struct.unpack_from("<QBQQ", header, len(MAGIC))
    if version != VERSION or code not in DTYPES or DTYPES[code] not in TOKEN_DTYPES:
        raise UserError(f"{index} has version {version} and dtype code {code}, which are not those of token ids.")
    expected, size = HEADER_BYTES + 12 * sequences + 8 * boundaries, index.stat().st_size
    if size < expected or boundaries < 1:
        raise UserError(
            f"{index} is cut short: it announces {sequences:,} sequences and {max(boundaries - 1, 0):,} documents, "
            f"{expected:,} bytes, and has {size:,}. Copy it again, or make it again with tools/preprocess_data.py."
        )
    if size not in (expected, expected + sequences):  # the optional modes of multimodal data
        raise UserError(f"{index} has {size:,} bytes where its header announces {expected:,}; it is damaged.")
    return np.dtype(DTYPES[code]).newbyteorder("<"), sequences, boundaries


def _check_file(path: Path, suffix: str) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder, where an indexed dataset's {suffix} file was expected.")
    if not path.exists():
        other = "It is a link to nothing." if path.is_symlink() else "Give the path without .bin or .idx."
        raise UserError(f"{path} is not there. {other}")


def _view(raw: NDArray[np.uint8], start: int, stop: int, dtype: str) -> NDArray[Any]:
    # the header has 34 bytes, so the arrays are unaligned; numpy reads them all the same
    return np.frombuffer(raw.data, dtype=dtype, count=(stop - start) // np.dtype(dtype).itemsize, offset=start)


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(array), BLOCK):
        yield array[start : start + BLOCK]


def _flush(file: IO[bytes]) -> None:
    """To the disk, so that a machine that loses power right after the rename keeps the content; then close."""
    with ExitStack() as stack:
        stack.callback(file.close)
        file.flush()
        os.fsync(file.fileno())
