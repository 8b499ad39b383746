"""Where each weight's optimizer state lies in the flat buffers of Megatron-LM's `dp_reshardable` checkpoints.

There megatron-core's distributed optimizer saves its buffers as they are: of every model-parallel rank and chunk a few
buckets, `optimizer.distributed.dp_group_idx_G.gbuf_idx_I.dtype_(…).bucket_idx_B.STATE`. What lies where follows from the
layout of the run and the order in which its modules were made: parameters stand in reverse order, each from a multiple of
64 on, and G counts tensor ranks within pipeline ranks. Whoever reads has to compare the masters found with the weights:
that shows an order that was another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch

from megatron_native.checkpoint.torch_dist import TorchDistReader
from megatron_native.errors import UserError
from megatron_native.models.weight_map import Piece

Modules = Literal["transformer_engine", "local"]
MODULES: tuple[Modules, ...] = ("transformer_engine", "local")

_KEY = re.compile(r"^optimizer\.distributed\.dp_group_idx_(\d+)\.gbuf_idx_(\d+)\.dtype_(.*)\.bucket_idx_(\d+)\.param$")
_ALIGNMENT = 64
_LAYERS = "decoder.layers."
_EMBEDDING, _OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
_SPLIT_ON_ROWS = (_EMBEDDING, _OUTPUT, "linear_qkv.weight", "linear_qkv.bias")
_SPLIT_ON_COLUMNS = ("linear_proj.weight", "linear_fc2.weight")
_GATED = "linear_fc1.weight"
_NORM_AND_PROJECTION = ("self_attention.linear_qkv.layer_norm_weight", "self_attention.linear_proj.weight")
_REST_OF_LAYER = (
    "self_attention.linear_qkv.weight",
    "self_attention.linear_qkv.bias",
    "self_attention.q_layernorm.weight",
    "self_attention.k_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
)
_UNEVEN = (
    "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers", "pipeline_model_parallel_layout",
    "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split", "num_experts",
)  # fmt: skip


@dataclass(frozen=True)
class _Region:
    """A range of a bucket, and the box of a whole weight of one layer that it is."""

    bucket: str
    start: int
    shape: tuple[int, ...]
    offset: tuple[int, ...]


class BucketLayout:
    """The ranges of every weight.

    Args:
        reader: the checkpoint.
        arguments: of the Megatron-LM run; they name its layout.
        shapes: whole weights of one layer as the run had them, vocabulary padding included, by key (without number).
        layers: how many the model has.
        tied: whether the embedding doubles as the output layer.
        modules: whose order; Transformer Engine's layers come with their norms inside.

    Raises:
        UserError: the layout is not known or not even, or the buckets are not of its sizes.
    """

    def __init__(
        self,
        reader: TorchDistReader,
        arguments: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        layers: int,
        tied: bool,
        modules: Modules,
    ) -> None:
        self._reader, self._shapes = reader, dict(shapes)
        self._tensor, self._pipeline, self._virtual = _parallel_sizes(arguments, layers, reader)
        self._regions: dict[tuple[str, int | None], list[_Region]] = {}
        pair = _NORM_AND_PROJECTION[::-1] if modules == "transformer_engine" else _NORM_AND_PROJECTION
        order = [f"{_LAYERS}{name}" for name in (*pair, *_REST_OF_LAYER) if f"{_LAYERS}{name}" in shapes]
        buckets = _buckets(reader)
        chunks = self._pipeline * self._virtual
        for stage in range(self._pipeline):
            for chunk in range(self._virtual):
                at = chunk * self._pipeline + stage
                names: list[tuple[str, int | None]] = [(_EMBEDDING, None)] if at == 0 else []
                span = layers // chunks
                names += [(key, layer) for layer in range(at * span, (at + 1) * span) for key in order]
                if at == chunks - 1:
                    names += [("decoder.final_layernorm.weight", None)]
                    names += [] if tied and chunks == 1 else [(_OUTPUT, None)]
                for rank in range(self._tensor):
                    found = buckets.pop((stage * self._tensor + rank, chunk), [])
                    self._place(names[::-1], found, rank)
        if buckets:
            raise self._unknown(f"there are {len(buckets)} buffers more than this layout has")

    def read(self, state: str, piece: Piece) -> torch.Tensor:
        """A state of the optimizer for a piece of a weight, put together from the ranks' buffers."""
        stacked = piece.key.startswith(_LAYERS)
        layer = piece.offset[0] if stacked else None
        offset, shape = (piece.offset[1:], piece.shape[1:]) if stacked else (piece.offset, piece.shape)
        result = torch.empty(shape)
        for region in self._regions[piece.key, layer]:
            into, out_of = [], []
            for start, extent, there, size in zip(offset, shape, region.offset, region.shape, strict=True):
                first, last = max(start, there), min(start + extent, there + size)
                into.append(slice(first - start, last - start))
                out_of.append(slice(first - there, last - there))
            if any(part.start >= part.stop for part in into):
                continue
            flat = self._reader.read(f"{region.bucket}.{state}", (region.start,), (prod(region.shape),))
            result[tuple(into)] = flat.reshape(region.shape)[tuple(out_of)]
        return result.reshape(piece.shape)

    def _place(self, names: Sequence[tuple[str, int | None]], buckets: Sequence[tuple[str, int]], rank: int) -> None:
        """Lay one rank's parameters into its buckets, one after another until each is full."""
        remaining = list(names)
        for bucket, size in buckets:
            end = 0
            while end < size:
                if not remaining:
                    raise self._unknown(f"{bucket} has {size - end} values more than the model")
                key, layer = remaining.pop(0)
                shape = self._local_shape(key)
                start = -(-end // _ALIGNMENT) * _ALIGNMENT
                end = start + prod(shape)
                if key == _OUTPUT and key not in self._shapes:
                    continue  # the last stage's own copy of a tied embedding
                if rank == 0 or shape != self._whole(key):
                    self._regions.setdefault((key, layer), []).extend(self._parts(key, rank, bucket, start, shape))
            if end != size:
                raise self._unknown(f"{bucket} has {size} values, where parameters end at {end}")
        if remaining:
            raise self._unknown(f"no buffer has the state of {remaining[0][0]}")

    def _whole(self, key: str) -> tuple[int, ...]:
        return self._shapes[_EMBEDDING if key == _OUTPUT and key not in self._shapes else key]

    def _local_shape(self, key: str) -> tuple[int, ...]:
        whole = self._whole(key)
        if key.endswith((*_SPLIT_ON_ROWS, _GATED)):
            return whole[0] // self._tensor, *whole[1:]
        if key.endswith(_SPLIT_ON_COLUMNS):
            return whole[0], whole[1] // self._tensor
        return whole

    def _parts(self, key: str, rank: int, bucket: str, start: int, shape: tuple[int, ...]) -> Iterator[_Region]:
        """Where a rank's part of a weight belongs: in one box, or its gate rows in one and its up rows in another."""
        zeros = (0,) * (len(shape) - 1)
        if key.endswith(_GATED):
            half = (shape[0] // 2, *shape[1:])
            whole = self._whole(key)[0] // 2
            yield _Region(bucket, start, half, (rank * half[0], *zeros))
            yield _Region(bucket, start + prod(half), half, (whole + rank * half[0], *zeros))
        elif key.endswith(_SPLIT_ON_COLUMNS):
            yield _Region(bucket, start, shape, (0, rank * shape[1]))
        else:
            split = key.endswith(_SPLIT_ON_ROWS)
            yield _Region(bucket, start, shape, (rank * shape[0] if split else 0, *zeros))

    def _unknown(self, what: str) -> UserError:
        return unknown_order(
            self._reader, f"at TP{self._tensor} × PP{self._pipeline}, {self._virtual} chunk(s) a stage, {what}"
        )


def unknown_order(reader: TorchDistReader, what: str) -> UserError:
    """The refusal of buffers whose order can't be told, with the way out."""
    return UserError(
        f"{reader.folder} holds optimizer state in buffers (dp_reshardable) whose order can't be told: {what}. Load it once "
        "with the Megatron-LM that wrote it, in the same layout, and save it with --dist-ckpt-optim-fully-reshardable; or "
        "give --weights-only to do without the optimizer."
    )


def matching_layout(
    make: Callable[[Modules], BucketLayout], pieces: Sequence[Piece], weight: Callable[[Piece], torch.Tensor]
) -> BucketLayout | None:
    """The layout, of Transformer Engine's or plain modules, whose masters of the first layer's norm are its weights."""
    probe = next(piece for piece in pieces if piece.key == _LAYERS + _NORM_AND_PROJECTION[0])
    for modules in MODULES:
        layout = make(modules)
        there = weight(probe)
        if torch.equal(layout.read("param", probe).to(there.dtype), there):
            return layout
    return None


def _parallel_sizes(arguments: Mapping[str, Any], layers: int, reader: TorchDistReader) -> tuple[int, int, int]:
    """Tensor and pipeline ranks, and chunks of a stage."""
    uneven = next((name for name in _UNEVEN if arguments.get(name)), None)
    if uneven is not None:
        raise unknown_order(reader, f"the run had {uneven} = {arguments[uneven]!r}")
    sizes = (
        arguments.get("tensor_model_parallel_size"),
        arguments.get("pipeline_model_parallel_size"),
        arguments.get("virtual_pipeline_model_parallel_size") or 1,
    )
    tensor, pipeline, virtual = sizes
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise unknown_order(reader, f"its arguments name no layout ({sizes})")
    assert isinstance(tensor, int) and isinstance(pipeline, int)
    if layers % (pipeline * virtual):
        raise unknown_order(reader, f"{layers} layers don't divide into {pipeline * virtual} chunks")
    return tensor, pipeline, virtual


def _buckets(reader: TorchDistReader) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """(model-parallel rank, chunk) → its buckets in order, each with its size."""
    found: dict[tuple[int, int], list[tuple[int, str, int]]] = {}
    kinds = set()
    for key, info in reader.tensors.items():
        if match := _KEY.match(key):
            group, chunk, kind, bucket = match.groups()
            kinds.add(kind)
            found.setdefault((int(group), int(chunk)), []).append(
                (int(bucket), key.removesuffix(".param"), info.shape[0])
            )
    if len(kinds) > 1:
        raise unknown_order(reader, f"weights are of several precisions ({', '.join(sorted(kinds))})")
    return {place: [(key, size) for _, key, size in sorted(buckets)] for place, buckets in found.items()}
