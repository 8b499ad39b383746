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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
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

from megatron_native.checkpoint.conversion import HashedFile, SourceFile
from megatron_native.checkpoint.layout import in_one_line
from megatron_native.checkpoint.restricted_pickle import read_metadata
from megatron_native.checkpoint.safetensors_files import DTYPE_NAMES, tensor_bytes
from megatron_native.checkpoint.torch_archive import (
    MAX_TENSOR_BYTES,
    StoredTensor,
    TensorArchive,
    crc32,
    locate_tensor,
)
from megatron_native.errors import UserError

BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""`metadata.json`, as megatron-core 0.16 writes and expects it."""
METADATA_VERSION = "1.0.0"
DEFAULT_FILE_BYTES = 2 << 30
_ASSEMBLED_BYTES = 16 << 20


class DistcpFile(HashedFile):
    """A `.distcp` file, box after box, whose bytes may come in parts."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._archive: TensorArchive | None = None
        self._checksum = 0

    def begin(self, dtype: torch.dtype, shape: Sequence[int]) -> None:
        """Begin a box of a tensor."""
        self._archive, self._checksum = TensorArchive(dtype, shape), 0
        self.write(self._archive.prefix)

    def add(self, data: Any) -> None:
        """The box's next bytes, in row order."""
        self._checksum = crc32(data, self._checksum)
        self.write(data)

    def end(self) -> None:
        """The box is complete."""
        if self._archive is None:
            raise ValueError("no box was begun")
        self.write(self._archive.suffix(self._checksum))
        self._archive = None


@dataclass(frozen=True)
class BoxPlace:
    """A box of a global tensor and where it lies among the `.distcp` files."""

    key: str
    dtype: torch.dtype
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    length: int


def write_metadata(
    folder: Path,
    boxes: Sequence[BoxPlace],
    objects: Mapping[str, _StorageInfo] | None = None,
    common: Mapping[str, Any] | None = None,
) -> None:
    """Write `.metadata`, `common.pt` and `metadata.json`: the checkpoint can be loaded from here on.

    Raises `ValueError` where boxes of one tensor disagree on its dtype or shape.
    """
    tensors: dict[str, Any] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for box in boxes:
        entry = tensors.setdefault(
            box.key, TensorStorageMetadata(TensorProperties(dtype=box.dtype), torch.Size(box.global_shape), [])
        )
        if entry.properties.dtype != box.dtype or entry.size != torch.Size(box.global_shape):
            raise ValueError(
                f"{box.key}: boxes of {entry.size} {entry.properties.dtype} and {box.global_shape} {box.dtype}"
            )
        entry.chunks.append(ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.shape)))
        storage[MetadataIndex(box.key, box.offset)] = _StorageInfo(box.file, box.start, box.length)
    for key, info in (objects or {}).items():
        tensors[key] = BytesStorageMetadata()
        storage[MetadataIndex(key)] = info
    metadata = Metadata(
        state_dict_metadata=tensors, storage_data=storage, storage_meta=StorageMeta(), version=METADATA_VERSION
    )
    with open(folder / ".metadata", "wb") as file:
        pickle.dump(metadata, file)
    torch.save(dict(common or {}), folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(BACKENDS), encoding="utf-8")


