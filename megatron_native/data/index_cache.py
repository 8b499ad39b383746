"""Where the arrays of large sequence indices are kept: built once a node, mapped by every process of it.

An entry is a folder named by the hash of its key, with the key in `key.json` and each array as `.npy`. It is built
beside and renamed whole, so that a process that is killed, or two that build the same, leave nothing half made. Small
arrays are built in memory instead, in milliseconds.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_native.errors import UserError
from megatron_native.manifest import parameters_hash

Columns = dict[str, Iterator[NDArray[Any]]]
"""Arrays by name, each in chunks, so that none has to be whole in memory while it is written."""
IN_MEMORY = 1 << 21
"""Below so many entries an array is built in memory by every process."""
FORMAT = "megatron-native/sequence-index/1"


class IndexCache:
    """Arrays by key; without a folder everything is built in memory.

    Args:
        folder: of the run or shared by several runs; entries are found by their key.
        say: called with a line before something large is built.
    """

    def __init__(self, folder: Path | None, say: Callable[[str], None] | None = None) -> None:
        self.folder = folder
        self._say = say or (lambda _: None)

    def keeps(self, entries: int) -> bool:
        """Whether arrays of so many entries are written to the folder."""
        return self.folder is not None and entries >= IN_MEMORY

    def columns(
        self, entries: int, key: Callable[[], Mapping[str, Any]], build: Callable[[], Columns]
    ) -> dict[str, NDArray[Any]]:
        """The arrays of a key, from the folder or built now.

        Raises:
            UserError: what lies there belongs to another key, is damaged, or can't be written.
        """
        if self.folder is None or not self.keeps(entries):
            return {name: _joined(chunks) for name, chunks in build().items()}
        content = json.loads(json.dumps({"format": FORMAT, **key()}))
        place = self.folder / parameters_hash(content)[:32]
        if not place.is_dir():
            self._write(place, content, build)
        return _read(place, content)

    def _write(self, place: Path, content: dict[str, Any], build: Callable[[], Columns]) -> None:
        self._say(f"building the sequence index {content['purpose']} of {content['name']}, epoch {content['epoch']}")
        partial = place.with_name(f"{place.name}.{socket.gethostname()}.{os.getpid()}.partial")
        try:
            partial.mkdir(parents=True)
            for name, chunks in build().items():
                _save(partial / f"{name}.npy", chunks)
            (partial / "key.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            try:
                os.replace(partial, place)
            except OSError:
                if not place.is_dir():  # otherwise another process was first, with the same content
                    raise
        except OSError as error:
            raise UserError(
                f"the sequence index can't be written to {place} ({error.strerror}): free space there, or set "
                "data.index_cache to a folder on another disk."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _read(place: Path, content: dict[str, Any]) -> dict[str, NDArray[Any]]:
    try:
        found = json.loads((place / "key.json").read_text(encoding="utf-8"))
        if found != content:
            differing = [name for name in content if found.get(name) != content[name]]
            raise UserError(
                f"{place} is the sequence index of other data ({', '.join(differing)} differ): delete that folder, it is "
                "built again."
            )
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(place.glob("*.npy"))}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{place} is no whole sequence index ({error}): delete that folder, it is built again."
        ) from error


def _save(path: Path, chunks: Iterator[NDArray[Any]]) -> None:
    """One array of several chunks as `.npy`, whose length is known only at the end."""
    with open(path, "wb") as file:
        first = next(chunks)
        header_bytes = _header(file, first.dtype, 1 << 62)
        length = 0
        while True:
            file.write(np.ascontiguousarray(first).data)
            length += len(first)
            following = next(chunks, None)
            if following is None:
                break
            first = following
        file.flush()
        os.fsync(file.fileno())
    with open(path, "r+b") as file:
        assert _header(file, first.dtype, length) == header_bytes


def _header(file: Any, dtype: np.dtype[Any], length: int) -> int:
    """A header of a size that does not depend on the length: numpy pads it for arrays that grow."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    )
    return int(file.tell())


def _joined(chunks: Iterator[NDArray[Any]]) -> NDArray[Any]:
    arrays = list(chunks)
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
