"""The archive that `torch.save` makes of one tensor, written and found without torch copying the tensor.

A torch archive is a zip file with stored (never compressed) members: `data.pkl` says how the tensor is rebuilt,
`data/0` has its bytes in row order, `byteorder` and `version` are small. All but the checksum of the bytes is known
from dtype and shape, so the bytes can be streamed between a prefix and a suffix; and the bytes of a tensor that was
saved by torch can be read where they lie. `torch.load(weights_only=True)` reads what is written here.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import torch
from isal import isal_zlib

MAX_TENSOR_BYTES = (1 << 32) - (1 << 20)
"""A member of a plain zip file has fewer than 4 GiB; larger tensors are written in several boxes."""
_ROOT = "archive"
_ALIGNMENT = 64
_STORED_WITH_DESCRIPTOR = 0x0808  # sizes and checksum follow the member; names are UTF-8
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_DESCRIPTOR = struct.Struct("<4sIII")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_STORAGES = {
    torch.float64: torch.DoubleStorage, torch.float32: torch.FloatStorage, torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}  # fmt: skip
_DTYPES = {("torch", storage.__name__): dtype for dtype, storage in _STORAGES.items()}


def crc32(data: Any, before: int = 0) -> int:
    """The zip checksum of bytes, continuing from that of the bytes before them."""
    return int(isal_zlib.crc32(data, before))


class TensorArchive:
    """The frame around the bytes of one tensor: `prefix`, the bytes in row order, `suffix`."""

    def __init__(self, dtype: torch.dtype, shape: Sequence[int]) -> None:
        """Raises `ValueError` for a tensor of more than `MAX_TENSOR_BYTES`."""
        self.nbytes = prod(shape) * dtype.itemsize
        if self.nbytes > MAX_TENSOR_BYTES:
            raise ValueError(f"a tensor of {self.nbytes} bytes does not fit one archive; write it in several boxes")
        self._members: list[tuple[bytes, int, int, int]] = []  # name, checksum, size, where its header begins
        prefix = bytearray()
        for name, content in (("data.pkl", _pickled(dtype, shape)), ("byteorder", b"little"), ("version", b"3\n")):
            start = self._begin(prefix, name, align=False)
            prefix += content
            self._end(prefix, name, crc32(content), len(content), start)
        self._data_start = self._begin(prefix, "data/0", align=True)
        self.prefix = bytes(prefix)
        self.length = len(self.prefix) + self.nbytes + len(self.suffix(0))
        """Bytes of the whole archive."""

    def suffix(self, checksum: int) -> bytes:
        """What follows the tensor's bytes, whose `crc32` is `checksum`."""
        after = bytearray(_DESCRIPTOR.pack(b"PK\x07\x08", checksum, self.nbytes, self.nbytes))
        directory = bytearray()
        members = [*self._members, (f"{_ROOT}/data/0".encode(), checksum, self.nbytes, self._data_start)]
        for name, member_checksum, size, start in members:
            directory += _CENTRAL.pack(
                b"PK\x01\x02", 0, 0, _STORED_WITH_DESCRIPTOR, 0, 0, 0, member_checksum, size, size, len(name), 0, 0, 0, 0, 0,
                start,
            ) + name  # fmt: skip
        begins = len(self.prefix) + self.nbytes + len(after)
        end = _END.pack(b"PK\x05\x06", 0, 0, len(members), len(members), len(directory), begins, 0)
        return bytes(after + directory + end)

    @staticmethod
    def _begin(buffer: bytearray, name: str, align: bool) -> int:
        """Append a member's header, padded so that its content is aligned in the archive; return where it begins."""
        start = len(buffer)
        encoded = f"{_ROOT}/{name}".encode()
        padding = b""
        if align:
            missing = -(start + _LOCAL.size + len(encoded) + 4) % _ALIGNMENT
            padding = struct.pack("<2sH", b"FB", missing) + b"Z" * missing
        buffer += _LOCAL.pack(
            b"PK\x03\x04", 0, _STORED_WITH_DESCRIPTOR, 0, 0, 0, 0, 0, 0, len(encoded), len(padding)
        ) + encoded + padding  # fmt: skip
        return start

    def _end(self, buffer: bytearray, name: str, checksum: int, size: int, start: int) -> None:
        buffer += _DESCRIPTOR.pack(b"PK\x07\x08", checksum, size, size)
        self._members.append((f"{_ROOT}/{name}".encode(), checksum, size, start))


class _Storage:
    def __init__(self, dtype: torch.dtype, count: int) -> None:
        self.reference = ("storage", _STORAGES[dtype], "0", "cpu", count)


class _Tensor:
    def __init__(self, dtype: torch.dtype, shape: Sequence[int]) -> None:
        strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        self.arguments: tuple[Any, ...] = (_Storage(dtype, prod(shape)), 0, tuple(shape), strides, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.reference if isinstance(value, _Storage) else None


def _pickled(dtype: torch.dtype, shape: Sequence[int]) -> bytes:
    """`data.pkl` of a contiguous tensor."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(_Tensor(dtype, [int(extent) for extent in shape]))
    return buffer.getvalue()


@dataclass(frozen=True)
class StoredTensor:
    """Where the bytes of a contiguous tensor lie in a file, in row order."""

    position: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def locate_tensor(file: BinaryIO, start: int, length: int) -> StoredTensor | None:
    """Where the one tensor of the archive of `length` bytes at `start` has its bytes.

    None where the archive holds anything but a plain contiguous tensor of a floating-point dtype, or is damaged:
    `torch.load` has the last word on those.
    """
    try:
        with zipfile.ZipFile(_Slice(file, start, length)) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        description = _content(file, start, members["data.pkl"])
        if "byteorder" in members and _content(file, start, members["byteorder"]) != b"little":
            return None
        dtype, key, storage_offset, shape, strides = _Unpickler(io.BytesIO(description)).load()
        member = members[f"data/{key}"]
        position = _content_start(file, start, member) + storage_offset * dtype.itemsize
        contiguous = all(
            extent == 1 or stride == prod(shape[axis + 1 :])
            for axis, (extent, stride) in enumerate(zip(shape, strides, strict=True))
        )
        ends = (storage_offset + prod(shape)) * dtype.itemsize
        plain = member.compress_type == zipfile.ZIP_STORED and contiguous and storage_offset >= 0
        inside = ends <= member.file_size and position + prod(shape) * dtype.itemsize <= start + length
    except Exception:  # whatever it is, it is no plain tensor
        return None
    return StoredTensor(position, dtype, tuple(shape)) if plain and inside and min(shape, default=1) >= 0 else None


class _Unpickler(pickle.Unpickler):
    """Reads `data.pkl` of a plain tensor as (dtype, storage's name, offset, shape, strides) and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (*storage, offset, tuple(shape), tuple(strides))
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in _DTYPES:
            return _DTYPES[module, name]
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, reference: Any) -> Any:
        kind, dtype, key, _, _ = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(str(reference))
        return dtype, key


def _content_start(file: BinaryIO, start: int, member: zipfile.ZipInfo) -> int:
    file.seek(start + member.header_offset)
    header = _LOCAL.unpack(file.read(_LOCAL.size))
    return int(start + member.header_offset + _LOCAL.size + header[-2] + header[-1])


def _content(file: BinaryIO, start: int, member: zipfile.ZipInfo) -> bytes:
    """A small member; its checksum is not looked at, since torch can be told to leave it out."""
    file.seek(_content_start(file, start, member))
    return file.read(member.file_size)


class _Slice(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("seek before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._position))
        self._file.seek(self._start + self._position)
        found = self._file.read(count)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)
