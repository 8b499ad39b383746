"""The optimizer's FP32 master weights: where they are, and how a checkpoint's weights get into them unrounded.

megatron-core fills masters from the model's weights. Where those are kept in FP8, that loses the bits which the masters
are there to hold, so the checkpoint's values are put into them directly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.fp8_utils import dequantize_fp8_tensor, is_float8tensor
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer
from torch import Tensor
from torch.nn import Parameter

from megatron_native.training import sharded_state


def masters_of(optimizer: Any) -> Iterator[tuple[Parameter, slice, Tensor]]:
    """Every model parameter that has a master on this rank, the part of it that the master stands for, and the master."""
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        if getattr(inner, "is_stub_optimizer", False) or isinstance(inner, FP32Optimizer):
            continue
        if isinstance(inner, DistributedOptimizer):
            pairs = [
                (inner.model_float16_groups, inner.shard_fp32_from_float16_groups),
                (inner.model_fp32_groups, inner.shard_fp32_groups),
            ]
        elif isinstance(inner, Float16OptimizerWithFloat16Params):
            pairs = [(inner.float16_groups, inner.fp32_from_float16_groups)]
        else:
            raise RuntimeError(f"an optimizer of the kind {type(inner).__name__}, whose masters are not known here")
        for weights, masters in pairs:
            for weight, master in zip(chain(*weights), chain(*masters), strict=True):
                yield weight, _shard_of(inner, weight), master


def read_weights(folder: Path, modules: Sequence[Any]) -> tuple[dict[str, Any], dict[Parameter, Tensor]]:
    """A checkpoint's weights in the model's own precision, in memory of their own; collective.

    Returns:
        What `sharded_state.put_model_state` takes, and for each parameter of the unwrapped chunks its values, in its
        shape on this rank.
    """
    state = sharded_state.model_state(modules)
    for entry in nested_values(state):
        if isinstance(entry, ShardedTensor | ShardedTensorFactory):
            data = dequantize_fp8_tensor(entry.data) if is_float8tensor(entry.data) else entry.data
            entry.data = torch.empty_like(data, requires_grad=False)
    loaded = dist_checkpointing.load(state, str(folder))
    weights: dict[Parameter, Tensor] = {}
    for index, module in enumerate(modules):
        chunk = loaded["model" if len(modules) == 1 else f"model{index}"]
        weights |= {parameter: chunk[name] for name, parameter in module.named_parameters() if name in chunk}
    return loaded, weights


@torch.no_grad()
def refill_masters(optimizer: Any, weights: Mapping[Parameter, Tensor]) -> None:
    """Put `weights` into the masters; a parameter that is not among them gives its own values."""
    for parameter, part, master in masters_of(optimizer):
        values = weights.get(parameter, parameter)
        master.copy_(values.detach().view(-1)[part])


def _shard_of(optimizer: Any, weight: Parameter) -> slice:
    """Which elements of a flattened parameter this rank's optimizer updates."""
    if not isinstance(optimizer, DistributedOptimizer):
        return slice(None)
    shard = optimizer._get_model_param_range_map(weight)["param"]
    return slice(shard.start, shard.end)
