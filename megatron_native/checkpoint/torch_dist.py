"""megatron-core's `torch_dist` format, written and read a box of a tensor at a time: no model, process group or GPU.

The format: `.distcp` files are `torch.save` archives one after another, each one box ("chunk") of a global tensor;
`.metadata` is a pickled `torch.distributed.checkpoint` `Metadata` that says which box of which tensor lies at which
bytes of which file; `metadata.json` names the backends and `common.pt` holds what is not a tensor. Checkpoints
written here load through `megatron.core.dist_checkpointing.load` at any parallel layout, and those it saves are read
here.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_native.checkpoint.layout import in_one_line
from megatron_native.checkpoint.restricted_pickle import read_metadata
from megatron_native.errors import UserError

BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""`metadata.json`, as megatron-core 0.16 writes and expects it."""
METADATA_VERSION = "1.0.0"
DEFAULT_FILE_BYTES = 4 << 30


class _HashingFile(io.RawIOBase):
    """A file that counts and hashes the bytes that pass through it."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._digest = xxhash.xxh3_128()
        self.position = 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        count = self._file.write(data)
        self.position += count
        return count

    def close(self) -> None:
        self._file.close()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class TorchDistWriter:
    """Writes a checkpoint's tensors as they come; nothing is complete until `finish`.

    `digests` then has the xxh3_128 of every `.distcp` file, for the checksums.
    """

    def __init__(self, folder: Path, file_bytes: int = DEFAULT_FILE_BYTES) -> None:
        """`file_bytes`: a `.distcp` file that has grown past this is closed and the next begun."""
        self.folder = folder
        self.digests: dict[str, str] = {}
        self._file_bytes = file_bytes
        self._file: _HashingFile | None = None
        self._file_name = ""
        self._tensors: dict[str, TensorStorageMetadata] = {}
        self._objects: dict[str, BytesStorageMetadata] = {}
        self._storage: dict[MetadataIndex, _StorageInfo] = {}

    def write(self, key: str, global_shape: Sequence[int], offset: Sequence[int], box: torch.Tensor) -> None:
        """Write one box of the global tensor `key`, beginning at `offset`; boxes of a tensor share one dtype."""
        entry = self._tensors.setdefault(
            key, TensorStorageMetadata(TensorProperties(dtype=box.dtype), torch.Size(global_shape), [])
        )
        if entry.properties.dtype != box.dtype or entry.size != torch.Size(global_shape):
            raise ValueError(f"{key}: boxes of {entry.size} {entry.properties.dtype} and {global_shape} {box.dtype}")
        box = box.detach().contiguous()
        if box.untyped_storage().nbytes() != box.nbytes:
            box = box.clone()  # torch.save would write the whole storage behind a view
        info = self._append(box)
        entry.chunks.append(ChunkStorageMetadata(torch.Size(offset), box.size()))
        self._storage[MetadataIndex(key, offset)] = info

    def write_object(self, key: str, value: Any) -> None:
        """Write a megatron-core sharded object, `key` being its unique key (`NAME/shard_I_N`)."""
        self._objects[key] = BytesStorageMetadata()
        self._storage[MetadataIndex(key)] = self._append([value])

    def finish(self, common: Mapping[str, Any] | None = None) -> None:
        """Write `.metadata`, `common.pt` and `metadata.json`: the checkpoint can be loaded from here on."""
        self._close_file()
        metadata = Metadata(
            state_dict_metadata={**self._tensors, **self._objects},
            storage_data=self._storage,
            storage_meta=StorageMeta(),
            version=METADATA_VERSION,
        )
        with open(self.folder / ".metadata", "wb") as file:
            pickle.dump(metadata, file)
        torch.save(dict(common or {}), self.folder / "common.pt")
        (self.folder / "metadata.json").write_text(json.dumps(BACKENDS), encoding="utf-8")

    def _append(self, value: Any) -> _StorageInfo:
        if self._file is not None and self._file.position >= self._file_bytes:
            self._close_file()
        if self._file is None:
            self._file_name = f"__0_{len(self.digests)}.distcp"
            self._file = _HashingFile(self.folder / self._file_name)
        start = self._file.position
        torch.save(value, self._file)
        return _StorageInfo(self._file_name, start, self._file.position - start)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self.digests[self._file_name] = self._file.hexdigest()
            self._file = None


@dataclass(frozen=True)
class TensorInfo:
    """A global tensor of a checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class TorchDistReader:
    """Reads boxes of a checkpoint's global tensors, however its chunks are cut."""

    def __init__(self, folder: Path) -> None:
        """Reads only the metadata; `UserError` where it is missing, damaged, hostile or of another format."""
        self.folder = Path(folder)
        _check_backends(self.folder)
        metadata = read_metadata(self.folder / ".metadata")
        self.tensors: dict[str, TensorInfo] = {}
        self.objects: set[str] = set()
        self._chunks: dict[str, list[ChunkStorageMetadata]] = {}
        self._storage: dict[Any, Any] = metadata.storage_data or {}
        for key, entry in metadata.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata):
                self.tensors[key] = TensorInfo(tuple(entry.size), entry.properties.dtype)
                self._chunks[key] = entry.chunks
            else:
                self.objects.add(key)

    def read(self, key: str, offset: Sequence[int] | None = None, shape: Sequence[int] | None = None) -> torch.Tensor:
        """The box of `key` that begins at `offset` and extends over `shape`; by default the whole tensor.

        A box that is one chunk is returned as read; else the chunks that it overlaps are read one after another.
        Raises `UserError` when the tensor is absent, too small for the box, or not wholly covered by chunks.
        """
        if key not in self.tensors:
            raise UserError(f"{self.folder} has no tensor '{key}'; it is a checkpoint of another model or was cut short.")
        info = self.tensors[key]
        offset = tuple(offset) if offset is not None else (0,) * len(info.shape)
        shape = tuple(shape) if shape is not None else info.shape
        if len(offset) != len(info.shape) or any(
            start + extent > size for start, extent, size in zip(offset, shape, info.shape, strict=False)
        ):
            raise UserError(
                f"{self.folder}: '{key}' has shape {list(info.shape)}, too small for the part {list(shape)} at "
                f"{list(offset)} that the model in run/model.json has there; the two don't belong together."
            )
        result: torch.Tensor | None = None
        covered = 0
        for chunk in self._chunks[key]:
            overlap = _overlap(offset, shape, chunk)
            if overlap is None:
                continue
            tensor = self._read_chunk(key, chunk)
            if tuple(chunk.offsets) == offset and tuple(chunk.sizes) == shape:
                return tensor
            if result is None:
                result = torch.empty(shape, dtype=info.dtype)
            into, out_of = overlap
            result[into] = tensor[out_of]
            covered += result[into].numel()
        expected = 1
        for extent in shape:
            expected *= extent
        if result is None or covered != expected:
            raise UserError(f"{self.folder}: {expected - covered} of {expected} values of '{key}' were never saved.")
        return result

    def _read_chunk(self, key: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        info = self._storage.get(MetadataIndex(key, chunk.offsets))
        if info is None or getattr(info, "transform_descriptors", None):
            how = "is not located" if info is None else f"is stored through {info.transform_descriptors}"
            raise UserError(f"{self.folder}: part {list(chunk.offsets)} of '{key}' {how} by its .metadata.")
        if Path(info.relative_path).name != info.relative_path:
            raise UserError(f"{self.folder}: .metadata points outside the checkpoint, to '{info.relative_path}'.")
        path = self.folder / info.relative_path
        try:
            with open(path, "rb") as file:
                file.seek(info.offset)
                archive = io.BytesIO(file.read(info.length))
            tensor = torch.load(archive, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"{self.folder} was cut short: {info.relative_path} is missing.") from None
        except Exception as error:  # zip and unpickling errors of a damaged archive come in many types
            raise UserError(
                f"{path} is damaged: the {info.length} bytes at {info.offset}, part of '{key}', are no tensor "
                f"({in_one_line(error)}). Use an earlier checkpoint or copy this one again."
            ) from error
        if not isinstance(tensor, torch.Tensor) or tensor.size() != torch.Size(chunk.sizes):
            raise UserError(f"{path}: the bytes at {info.offset} are not the {list(chunk.sizes)} values of '{key}'.")
        return tensor.detach()


def _overlap(
    offset: tuple[int, ...], shape: tuple[int, ...], chunk: ChunkStorageMetadata
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Where a chunk meets a box: (slices of the box, slices of the chunk), or None where they don't."""
    into, out_of = [], []
    for start, extent, chunk_start, chunk_extent in zip(offset, shape, chunk.offsets, chunk.sizes, strict=True):
        first = max(start, chunk_start)
        last = min(start + extent, chunk_start + chunk_extent)
        if first >= last:
            return None
        into.append(slice(first - start, last - start))
        out_of.append(slice(first - chunk_start, last - chunk_start))
    return tuple(into), tuple(out_of)


def _check_backends(folder: Path) -> None:
    path = folder / "metadata.json"
    try:
        backends = json.loads(path.read_text(encoding="utf-8"))
        found = backends["sharded_backend"]
    except FileNotFoundError:
        raise UserError(f"{folder} has no metadata.json, so it is no distributed checkpoint, or one cut short.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not name a checkpoint backend ({error!r}); copy the checkpoint again.") from error
    if found != BACKENDS["sharded_backend"]:
        raise UserError(
            f"{path} names the backend '{found}'; only 'torch_dist' is read here. Load and save it once with the "
            "Megatron-LM that wrote it and --ckpt-format torch_dist."
        )


def read_common(folder: Path) -> dict[str, Any]:
    """What is not a tensor (`common.pt`), read with `weights_only`; `UserError` where it holds anything else."""
    path = folder / "common.pt"
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{folder} was cut short: common.pt is missing.") from None
    except Exception as error:
        raise UserError(
            f"{path} is damaged or holds more than plain values ({in_one_line(error)}); it was not loaded."
        ) from error
    return dict(value)
