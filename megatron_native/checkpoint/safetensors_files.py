"""A Hugging Face folder's safetensors: read by name across shards, written tensor by tensor into shards.

The format (huggingface/safetensors): 8 bytes of header length, little-endian; a JSON header `{name: {dtype, shape,
data_offsets}}`, padded with spaces; the tensors' bytes one after another. Since sizes are known beforehand, a shard is
written without ever being held in memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from megatron_native.checkpoint.conversion import HashedFile
from megatron_native.checkpoint.layout import in_one_line
from megatron_native.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""torch dtype → the name in a safetensors header."""
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
CONFIG_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPE_NAMES}
"""The name in a config.json ("bfloat16") → torch dtype."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as a safetensors header states it; `dtype` is the header's name for it ("BF16")."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the tensor's data."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor's bytes lie."""

    name: str
    path: Path
    start: int
    """In the file, the header included."""
    bytes: int


class HfWeights:
    """The weights of a Hugging Face folder, by name, whether in one file or many."""

    def __init__(self, folder: Path) -> None:
        """Reads every header; `UserError` names a missing shard, a damaged file or a tensor that is listed twice."""
        self.folder = Path(folder)
        self.files = _weight_files(self.folder)
        self.specs: dict[str, TensorSpec] = {}
        self._opened: dict[str, Any] = {}
        for path in self.files:
            handle = _open(path)
            for name in handle.keys():  # noqa: SIM118 - a safe_open handle is no mapping
                if name in self._opened:
                    raise UserError(f"{path} holds '{name}', which another shard of {folder} holds too; remove one.")
                part = handle.get_slice(name)
                if part.get_dtype() not in DTYPES:
                    raise UserError(
                        f"{path}: '{name}' has dtype {part.get_dtype()}; only {', '.join(DTYPES)} weights are converted. "
                        "De-quantise the model first."
                    )
                self._opened[name] = handle
                self.specs[name] = TensorSpec(name, part.get_dtype(), tuple(part.get_shape()))
        self._check_index()
        self.places: dict[str, TensorPlace] = {
            place.name: place for path in self.files for place in _places(path) if place.name in self.specs
        }
        """Where each tensor lies, by name."""

    def places_in(self, path: Path) -> list[TensorPlace]:
        """The tensors of one file, in the order of their bytes."""
        return sorted((place for place in self.places.values() if place.path == path), key=lambda place: place.start)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU."""
        tensor: torch.Tensor = self._opened[name].get_tensor(name)
        return tensor

    def _check_index(self) -> None:
        index = self.folder / INDEX
        if self.files == [self.folder / SINGLE] or not index.exists():
            return
        listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        if listed != set(self.specs):
            difference = sorted(listed ^ set(self.specs))
            raise UserError(
                f"{index} and the shards disagree on {len(difference)} tensors, such as '{difference[0]}'; the folder is "
                "incomplete or mixed from two models. Copy it again."
            )


def _weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a Hugging Face model folder (config.json, *.safetensors).")
    index = folder / INDEX
    if index.exists():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is no safetensors index ({error!r}); copy it again.") from error
        for shard in shards:
            if Path(shard).name != shard:
                raise UserError(f"{index} names a shard outside the folder, '{shard}'; it was not opened.")
            if not (folder / shard).is_file():
                raise UserError(f"{folder} lacks the shard {shard} that {INDEX} lists; finish its download.")
        return [folder / shard for shard in shards]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickled = next(iter(sorted(folder.glob("pytorch_model*.bin"))), None)
    if pickled is not None:
        raise UserError(
            f"{folder} has its weights pickled ({pickled.name}); only safetensors are read. Save it again with "
            "transformers: model.save_pretrained(FOLDER)."
        )
    raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}; give a whole Hugging Face model folder.")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is no whole safetensors file ({in_one_line(error)}); copy or download it again."
        ) from error


def _places(path: Path) -> list[TensorPlace]:
    """The tensors of a file whose header has been found in order, with their places."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return [
        TensorPlace(
            name, path, 8 + length + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0]
        )
        for name, entry in header.items()
    ]


def tensor_digest(tensor: torch.Tensor) -> str:
    """xxh3_128 of a tensor's bytes in row order, in hex."""
    return xxhash.xxh3_128(tensor_bytes(tensor)).hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes in row order, without a copy where it is contiguous."""
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


@dataclass(frozen=True)
class Shard:
    """One safetensors file to be written: its name and its tensors in the order of their bytes."""

    file: str
    tensors: tuple[TensorSpec, ...]


def plan_shards(groups: Sequence[Sequence[TensorSpec]], max_shard_bytes: int) -> list[Shard]:
    """Assign tensors to files of at most `max_shard_bytes`, keeping groups (written together) together.

    A group larger than that gets a file of its own. Within a file wider dtypes come first, so that every tensor
    begins at a multiple of its element size.
    """
    parts: list[list[Sequence[TensorSpec]]] = [[]]
    size = 0
    for group in groups:
        group_bytes = sum(spec.bytes for spec in group)
        if parts[-1] and size + group_bytes > max_shard_bytes:
            parts.append([])
            size = 0
        parts[-1].append(group)
        size += group_bytes
    shards = []
    for number, part in enumerate(parts, start=1):
        file = SINGLE if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        ordered = sorted(part, key=lambda group: -max(DTYPES[spec.dtype].itemsize for spec in group))
        shards.append(Shard(file, tuple(spec for group in ordered for spec in group)))
    return shards


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Write `model.safetensors.index.json`, where there is more than one shard."""
    if len(shards) < 2:
        return
    index = {
        "metadata": {"total_size": sum(spec.bytes for shard in shards for spec in shard.tensors)},
        "weight_map": {spec.name: shard.file for shard in shards for spec in shard.tensors},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class ShardWriter:
    """Writes one planned shard; tensors must come in the plan's order, each in as many parts as it likes."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._expected = list(reversed(shard.tensors))
        self._missing = 0
        self._path = folder / shard.file
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for spec in shard.tensors:
            header[spec.name] = {
                "dtype": spec.dtype,
                "shape": list(spec.shape),
                "data_offsets": [position, position + spec.bytes],
            }
            position += spec.bytes
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._file = HashedFile(self._path)
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)

    def begin(self, spec: TensorSpec) -> None:
        """Begin the next tensor; the one before must be complete."""
        if self._missing or not self._expected or self._expected[-1] != spec:
            raise ValueError(
                f"{self._path}: {spec} came where {self._expected[-1:]} was planned, {self._missing} bytes early"
            )
        self._expected.pop()
        self._missing = spec.bytes

    def write(self, data: memoryview) -> None:
        """The tensor's next bytes, in row order."""
        self._missing -= data.nbytes
        self._file.write(data)

    def finish(self) -> dict[str, Any]:
        """Bring the file to the disk; its size (`bytes`) and `xxh3_128`. Every planned tensor must have come."""
        if self._expected or self._missing:
            raise ValueError(f"{self._path}: {len(self._expected)} planned tensors never came")
        size = self._file.position
        return {"bytes": size, "xxh3_128": self._file.close()}

    def abandon(self) -> None:
        """Close a file that will not be finished; nothing where it is."""
        self._file.abandon()
