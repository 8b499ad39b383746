"""Every weight of a Hugging Face folder on its way into `.distcp` files: one pass over each shard, block by block.

A shard is read once from front to back: the same blocks give the digests of the shard and of its tensors and go into
the box that they belong to. A box made of several tensors (query, key, value) is written when the last of them comes by;
its parts are then read a second time, which the disk rarely notices. Which box lies where is known before the first
byte is written, so shards are converted by several threads and the result never depends on their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash

from megatron_native.checkpoint.conversion import Conversion, SourceFile, block_buffer
from megatron_native.checkpoint.row_runs import box_rows_axis, box_runs, part_of_box, row_length
from megatron_native.checkpoint.safetensors_files import DTYPES, HfWeights, TensorPlace
from megatron_native.checkpoint.torch_archive import MAX_TENSOR_BYTES, TensorArchive
from megatron_native.checkpoint.torch_dist import BoxPlace, DistcpFile, distcp_name
from megatron_native.models.weight_map import Piece
from megatron_native.progress import progress


@dataclass(frozen=True)
class Stretch:
    """Bytes of one Hugging Face tensor that are consecutive in a box."""

    name: str
    first: int
    """Where they begin in the tensor."""
    length: int


@dataclass(frozen=True)
class PlannedBox:
    """A box, where it will lie, and what it is made of, in the order of its bytes."""

    place: BoxPlace
    stretches: tuple[Stretch, ...]


@dataclass
class ShardPlan:
    """What becomes of one safetensors file."""

    number: int
    path: Path
    tensors: list[TensorPlace]
    """In the order of the file."""
    boxes: dict[str, list[PlannedBox]] = field(default_factory=dict)
    """The boxes to write when a tensor comes by, by its name."""
    files: list[str] = field(default_factory=list)
    """The `.distcp` files that its boxes go to, in order."""


def plan_import(weights: HfWeights, pieces: Sequence[Piece], file_bytes: int) -> list[ShardPlan]:
    """Where every box will lie; a `.distcp` file is begun when the one before would grow past `file_bytes`."""
    plans = [ShardPlan(number, path, weights.places_in(path)) for number, path in enumerate(weights.files)]
    order = {place.name: (plan.number, place.start) for plan in plans for place in plan.tensors}
    at: dict[str, list[Piece]] = {}
    for piece in pieces:
        at.setdefault(max(piece.hf_names, key=order.__getitem__), []).append(piece)
    next_file = 0
    for plan in plans:
        position = 0
        for tensor in plan.tensors:
            for piece in at.get(tensor.name, []):
                for box in _boxes(piece, DTYPES[weights.specs[tensor.name].dtype]):
                    length = TensorArchive(box.place.dtype, box.place.shape).length
                    if not plan.files or (position and position + length > file_bytes):
                        plan.files.append(distcp_name(next_file))
                        next_file, position = next_file + 1, 0
                    place = BoxPlace(
                        box.place.key, box.place.dtype, box.place.global_shape, box.place.offset, box.place.shape,
                        plan.files[-1], position, length,
                    )  # fmt: skip
                    plan.boxes.setdefault(tensor.name, []).append(PlannedBox(place, box.stretches))
                    position += length
    return plans


def _boxes(piece: Piece, dtype: torch.dtype, most_bytes: int = MAX_TENSOR_BYTES) -> list[PlannedBox]:
    """A piece as one box, or as several where it has more bytes than an archive holds; not placed in a file yet."""
    row_bytes = row_length(piece) * dtype.itemsize
    all_rows = piece.shape[box_rows_axis(piece)]
    step = max(1, most_bytes // row_bytes)
    runs = [Stretch(piece.hf_names[run.tensor], run.first * row_bytes, run.rows * row_bytes) for run in box_runs(piece)]
    boxes = []
    for first in range(0, all_rows, step):
        rows = min(step, all_rows - first)
        offset, shape = part_of_box(piece, first, rows)
        place = BoxPlace(piece.key, dtype, piece.global_shape, offset, shape, "", 0, 0)
        boxes.append(PlannedBox(place, tuple(_cut(runs, first * row_bytes, rows * row_bytes))))
    return boxes


def _cut(stretches: Sequence[Stretch], first: int, length: int) -> list[Stretch]:
    """The stretches that make up `length` bytes of a sequence of them, from its byte `first` on."""
    result, position = [], 0
    for stretch in stretches:
        begin, end = max(first, position), min(first + length, position + stretch.length)
        if begin < end:
            result.append(Stretch(stretch.name, stretch.first + begin - position, end - begin))
        position += stretch.length
    return result


def convert(
    conversion: Conversion, weights: HfWeights, plans: Sequence[ShardPlan], workers: int
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Write every box that is not there yet.

    Returns xxh3_128 digests of the `.distcp` files and of the tensors, by name, and those of the shards, in order.
    """
    with progress("import", total=sum(spec.bytes for spec in weights.specs.values()), unit="B") as bar:
        advance = partial(conversion.advance, bar)
        conversion.run([_ShardImport(conversion, weights, plan, advance) for plan in plans], workers)
    shards = [_record(conversion, _source_record(plan)) for plan in plans]
    files = {name: _record(conversion, name)["xxh3_128"] for plan in plans for name in plan.files}
    tensors = {name: digest for shard in shards for name, digest in shard["tensors"].items()}
    return files, tensors, [shard["xxh3_128"] for shard in shards]


