r"""Signatures on disk: one file a part, column after column, so that one band of all documents is read alone.

Layout (little-endian): 8 bytes `MNSIGN1\0`, u64 documents N, u32 bands B, u32 permutations P; then the columns
digests [N, 16] bytes, bands [B, N] u64, sketches [N, P] u8, rank keys [N] i64, flags [N] u8 (1: the text is empty).
About 16 + 8 B + P + 9 bytes a document: 249 with 14 bands of 8 rows.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_native.corpus.minhash import MinHashSettings, Signed

_MAGIC = b"MNSIGN1\0"
_HEADER = struct.Struct("<8sQII")
_BLOCK = 4096
EMPTY_FLAG = 1


class SignatureWriter:
    """Writes one part's signatures, beside its place and renamed; about a megabyte is held, whatever the documents."""

    def __init__(self, path: Path, settings: MinHashSettings) -> None:
        self._path, self._settings = path, settings
        self._digests = np.empty((_BLOCK, 16), dtype=np.uint8)
        self._bands = np.empty((settings.bands, _BLOCK), dtype=np.uint64)
        self._sketches = np.empty((_BLOCK, settings.permutations), dtype=np.uint8)
        self._ranks = np.empty(_BLOCK, dtype=np.int64)
        self._flags = np.empty(_BLOCK, dtype=np.uint8)
        names = ["digests", *(f"band{band}" for band in range(settings.bands)), "sketches", "ranks", "flags"]
        arrays = [self._digests, *self._bands, self._sketches, self._ranks, self._flags]
        self._columns = [(path.with_name(f"{path.name}.{name}.partial"), array) for name, array in zip(names, arrays)]
        self._partial = path.with_name(path.name + ".partial")
        self._documents = self._held = 0

    def __enter__(self) -> SignatureWriter:
        self._remove()
        return self

    def add(self, signed: Signed, rank: int) -> None:
        """The next document's signature and rank key (the highest of a cluster stays)."""
        place = self._held
        self._digests[place] = np.frombuffer(signed.digest, dtype=np.uint8)
        self._bands[:, place] = signed.bands
        self._sketches[place] = signed.sketch
        self._ranks[place] = rank
        self._flags[place] = EMPTY_FLAG * signed.empty
        self._held += 1
        if self._held == _BLOCK:
            self._spool()

    def _spool(self) -> None:
        for path, array in self._columns:
            with open(path, "ab") as file:
                file.write(array[: self._held].data)
        self._documents += self._held
        self._held = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._join()
        finally:
            self._remove()

    def _join(self) -> None:
        import shutil

        self._spool()
        with open(self._partial, "wb") as out:
            out.write(_header(self._documents, self._settings.bands, self._settings.permutations))
            for path, _ in self._columns:
                with open(path, "rb") as column:
                    shutil.copyfileobj(column, out, 1 << 20)
        self._partial.replace(self._path)

    def _remove(self) -> None:
        for path in (self._partial, *(path for path, _ in self._columns)):
            path.unlink(missing_ok=True)


def _header(documents: int, bands: int, permutations: int) -> bytes:
    return _HEADER.pack(_MAGIC, documents, bands, permutations)


def write_signatures(
    path: Path,
    digests: NDArray[np.uint8],
    bands: NDArray[np.uint64],
    sketches: NDArray[np.uint8],
    ranks: NDArray[np.int64],
) -> None:
    """A whole signature file from arrays [N, 16], [B, N], [N, P] and [N], none of them empty texts; for synthetic sets."""
    with open(path, "wb") as out:
        out.write(_header(len(ranks), len(bands), sketches.shape[1]))
        for column in (digests, bands, sketches, ranks, np.zeros(len(ranks), dtype=np.uint8)):
            np.ascontiguousarray(column).tofile(out)


