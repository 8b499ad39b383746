r"""Signatures on disk: one file a part, column after column, so that one band of all documents is read alone.

Layout (little-endian): 8 bytes `MNSIGN1\\0`, u64 documents N, u32 bands B, u32 permutations P; then the columns
digests [N, 16] bytes, bands [B, N] u64, sketches [N, P] u8, rank keys [N] i64, flags [N] u8 (1: the text is empty).
About 16 + 8 B + P + 9 bytes a document: 249 with 14 bands of 8 rows.
"""

from __future__ import annotations

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
    """Writes one part's signatures, beside its place and renamed; a few megabytes are held, whatever the documents."""

    def __init__(self, path: Path, settings: MinHashSettings) -> None:
        self._path, self._settings = path, settings
        self._columns = {
            name: path.with_name(f"{path.name}.{name}.partial") for name in ("digests", "sketches", "ranks", "flags")
        }
        self._columns |= {
            f"band{band}": path.with_name(f"{path.name}.band{band}.partial") for band in range(settings.bands)
        }
        self._held: dict[str, list[bytes]] = {name: [] for name in self._columns}
        self._documents = 0

    def __enter__(self) -> SignatureWriter:
        for path in self._columns.values():
            path.unlink(missing_ok=True)
        return self

    def add(self, signed: Signed, rank: int) -> None:
        """The next document's signature and rank key (the highest of a cluster stays)."""
        held = self._held
        held["digests"].append(signed.digest)
        held["sketches"].append(signed.sketch.tobytes())
        held["ranks"].append(struct.pack("<q", rank))
        held["flags"].append(bytes([EMPTY_FLAG * signed.empty]))
        raw = signed.bands.tobytes()
        for band in range(self._settings.bands):
            held[f"band{band}"].append(raw[8 * band : 8 * band + 8])
        self._documents += 1
        if self._documents % _BLOCK == 0:
            self._spool()

    def _spool(self) -> None:
        for name, path in self._columns.items():
            with open(path, "ab") as file:
                file.write(b"".join(self._held[name]))
            self._held[name].clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._join()
        finally:
            for path in self._columns.values():
                path.unlink(missing_ok=True)

    def _join(self) -> None:
        import shutil

        self._spool()
        settings = self._settings
        partial = self._path.with_name(self._path.name + ".partial")
        names = ["digests", *(f"band{band}" for band in range(settings.bands)), "sketches", "ranks", "flags"]
        with open(partial, "wb") as out:
            out.write(_HEADER.pack(_MAGIC, self._documents, settings.bands, settings.permutations))
            for name in names:
                with open(self._columns[name], "rb") as column:
                    shutil.copyfileobj(column, out, 1 << 20)
        partial.replace(self._path)


def write_signatures(
    path: Path,
    digests: NDArray[np.uint8],
    bands: NDArray[np.uint64],
    sketches: NDArray[np.uint8],
    ranks: NDArray[np.int64],
) -> None:
    """A whole signature file from arrays [N, 16], [B, N], [N, P] and [N], none of them empty texts; for synthetic sets."""
    with open(path, "wb") as out:
        out.write(_HEADER.pack(_MAGIC, len(ranks), len(bands), sketches.shape[1]))
        for column in (digests, bands, sketches, ranks, np.zeros(len(ranks), dtype=np.uint8)):
            np.ascontiguousarray(column).tofile(out)


class SignaturePart:
    """One part's signature file; columns are read on demand, nothing is held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            magic, self.documents, self.bands, self.permutations = _HEADER.unpack(file.read(_HEADER.size))
        if magic != _MAGIC:
            raise ValueError(f"{path} holds no signatures")
        count = self.documents
        self._band_start = _HEADER.size + 16 * count
        self._sketch_start = self._band_start + 8 * self.bands * count
        self._rank_start = self._sketch_start + self.permutations * count
        self._flag_start = self._rank_start + 8 * count

    def band(self, band: int) -> NDArray[np.uint64]:
        """uint64 [documents]: the keys of one band."""
        return self._column(self._band_start + 8 * band * self.documents, "<u8", self.documents)

    def digests(self) -> NDArray[np.uint64]:
        """uint64 [documents, 2]."""
        return self._column(_HEADER.size, "<u8", 2 * self.documents).reshape(-1, 2)

    def ranks(self) -> NDArray[np.int64]:
        """int64 [documents]."""
        return self._column(self._rank_start, "<i8", self.documents)

    def empty(self) -> NDArray[np.bool_]:
        """Bool [documents]."""
        return (self._column(self._flag_start, "u1", self.documents) & EMPTY_FLAG).astype(bool)

    def sketches(self) -> NDArray[np.uint8]:
        """uint8 [documents, permutations], mapped: only what is looked at is read."""
        if not self.documents:
            return np.empty((0, self.permutations), dtype=np.uint8)
        return np.memmap(self.path, np.uint8, "r", self._sketch_start, (self.documents, self.permutations))

    def _column(self, offset: int, dtype: str, count: int) -> NDArray[Any]:
        return np.fromfile(self.path, dtype=dtype, count=count, offset=offset)