def _record(conversion: Conversion, name: str) -> dict[str, Any]:
    record = conversion.record(name)
    if record is None:
        raise RuntimeError(f"{conversion.partial}: {name} was finished and has no record")
    return record


def _source_record(plan: ShardPlan) -> str:
    return f"shard-{plan.number:05d}"


class _ShardImport:
    """One shard's way into its `.distcp` files; what has a record is not written again."""

    def __init__(self, conversion: Conversion, weights: HfWeights, plan: ShardPlan, advance: Any) -> None:
        self._conversion, self._weights, self._plan, self._advance = conversion, weights, plan, advance
        self._there = {name for name in plan.files if conversion.record(name)}
        self._file: DistcpFile | None = None
        self._file_name = ""

    def __call__(self) -> None:
        plan, conversion = self._plan, self._conversion
        if self._there == set(plan.files) and conversion.record(_source_record(plan)):
            self._advance(sum(tensor.bytes for tensor in plan.tensors))
            return
        try:
            with SourceFile(plan.path) as source:
                digest, tensors = self._convert(source)
            self._close_file()
        finally:
            if self._file is not None:
                self._file.abandon()
        conversion.finish_file(_source_record(plan), {"xxh3_128": digest, "tensors": tensors})

    def _convert(self, source: SourceFile) -> tuple[str, dict[str, str]]:
        """Write the shard's boxes; the digests of the shard and of its tensors."""
        whole = xxhash.xxh3_128()
        tensors: dict[str, str] = {}
        buffer = block_buffer()
        position = 0
        for tensor in self._plan.tensors:
            for block in source.blocks(position, tensor.start - position, buffer):  # the header, before the first one
                whole.update(block)
            boxes = [box for box in self._plan.boxes.get(tensor.name, []) if box.place.file not in self._there]
            direct = len(boxes) == 1 and boxes[0].stretches == (Stretch(tensor.name, 0, tensor.bytes),)
            if direct:
                self._begin(boxes[0])
            digest = xxhash.xxh3_128()
            for block in source.blocks(tensor.start, tensor.bytes, buffer, ahead=source.size):
                whole.update(block)
                digest.update(block)
                if direct:
                    self._add(block)
                self._advance(len(block))
            tensors[tensor.name] = digest.hexdigest()
            if direct:
                self._end()
            else:
                for box in boxes:
                    self._write(box)
            position = tensor.start + tensor.bytes
        for block in source.blocks(position, source.size - position, buffer):
            whole.update(block)
        return whole.hexdigest(), tensors

    def _write(self, box: PlannedBox) -> None:
        """A box of stretches from wherever they lie, in this shard or in those before."""
        self._begin(box)
        paths = {stretch.name: self._weights.places[stretch.name] for stretch in box.stretches}
        opened = {place.path: SourceFile(place.path) for place in paths.values()}
        try:
            for stretch in box.stretches:
                place = paths[stretch.name]
                for block in opened[place.path].blocks(place.start + stretch.first, stretch.length, block_buffer()):
                    self._add(block)
                self._advance(0)
        finally:
            for source in opened.values():
                source.__exit__()
        self._end()

    def _begin(self, box: PlannedBox) -> None:
        if self._file is None or self._file_name != box.place.file:
            self._close_file()
            self._file_name = box.place.file
            self._file = DistcpFile(self._conversion.partial / self._file_name)
        if self._file.position != box.place.start:
            raise RuntimeError(f"{box.place} was to begin where {self._file.position} bytes are")
        self._file.begin(box.place.dtype, box.place.shape)

    def _add(self, block: memoryview) -> None:
        assert self._file is not None
        self._file.add(block)

    def _end(self) -> None:
        assert self._file is not None
        self._file.end()

    def _close_file(self) -> None:
        if self._file is None:
            return
        size = self._file.position
        digest = self._file.close()
        self._file = None
        self._conversion.finish_file(self._file_name, {"bytes": size, "xxh3_128": digest})


def boxes_of(plans: Sequence[ShardPlan], pieces: Sequence[Piece]) -> list[BoxPlace]:
    """Every box, in the order of the model's pieces: what the checkpoint's metadata lists."""
    rank = {(piece.key, piece.offset): number for number, piece in enumerate(pieces)}
    planned = [box.place for plan in plans for boxes in plan.boxes.values() for box in boxes]
    last = len(rank)
    return sorted(planned, key=lambda place: (rank.get((place.key, place.offset), last), place.key, place.offset))
