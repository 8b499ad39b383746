"""The distributed optimizer's state for a checkpoint, without gathering it: each data-parallel rank saves what it owns.

megatron-core's `fully_reshardable` state is gathered over the data-parallel ranks at every save, so that each of them
holds all of it on the host, while training waits. But the format has global tensors in boxes of any shape: what a rank
owns of a parameter is a range of its elements in row-major order, and such a range is at most 2·n-1 boxes of an
n-dimensional tensor. So every rank describes its own range, nothing is sent, and the checkpoint loads as before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch.nn import Parameter

_STATES = ("param", "exp_avg", "exp_avg_sq")

Shape = tuple[int, ...]


@contextmanager
def without_gathering(optimizer: Any) -> Iterator[None]:
    """Within it every distributed optimizer inside, asked for a save, describes only what this rank owns."""
    inners = [
        inner
        for inner in getattr(optimizer, "chained_optimizers", [optimizer])
        if isinstance(inner, DistributedOptimizer)
    ]
    for inner in inners:
        inner.sharded_param_state_fully_reshardable = _describing(inner)
    try:
        yield
    finally:
        for inner in inners:
            del inner.sharded_param_state_fully_reshardable


def _describing(optimizer: Any) -> Any:
    def describe(model_state: Any, is_loading: bool = False, metadata: Any = None) -> Any:
        regions = {}
        for sharded in nested_values(extract_sharded_tensors_and_factories(model_state)[0]):
            regions[sharded.data] = _regions(sharded)
        return _owned(optimizer, regions)

    return describe


def put_unrounded_weights(optimizer: Any, state: dict[str, Any], rounded: Collection[Parameter]) -> None:
    """In a model's sharded state put weights that are kept in FP8 as their masters have them, in the model's precision (BF16).

    Each rank then describes the part that its optimizer owns, as of the optimizer's state.

    Args:
        optimizer: distributed ones, of all the weights.
        state: of `sharded_state.model_state`, perhaps with more beside; changed. The optimizer's has to be described before.
        rounded: `fp8_layers.rounded_weights`, on this rank.
    """
    regions: dict[Any, list[tuple[int, ShardedTensor]]] = {}
    identities = {id(one) for one in rounded}
    for chunk in [state[key] for key in state if key.startswith("model")]:
        for name, sharded in list(chunk.items()):
            if isinstance(sharded, ShardedTensor | ShardedTensorFactory) and id(sharded.data) in identities:
                regions[sharded.data] = _regions(sharded)
                del chunk[name]
    if not regions:
        return
    masters: dict[str, Any] = {}
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        for parameter, start, end, tensors in _owned_parameters(inner):
            if parameter in regions:
                flat = tensors["param"].detach().view(-1).to(parameter.dtype)
                masters[str(len(masters))] = _boxes_of("", flat, start, end, regions[parameter], inner)
    state["unrounded"] = masters


def _regions(sharded: Any) -> list[tuple[int, ShardedTensor]]:
    """The tensors that a parameter is stored as, with the place of each one's first element in the parameter."""
    if not isinstance(sharded, ShardedTensorFactory):
        return [(0, sharded)]
    probe = torch.empty(sharded.data.shape, dtype=sharded.data.dtype, device="meta")
    parts = list(nested_values(sharded.build_fn(sharded.key, probe, sharded.replica_id, None)))
    if not all(part.data.is_contiguous() for part in parts):
        raise NotImplementedError(f"{sharded.key} is stored in parts that are no ranges of its elements")
    return [(part.data.storage_offset(), part) for part in parts]


def _owned(optimizer: Any, regions: dict[Any, list[tuple[int, ShardedTensor]]]) -> dict[str, Any]:
    """Parameter → state → boxes, as sharded tensors, of what this rank owns."""
    return {
        str(index): {
            name: _boxes_of(
                f"optimizer.state.{name}.", tensors[name].detach().view(-1), start, end, regions[parameter], optimizer
            )
            for name in _STATES
        }
        for index, (parameter, start, end, tensors) in enumerate(_owned_parameters(optimizer))
    }


def _owned_parameters(optimizer: Any) -> Iterator[tuple[Parameter, int, int, dict[str, torch.Tensor]]]:
    """Every parameter of which this rank owns elements, the first and the end of them, and their states."""
    for ranges in optimizer.gbuf_ranges:
        for buckets in ranges.values():
            for bucket in buckets:
                for parameter, where in bucket["param_map"].items():
                    tensors = optimizer._get_main_param_and_optimizer_states(parameter)
                    yield parameter, where["param"].start, where["param"].end, tensors


def _boxes_of(
    prefix: str, flat: torch.Tensor, start: int, end: int, regions: list[tuple[int, ShardedTensor]], optimizer: Any
) -> dict[str, ShardedTensor]:
    """One state of one parameter, elements `start` to `end` of it in `flat`, as boxes of global tensors.

    Their keys are those of the parameter's own after `prefix`.
    """
    boxes: dict[str, ShardedTensor] = {}
    for first, region in regions:
        shape = tuple(region.local_shape)
        inside = max(start, first) - first, min(end, first + prod(shape)) - first
        for offset, size, element in boxes_of_range(shape, *inside):
            here = first + element - start
            ones = (1,) * region.prepend_axis_num
            place = region.global_offset[region.prepend_axis_num :]
            data = flat[here : here + prod(size)].view(ones + size)
            boxes[str(len(boxes))] = ShardedTensor(
                f"{prefix}{region.key}",
                data,
                data.dtype,
                ones + size,
                tuple(region.global_shape),
                tuple(region.global_offset[: region.prepend_axis_num])
                + tuple(a + b for a, b in zip(place, offset, strict=True)),
                None,
                # As of the parameter, but for the data-parallel ranks: they own different elements.
                (*region.replica_id[:2], optimizer.distributed_optimizer_instance_id),
                allow_shape_mismatch=region.allow_shape_mismatch,
            )
    return boxes


def boxes_of_range(shape: Shape, start: int, end: int) -> Iterator[tuple[Shape, Shape, int]]:
    """The boxes that elements `start` to `end` (row-major) of a tensor of `shape` make up.

    Yields:
        (offset, size, start) of each, in the order of their elements; a box's elements are contiguous.
    """
    if start >= end:
        return
    if len(shape) <= 1:
        yield ((start,), (end - start,), start) if shape else ((), (), 0)
        return
    row = prod(shape[1:])
    whole = -(-start // row), end // row  # the rows that are all inside
    if whole[0] > whole[1]:  # within one row
        yield from _within(shape, whole[1], start, end)
        return
    yield from _within(shape, whole[0] - 1, start, whole[0] * row)
    if whole[0] < whole[1]:
        yield (whole[0], *(0 for _ in shape[1:])), (whole[1] - whole[0], *shape[1:]), whole[0] * row
    yield from _within(shape, whole[1], whole[1] * row, end)


def _within(shape: Shape, index: int, start: int, end: int) -> Iterator[tuple[Shape, Shape, int]]:
    """The boxes of a range inside row `index`, where the range is not empty."""
    begin = index * prod(shape[1:])
    for offset, size, element in boxes_of_range(shape[1:], start - begin, end - begin):
        yield (index, *offset), (1, *size), begin + element