class TorchDistWriter:
    """Writes a checkpoint's tensors as they come; nothing is complete until `finish`.

    `digests` then has the xxh3_128 of every `.distcp` file, for the checksums.
    """

    def __init__(self, folder: Path, file_bytes: int = DEFAULT_FILE_BYTES, first_file: int = 0) -> None:
        """`file_bytes`: a `.distcp` file that has grown past this is closed and the next begun."""
        self.folder = folder
        self.digests: dict[str, str] = {}
        self._file_bytes = file_bytes
        self._next_file = first_file
        self._file: DistcpFile | None = None
        self._file_name = ""
        self._boxes: list[BoxPlace] = []
        self.objects: dict[str, _StorageInfo] = {}

    def write(self, key: str, global_shape: Sequence[int], offset: Sequence[int], box: torch.Tensor) -> None:
        """Write one box of the global tensor `key`, beginning at `offset`; boxes of a tensor share one dtype."""
        file = self._open_file()
        start = file.position
        if box.dtype in DTYPE_NAMES and box.nbytes <= MAX_TENSOR_BYTES:
            file.begin(box.dtype, box.shape)
            file.add(tensor_bytes(box))
            file.end()
        else:
            _save(box.detach().clone(memory_format=torch.contiguous_format), file)
        self._boxes.append(
            BoxPlace(key, box.dtype, tuple(global_shape), tuple(offset), tuple(box.shape), self._file_name, start,
                     file.position - start)
        )  # fmt: skip

    def write_object(self, key: str, value: Any) -> None:
        """Write a megatron-core sharded object, `key` being its unique key (`NAME/shard_I_N`)."""
        file = self._open_file()
        start = file.position
        _save([value], file)
        self.objects[key] = _StorageInfo(self._file_name, start, file.position - start)

    def finish(self, common: Mapping[str, Any] | None = None) -> None:
        """Write `.metadata`, `common.pt` and `metadata.json`: the checkpoint can be loaded from here on."""
        self.close()
        write_metadata(self.folder, self._boxes, self.objects, common)

    def close(self) -> None:
        """Close the file being written; `digests` has it then."""
        if self._file is not None:
            self.digests[self._file_name] = self._file.close(flush=False)
            self._file = None

    def _open_file(self) -> DistcpFile:
        if self._file is not None and self._file.position >= self._file_bytes:
            self.close()
        if self._file is None:
            self._file_name = distcp_name(self._next_file)
            self._next_file += 1
            self._file = DistcpFile(self.folder / self._file_name)
        return self._file


def distcp_name(number: int) -> str:
    """The name of a checkpoint's n-th file of tensors, as one process of megatron-core names it."""
    return f"__0_{number}.distcp"


