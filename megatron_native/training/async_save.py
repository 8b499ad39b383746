"""One checkpoint from a sharded state to files in megatron-core's `torch_dist` format, in three parts.

`plan_save` (collective; blocks training) sorts the state into what this rank writes; nothing touches the disk, so
nothing can fail on one rank alone while others wait in a collective. `write_planned` runs in a forked process on every
rank: it writes, hashes and flushes one `.distcp` file, and on rank 0 what lies beside the tensors. `finish_save` (rank
0) joins the reports of all ranks into `.metadata` and the checksums, and renames the folder into place.

megatron-core's own asynchronous save is made of the same parts, but writes `common.pt` on rank 0 in the middle of
collectives, waits on queues that a killed writer never fills, copies views before it forks, and has no checksums.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from megatron.core.dist_checkpointing.serialization import _CONTENT_METADATA_KEY
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.torch_dist import BACKENDS, METADATA_VERSION
from megatron_native.manifest import file_digest
from megatron_native.training.forked_writer import OrphanedError

_WRITE_BYTES = 64 << 20


@dataclass
class PlannedSave:
    """What this rank is going to write."""

    planner: Any
    plan: SavePlan
    items: list[tuple[WriteItem, Any]]
    """Tensors, and `BytesIO` of objects that were pickled when the save began."""
    common: bytes
    """`common.pt`, on rank 0."""

    @property
    def bytes(self) -> int:
        """Size of this rank's tensors and objects in bytes; the files are a little larger."""
        return sum(_size(data) for _, data in self.items) + len(self.common)

    def stage(self) -> None:
        """Bring every tensor to memory that a fork sees as it is now: off the device, and out of shared memory."""
        staged, on_device = [], False
        for item, data in self.items:
            if isinstance(data, torch.Tensor):
                if data.device.type != "cpu":
                    data, on_device = data.to("cpu", non_blocking=True), True
                elif data.is_shared():
                    data = data.clone()
            staged.append((item, data))
        if on_device:
            torch.cuda.synchronize()
        self.items = staged

    def release(self) -> None:
        """Let go of what the forked writer sees in its own copy; pinned memory is shared with it and stays."""
        self.items = [entry for entry in self.items if isinstance(entry[1], torch.Tensor) and entry[1].is_pinned()]


@dataclass
class BesideTensors:
    """What rank 0 writes into the folder besides tensors."""

    source: Path | None
    """Checkpoint whose `run/` files travel along."""
    run_files: Mapping[str, str]
    """Texts by name relative to `run/`."""


@dataclass
class Written:
    """One rank's report: where its items lie, and the xxh3_128 of each file by name relative to the checkpoint."""

    plan: SavePlan
    results: list[WriteResult] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    bytes: int = 0


def plan_save(state: dict[str, Any], content: dict[str, Any], validate: bool) -> PlannedSave:
    """Sort a sharded state into what this rank writes. Collective where `validate` is set, and never writes.

    Args:
        state: megatron-core's sharded state dict; taken apart.
        content: megatron-core's description of it, stored along.
        validate: check over all ranks that every part of every tensor is written exactly once. Costly at scale, and the
            same for every save of a run.
    """
    state[_CONTENT_METADATA_KEY] = content
    sharded, common = save_preprocess(state, validate)
    sharded, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
    rank = dist.get_rank()
    planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
    planner.set_up_planner(mcore_to_pyt_state_dict(sharded, False), is_coordinator=rank == 0)
    plan = planner.create_local_plan()
    items = [(item, planner.resolve_data(item)) for item in planner.finish_plan(plan).items]
    pickled = io.BytesIO()
    if rank == 0:
        torch.save(common, pickled)
    return PlannedSave(planner, plan, items, pickled.getvalue())


