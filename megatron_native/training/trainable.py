"""What a phase trains: everything, or the embedding and the output layer alone (`phases[].trainable`).

A weight that a phase does not train has no gradient when the optimizer steps, and Adam passes over what has none: the weight,
its FP32 master and both moments keep their bits, in any layout; weight decay does not reach it either. The gradients'
norm, which clipping goes by, is that of the trained weights. Steps are counted for all weights, since a checkpoint has one
count for all of them: moments that a later phase begins from zero are corrected less than those of a first step, so updates
begin smaller (0.45 of the learning rate instead of 1) unless that phase resets the optimizer.

The backward pass is whole in either case, so a step takes as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer
from torch import Tensor
from torch.nn import Parameter

from megatron_native.config.run import Trainable

_TRAINABLE = "trainable_part"


def set_trainable(optimizer: Any, part: Trainable) -> None:
    """Train `part` of the model from the next gradients on."""
    setattr(optimizer, _TRAINABLE, part)


def withhold_gradients(optimizer: Any) -> None:
    """Take the gradients from what is not trained; after the optimizer has got them and before their norm is computed."""
    for _, updated in _frozen(optimizer):
        updated.grad = None
        if hasattr(updated, "decoupled_grad"):
            updated.decoupled_grad = None


def count_steps_of_frozen(optimizer: Any) -> None:
    """Count an update for what was not updated: torch's AdamW has a count for each weight, of which a checkpoint keeps one."""
    for inner, updated in _frozen(optimizer):
        if not isinstance(inner.optimizer, torch.optim.AdamW):
            continue
        state = inner.optimizer.state[updated]
        if not state:
            state |= {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(updated),
                "exp_avg_sq": torch.zeros_like(updated),
            }
        state["step"] += 1


def _frozen(optimizer: Any) -> Iterator[tuple[Any, Tensor]]:
    """What is not trained: the optimizer inside that has it, and the tensor which that one updates."""
    if getattr(optimizer, _TRAINABLE, "all") == "all":
        return
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        if getattr(inner, "is_stub_optimizer", False):
            continue
        for weight, updated in _updated_by(inner):
            if not getattr(weight, "is_embedding_or_output_parameter", False):
                yield inner, updated


def _updated_by(inner: Any) -> Iterator[tuple[Parameter, Tensor]]:
    """Every weight that an optimizer has on this rank, and the tensor that it updates for it: a shard, a master, or itself."""
    if isinstance(inner, DistributedOptimizer):
        groups = inner.optimizer.param_groups
        for weight, (group, order) in inner.model_param_group_index_map.items():
            yield weight, groups[group]["params"][order]
    elif isinstance(inner, Float16OptimizerWithFloat16Params):
        yield from zip(chain(*inner.float16_groups), chain(*inner.fp32_from_float16_groups), strict=True)
        yield from ((weight, weight) for weight in chain(*inner.fp32_from_fp32_groups))
    elif isinstance(inner, FP32Optimizer):
        yield from ((weight, weight) for weight in inner.get_parameters())
    else:
        raise RuntimeError(f"an optimizer of the kind {type(inner).__name__}, whose weights are not known here")