class SignaturePart:
    """One part's signature file; columns are read on demand, nothing is held.

    Raises:
        ValueError: the file holds no signatures, or fewer than it says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
            size = os.fstat(file.fileno()).st_size
        if len(header) < _HEADER.size or header[: len(_MAGIC)] != _MAGIC:
            raise ValueError(f"{path} holds no signatures")
        _, self.documents, self.bands, self.permutations = _HEADER.unpack(header)
        count = self.documents
        self._band_start = _HEADER.size + 16 * count
        self._sketch_start = self._band_start + 8 * self.bands * count
        self._rank_start = self._sketch_start + self.permutations * count
        self._flag_start = self._rank_start + 8 * count
        if size != self._flag_start + count:
            raise ValueError(f"{path} has {size} bytes where {count} signatures take {self._flag_start + count}")

    def band(self, band: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint64]:
        """uint64 [documents]: the keys of one band; of documents `start` to `stop` alone where these are given."""
        return self._column(self._band_start + 8 * band * self.documents, "<u8", 1, start, stop)

    def digests(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint64]:
        """uint64 [documents, 2]; as `band`."""
        return self._column(_HEADER.size, "<u8", 2, start, stop).reshape(-1, 2)

    def ranks(self) -> NDArray[np.int64]:
        """int64 [documents]."""
        return self._column(self._rank_start, "<i8", 1)

    def empty(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """Bool [documents]; as `band`."""
        return (self._column(self._flag_start, "u1", 1, start, stop) & EMPTY_FLAG).astype(bool)

    def unpaired(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """Bool [documents]: those that are nobody's copy and have none; as `band`."""
        return self.empty(start, stop)

    def sketches(self) -> NDArray[np.uint8]:
        """uint8 [documents, permutations], mapped: only what is looked at is read."""
        if not self.documents:
            return np.empty((0, self.permutations), dtype=np.uint8)
        return np.memmap(self.path, np.uint8, "r", self._sketch_start, (self.documents, self.permutations))

    def take(
        self, rows: NDArray[np.int64], out: NDArray[np.uint8], places: NDArray[np.int64], digests: bool, window: int
    ) -> None:
        """Copy the sketches (or digests) of documents `rows`, ascending, to `out[places]`.

        No more than `window` bytes of the file are mapped at a time: pages of a map count as memory while it stays.
        """
        width, offset = (16, _HEADER.size) if digests else (self.permutations, self._sketch_start)
        step, start = max(1, window // width), 0
        with open(self.path, "rb") as file:
            while start < len(rows):
                low = int(rows[start])
                stop = int(np.searchsorted(rows, low + step))
                begin, end = offset + low * width, offset + (int(rows[stop - 1]) + 1) * width
                aligned = begin - begin % mmap.ALLOCATIONGRANULARITY
                with mmap.mmap(file.fileno(), end - aligned, access=mmap.ACCESS_READ, offset=aligned) as mapped:
                    table = np.frombuffer(mapped, dtype=np.uint8, offset=begin - aligned).reshape(-1, width)
                    out[places[start:stop]] = table[rows[start:stop] - low]
                    del table  # a map with a view on it can't be closed
                start = stop

    def _column(self, offset: int, dtype: str, width: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        item, count = np.dtype(dtype).itemsize * width, (self.documents if stop is None else stop) - start
        return np.fromfile(self.path, dtype=dtype, count=width * count, offset=offset + item * start)


def write_stays(signatures: Path, stays: NDArray[np.bool_]) -> None:
    """Write beside a part's signature file, as `.stays`, which of its documents the stage kept: a byte each."""
    path = signatures.with_suffix(".stays")
    partial = path.with_name(path.name + ".partial")
    stays.astype(np.uint8).tofile(partial)
    partial.replace(path)


class StoredPart(SignaturePart):
    """A part of an earlier dedup: the documents that left there are nobody's copy here.

    Raises:
        ValueError: as of `SignaturePart`, or `.stays` is of another length.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._stays = path.with_suffix(".stays")
        if (size := self._stays.stat().st_size) != self.documents:
            raise ValueError(f"{self._stays} has {size} bytes where {self.documents} documents take one each")

    def stays(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """Bool [documents]; as `band`."""
        count = (self.documents if stop is None else stop) - start
        return np.fromfile(self._stays, dtype=np.uint8, count=count, offset=start).astype(bool)

    def unpaired(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """Bool [documents]: those that left, or are empty."""
        return self.empty(start, stop) | ~self.stays(start, stop)