def write_planned(
    planned: PlannedSave, partial: Path, rank: int, beside: BesideTensors | None, require_parent: Callable[[], None]
) -> Written:
    """Write what `plan_save` gave this rank into `partial`, flushed to the disk; runs in a forked process.

    Args:
        planned: this rank's part.
        partial: the folder that becomes the checkpoint; it exists.
        rank: names this rank's file.
        beside: on rank 0, what else to write.
        require_parent: raises when the process that wants this is gone.

    Raises:
        OSError: the disk refuses, for example because it is full.
    """
    written = Written(planned.plan)
    if planned.items:
        name = f"__{rank}_0.distcp"
        require_parent()
        with _HashedFile(partial / name, require_parent) as file:
            for item, data in planned.items:
                offset = file.tell()
                if item.type == WriteItemType.BYTE_IO:
                    file.write(data.getbuffer())
                else:
                    torch.save(_own_storage(data), file)
                length = file.tell() - offset
                written.results.append(WriteResult(item.index, length, _StorageInfo(name, offset, length)))
            written.digests[name] = file.flush_to_disk()
    if beside is not None:
        require_parent()
        (partial / "common.pt").write_bytes(planned.common)
        if beside.source is not None:
            layout.copy_run_files(beside.source, partial)
        for name, text in beside.run_files.items():
            path = partial / layout.RUN / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for path in (partial / "common.pt", *(partial / layout.RUN).rglob("*")):
            if path.is_file():
                layout.flush_to_disk(path)
                written.digests[path.relative_to(partial).as_posix()] = file_digest(path)
    written.bytes = sum((partial / name).stat().st_size for name in written.digests)
    return written


def finish_save(
    planner: Any, written: list[Written], partial: Path, folder: Path, set_aside: Callable[[Path], None]
) -> int:
    """Make a checkpoint of what all ranks have written, and rename it to `folder`; its size in bytes.

    Args:
        planner: rank 0's, from `plan_save`.
        written: every rank's report, by rank.
        partial: where they wrote.
        folder: what it is called from now on.
        set_aside: takes a folder of that name away, where there is one.

    Raises:
        OSError: the disk refuses.
    """
    _, metadata = planner.create_global_plan([report.plan for report in written])
    metadata.storage_data = {result.index: result.storage_data for report in written for result in report.results}
    metadata.storage_meta, metadata.version = StorageMeta(), METADATA_VERSION
    (partial / ".metadata").write_bytes(pickle.dumps(metadata))
    (partial / "metadata.json").write_text(json.dumps(BACKENDS), encoding="utf-8")
    digests: dict[str, str] = {}
    for report in written:
        digests.update(report.digests)
    layout.write_checksums(partial, digests)
    if folder.exists():
        set_aside(folder)
    layout.finish_partial(partial, folder)
    return sum(report.bytes for report in written)


class _HashedFile(io.RawIOBase):
    """A file that counts and hashes what is written to it. What the disk refuses leaves its `with` as it was said.

    torch.save goes on after an error of the file under it, and ends with one of its own about positions.
    """

    def __init__(self, path: Path, require_parent: Callable[[], None]) -> None:
        self._path, self._require_parent = path, require_parent
        self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 (closed by close)
        self._digest, self._position = xxhash.xxh3_128(), 0
        self._refused: Exception | None = None

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _WRITE_BYTES):
            part = view[start : start + _WRITE_BYTES]
            with self._remembering():
                self._require_parent()
                self._file.write(part)
            self._digest.update(part)
        self._position += len(view)
        return len(view)

    def flush_to_disk(self) -> str:
        """Everything to the disk; the xxh3_128 of it, in hex."""
        with self._remembering():
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def close(self) -> None:
        if not self.closed:
            with suppress(OSError) if self._refused else nullcontext():  # closing tries to write once more
                self._file.close()
        super().close()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._refused is not None:
            raise self._refused

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._refused = OSError(error.errno, error.strerror, self._path.name)
            raise self._refused from error
        except OrphanedError as error:
            self._refused = error
            raise


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with nothing around it: torch.save writes the whole storage behind a view."""
    tensor = tensor.detach()
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _size(data: Any) -> int:
    return data.nbytes if isinstance(data, torch.Tensor) else data.getbuffer().nbytes