def _save(value: Any, file: HashedFile) -> None:
    """`torch.save` to where the file is: small values, and tensors that `TensorArchive` is not for."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    file.write(buffer.getbuffer())


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
        self.metadata = metadata = read_metadata(self.folder / ".metadata")
        metadata.storage_data = metadata.storage_data or {}
        self.tensors: dict[str, TensorInfo] = {}
        self.objects: set[str] = set()
        self._chunks: dict[str, list[ChunkStorageMetadata]] = {}
        self._storage: dict[Any, Any] = metadata.storage_data
        self._located: dict[tuple[str, tuple[int, ...]], tuple[Path, StoredTensor] | None] = {}
        for key, entry in metadata.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata):
                self.tensors[key] = TensorInfo(tuple(entry.size), entry.properties.dtype)
                self._chunks[key] = entry.chunks
            else:
                self.objects.add(key)

    def read(self, key: str, offset: Sequence[int] | None = None, shape: Sequence[int] | None = None) -> torch.Tensor:
        """The box of `key` that begins at `offset` and extends over `shape`; by default the whole tensor.

        A box inside one chunk is returned as read; else the parts of the chunks that it overlaps, one after another.
        Raises `UserError` when the tensor is absent, too small for the box, or not wholly covered by chunks.
        """
        if key not in self.tensors:
            raise UserError(
                f"{self.folder} has no tensor '{key}'; it is a checkpoint of another model or was cut short."
            )
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
            into, out_of = overlap
            part = self._read_part(key, chunk, out_of)
            if tuple(part.shape) == shape:
                return part
            if result is None:
                result = torch.empty(shape, dtype=info.dtype)
            result[into] = part
            covered += part.numel()
        if result is None or covered != prod(shape):
            raise UserError(
                f"{self.folder}: {prod(shape) - covered} of {prod(shape)} values of '{key}' were never saved."
            )
        return result

    def stream(self, key: str, offset: Sequence[int], shape: Sequence[int], buffer: memoryview) -> Iterator[memoryview]:
        """The bytes of a box in row order, in blocks that are each valid until the next.

        A box that lies in one piece in its file is read straight into `buffer`; of any other, a few rows are put together
        at a time. Raises as `read` does.
        """
        offset, shape = tuple(offset), tuple(shape)
        loaded = False
        for chunk in self._chunks.get(key, []):
            overlap = _overlap(offset, shape, chunk)
            if overlap is None:
                continue
            stored = self._locate(key, chunk)
            loaded = loaded or stored is None
            if stored is None or any(part != slice(0, size) for part, size in zip(overlap[0], shape, strict=True)):
                continue
            first, end = _flat_range(overlap[1], tuple(chunk.sizes))
            if end - first != prod(shape):
                break
            path, place = stored
            size = place.dtype.itemsize
            with self._open(path) as file:
                last = place.position + prod(place.shape) * size
                yield from file.blocks(place.position + first * size, (end - first) * size, buffer, ahead=last)
            return
        if loaded:  # torch.load has a chunk whole or not at all
            yield tensor_bytes(self.read(key, offset, shape))
            return
        axis = next((axis for axis, extent in enumerate(shape) if extent > 1), 0)
        itemsize = self.tensors[key].dtype.itemsize if key in self.tensors else 1
        step = max(1, _ASSEMBLED_BYTES // max(1, prod(shape[axis + 1 :]) * itemsize))
        for begin in range(0, shape[axis] if shape else 1, step):
            extent = min(step, shape[axis] - begin) if shape else 1
            rows = self.read(
                key,
                (*offset[:axis], offset[axis] + begin, *offset[axis + 1 :]) if shape else offset,
                (*shape[:axis], extent, *shape[axis + 1 :]) if shape else shape,
            )
            yield tensor_bytes(rows)

    def _read_part(self, key: str, chunk: ChunkStorageMetadata, part: tuple[slice, ...]) -> torch.Tensor:
        """A part of a chunk; from its place in the file no more is read than what lies between its first and last value."""
        stored = self._locate(key, chunk)
        if stored is None:
            return self._load_chunk(key, chunk)[part]
        path, place = stored
        first, end = _flat_range(part, place.shape)
        values = torch.empty(end - first, dtype=place.dtype)
        size = place.dtype.itemsize
        with self._open(path) as file:
            for _ in file.blocks(place.position + first * size, (end - first) * size, tensor_bytes(values)):
                pass  # one block: the tensor's own bytes are the buffer
        strides = [prod(place.shape[axis + 1 :]) for axis in range(len(place.shape))]
        return values.as_strided([there.stop - there.start for there in part], strides)

    def _locate(self, key: str, chunk: ChunkStorageMetadata) -> tuple[Path, StoredTensor] | None:
        """Where a chunk's bytes lie; None where only `torch.load` can tell."""
        name = (key, tuple(chunk.offsets))
        if name not in self._located:
            path, info = self._place(key, chunk)
            with self._open(path), open(path, "rb") as file:
                stored = locate_tensor(file, info.offset, info.length)
            expected = (self.tensors[key].dtype, tuple(chunk.sizes))
            fits = stored is not None and (stored.dtype, stored.shape) == expected
            self._located[name] = (path, stored) if stored is not None and fits else None
        return self._located[name]

    def _open(self, path: Path) -> SourceFile:
        try:
            return SourceFile(path)
        except FileNotFoundError:
            raise UserError(f"{self.folder} was cut short: {path.name} is missing.") from None
        except OSError as error:
            raise UserError(f"{path} can't be opened ({error.strerror}); copy it again.") from error

    def _place(self, key: str, chunk: ChunkStorageMetadata) -> tuple[Path, Any]:
        info = self._storage.get(MetadataIndex(key, chunk.offsets))
        if info is None or getattr(info, "transform_descriptors", None):
            how = "is not located" if info is None else f"is stored through {info.transform_descriptors}"
            raise UserError(f"{self.folder}: part {list(chunk.offsets)} of '{key}' {how} by its .metadata.")
        if Path(info.relative_path).name != info.relative_path:
            raise UserError(f"{self.folder}: .metadata points outside the checkpoint, to '{info.relative_path}'.")
        return self.folder / info.relative_path, info

    def _load_chunk(self, key: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        """A chunk as `torch.load` reads it, or its refusal."""
        path, info = self._place(key, chunk)
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


def _flat_range(part: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, int]:
    """From the first value of a part to behind its last, counting values of the whole in row order."""
    first = end = 0
    for there, size in zip(part, shape, strict=True):
        first, end = first * size + there.start, end * size + there.stop - 1
    return first, end + 1


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
        raise UserError(
            f"{folder} has no metadata.json, so it is no distributed checkpoint, or one cut short."
        ) from None
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
