"""Norms of weights and gradients by part of the model, and statistics of logits: what drifts before a loss does.

Every weight of the model counts once, whatever the layout: what tensor-parallel ranks hold alike, the copy of a tied
embedding on the last stage, and rows that pad the vocabulary are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared
from torch import Tensor
from torch.nn import Parameter

from megatron_native.models.weight_map import VOCABULARY_KEYS
from megatron_native.training.model import TrainableModel
from megatron_native.training.parameter_names import GROUPS, Group, group_of, named_parameters

_PIECE = 1 << 22
"""Elements whose squares are summed in FP32 before the sum goes on in FP64."""
_ROWS = 1024
"""Positions whose logits are held in FP32 at once."""


@dataclass(frozen=True)
class LogitFigures:
    """Statistics of the logits of a step, over every counted position and the whole vocabulary, padding excluded."""

    rms: float
    """Root mean square of a logit."""
    max_abs: float
    """Largest |logit|."""
    mean_logsumexp: float
    """Mean over positions of log Σ exp(logit), in nats: what a z-loss pulls to 0."""
    positions: int


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of the whole model; the same on every rank."""

    weight: float
    """Of all weights, as the forward pass uses them."""
    weights: dict[Group, float]
    """By part of the model; a part that has no weight of its own (the output layer of a tied model) is left out."""
    gradient: float | None = None
    """Of all gradients, before clipping."""
    gradients: dict[Group, float] | None = None
    logits: LogitFigures | None = None


class LogitStatistics:
    """Collects statistics of logits during a step's forward passes; a `LanguageModel` whose `logit_observer` it is calls
    `observe` in training's forward passes, on the last stage.

    Sums stay on the device until `figures` is called, once a measured step.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)  # squares, logits, logsumexps, positions
        self._largest = torch.zeros(1, dtype=torch.float64, device=device)

    @torch.no_grad()
    def observe(self, logits: Tensor, padded_columns: int = 0, mask: Tensor | None = None) -> None:
        """Take in logits [s, b, vocabulary / TP] of one micro-batch; collective in the tensor-parallel group.

        Args:
            logits: this rank's part of the vocabulary.
            padded_columns: how many of its last columns have no token.
            mask: [b, s], 0 where a position doesn't count; by default all do.
        """
        group = parallel_state.get_tensor_model_parallel_group()
        columns = logits.shape[-1] - padded_columns
        counted = logits.detach().flatten(0, 1)[:, :columns]
        if mask is not None:
            counted = counted[mask.t().flatten() > 0]
        for rows in counted.split(_ROWS):
            rows = rows.float()
            best = rows.amax(-1) if columns else rows.new_full(rows.shape[:1], -math.inf)
            dist.all_reduce(best, op=dist.ReduceOp.MAX, group=group)
            exponentials = (rows - best[:, None]).exp().sum(-1)
            dist.all_reduce(exponentials, group=group)
            self._sums[0] += rows.square().sum(dtype=torch.float64)
            self._sums[1] += rows.numel()
            if parallel_state.get_tensor_model_parallel_rank() == 0:  # known to all of the group alike
                self._sums[2] += (best.double() + exponentials.double().log()).sum()
                self._sums[3] += len(rows)
            if rows.numel():
                self._largest = torch.maximum(self._largest, rows.abs().max().double())

    def figures(self) -> LogitFigures | None:
        """The statistics over all ranks and micro-batches since the last call; None when nothing was observed. Collective."""
        dist.all_reduce(self._sums)
        dist.all_reduce(self._largest, op=dist.ReduceOp.MAX)
        squares, logits, logsumexps, positions = self._sums.tolist()
        largest = self._largest.item()
        self._sums.zero_()
        self._largest.zero_()
        if not positions:
            return None
        return LogitFigures(math.sqrt(squares / logits), largest, logsumexps / positions, int(positions))


def measure_norms(model: TrainableModel, *, gradients: bool = False, logits: LogitStatistics | None = None) -> Norms:
    """Norms of the model, summed over all ranks. Collective.

    With `gradients`, call it after the schedule (megatron-core reduces `main_grad` over all ranks at its end) and before
    the optimizer's step, which clips them in place. They are those of the mean loss per token.

    Args:
        model: this process's chunks and optimizer.
        gradients: measure `main_grad` too.
        logits: what the forward passes were observed by; its sums begin anew.
    """
    counted = _counted_parameters(model)
    model_group = parallel_state.get_model_parallel_group()
    weights = _group_norms([(weight.detach().view(-1)[:size], group) for weight, group, size in counted], model_group)
    found: dict[Group, float] | None = None
    if gradients:
        shards = reduced_shards(model.optimizer)
        parts = [
            (weight.main_grad.view(-1)[: min(size, shard.stop)][shard.start :], group)
            for weight, group, size in counted
            if (shard := slice(0, size) if shards is None else shards.get(weight))
        ]
        found = _group_norms(parts, model_group if shards is None else dist.group.WORLD)
    return Norms(
        weight=_total(weights),
        weights=weights,
        gradient=None if found is None else _total(found),
        gradients=found,
        logits=None if logits is None else logits.figures(),
    )


def reduced_shards(optimizer: Any) -> dict[Parameter, slice] | None:
    """Which elements of each flattened `main_grad` are reduced on this rank; None: all of every one.

    The distributed optimizer reduce-scatters: outside its shard a rank holds its own micro-batches' sum and no more.
    """
    shards: dict[Parameter, slice] = {}
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not isinstance(inner, DistributedOptimizer):
            return None
        if inner.is_stub_optimizer:
            continue
        for weight in inner.model_param_group_index_map:
            shard = inner._get_model_param_range_map(weight)["param"]
            shards[weight] = slice(shard.start, shard.end)
    return shards


def _counted_parameters(model: TrainableModel) -> list[tuple[Parameter, Group, int]]:
    """The parameters that count on this rank, their part of the model, and how many of their elements count."""
    counted = []
    for module in model.modules:
        for parameter, name in named_parameters([module]).items():
            if not (param_is_not_shared(parameter) and param_is_not_tensor_parallel_duplicate(parameter)):
                continue
            size = parameter.numel()
            if name in VOCABULARY_KEYS:
                first = parallel_state.get_tensor_model_parallel_rank() * parameter.shape[0]
                rows = min(parameter.shape[0], max(0, module.unpadded_vocab_size - first))
                size = rows * parameter.shape[1]
            counted.append((parameter, group_of(name), size))
    return counted


def _group_norms(parts: Sequence[tuple[Tensor, Group]], group: Any) -> dict[Group, float]:
    """Norm of each part of the model, from this rank's flat tensors, summed over the process group."""
    sums = torch.zeros(len(GROUPS), 2, dtype=torch.float64, device=torch.cuda.current_device())  # squares, elements
    for values, name in parts:
        row = sums[GROUPS.index(name)]
        for piece in values.split(_PIECE):
            row[0] += torch.linalg.vector_norm(piece, dtype=torch.float32).double().square()
        row[1] += values.numel()
    dist.all_reduce(sums, group=group)
    return {name: math.sqrt(squares) for name, (squares, elements) in zip(GROUPS, sums.tolist()) if elements}


def _total(norms: Mapping[Group, float]) -> float:
    return math.hypot(*norms.values())
