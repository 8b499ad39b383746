"""Ids of documents on disk, one file a part, any of them at hand by its place without reading the others."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from megatron_native.corpus.folding import mix


class IdsWriter:
    """Writes `PATH` (the ids' bytes, one after another) and `PATH.ends` (int64, where each ends)."""

    def __init__(self, path: Path) -> None:
        self._path, self._end = path, 0
        self._ends: list[int] = []

    def __enter__(self) -> IdsWriter:
        self._file = open(self._path.with_name(self._path.name + ".partial"), "wb")
        return self

    def add(self, identifier: str) -> None:
        """The next document's id."""
        raw = identifier.encode("utf-8", "surrogatepass")
        self._file.write(raw)
        self._end += len(raw)
        self._ends.append(self._end)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        partial = self._path.with_name(self._path.name + ".partial")
        if kind is not None:
            partial.unlink()
            return
        np.array(self._ends, dtype="<i8").tofile(self._path.with_name(self._path.name + ".ends"))
        partial.replace(self._path)


def id_at(path: Path, place: int) -> str:
    """The id of the part's document at `place`."""
    first = max(0, place - 1)
    ends = np.fromfile(path.with_name(path.name + ".ends"), dtype="<i8", count=place - first + 1, offset=8 * first)
    start, end = (0, int(ends[0])) if place == 0 else (int(ends[0]), int(ends[1]))
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(end - start).decode("utf-8", "surrogatepass")


def id_hashes(path: Path) -> NDArray[np.uint64]:
    """uint64 [documents, 2]: 128 bits of each id of a part."""
    ends = np.fromfile(path.with_name(path.name + ".ends"), dtype="<i8")
    return _hashes(np.fromfile(path, dtype=np.uint8), ends)


@numba.njit(cache=True, nogil=True)
def _hashes(raw: Any, ends: Any) -> Any:
    hashes = np.empty((len(ends), 2), dtype=np.uint64)
    start = 0
    for place in range(len(ends)):
        first, second = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
        for index in range(start, ends[place]):
            first = mix(first ^ np.uint64(raw[index]) + np.uint64(1))
            second = mix(second * np.uint64(0x100000001B3) + np.uint64(raw[index]) + np.uint64(1))
        hashes[place, 0], hashes[place, 1] = first, second
        start = ends[place]
    return hashes
