"""Reading the pickled `.metadata` of a torch_dist checkpoint without running what a stranger put into it.

A pickle names the classes and functions it calls. The unpickler here admits the few that the format consists of, all
of them plain records, and refuses every other by name before anything of it is imported.
"""

from __future__ import annotations

import pickle
from enum import Enum
from pathlib import Path
from typing import Any

from megatron_native.checkpoint.layout import in_one_line
from megatron_native.errors import UserError

_METADATA = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"
ADMITTED = frozenset({
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    (_FILESYSTEM, "_StorageInfo"),
    (_FILESYSTEM, "_StoragePrefix"),
    # megatron-core keeps every rank's save plan in the metadata.
    (_PLANNER, "BytesIOWriteData"),
    (_PLANNER, "SavePlan"),
    (_PLANNER, "TensorWriteData"),
    (_PLANNER, "WriteItem"),
    (_PLANNER, "WriteItemType"),
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
})  # fmt: skip
"""(module, name) pairs that a `.metadata` may name, besides torch's dtypes: records, and a lookup of layouts."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ADMITTED:
            return super().find_class("pathlib" if module == "pathlib._local" else module, name)
        if module == "torch" and "." not in name:
            import torch

            value = getattr(torch, name, None)
            if isinstance(value, torch.dtype):
                return value
        if (module, name) == ("builtins", "getattr"):
            return _member
        raise UserError(f"names {module}.{name}")


def _member(kind: Any, name: Any) -> Enum:
    """The one use of `getattr` that is admitted: Python 3.11.0 to 3.11.3 pickle an enumeration's member by it."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind[name]
    raise UserError("names builtins.getattr")


def read_metadata(path: Path) -> Any:
    """The torch `Metadata` pickled at `path`.

    Raises:
        UserError: the file is missing, cut short, or names a class or function that the format does not need.
    """
    from torch.distributed.checkpoint.metadata import Metadata

    try:
        with open(path, "rb") as file:
            value = _MetadataUnpickler(file).load()
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}, so its tensors can't be found; it was cut short.") from None
    except UserError as refusal:
        raise UserError(
            f"{path} {refusal}, which no checkpoint's metadata needs, so it was not run. The file was made by something "
            "else or tampered with: don't use this checkpoint unless you trust where it came from and rewrite it there."
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path} is damaged ({type(error).__name__}: {in_one_line(error)}); copy it again.") from error
    if not isinstance(value, Metadata):
        raise UserError(f"{path} holds a {type(value).__name__} where checkpoint metadata belongs; copy it again.")
    return value
