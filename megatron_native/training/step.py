"""One optimizer step in two halves: gradients of a batch, then the update, with room between them to judge the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_native.config.requirements import fp8_multiple
from megatron_native.training.batches import MicroBatch, context_parallel_batches
from megatron_native.training.step_time import timed, timers_of
from megatron_native.training.trainable import count_steps_of_frozen, withhold_gradients


@dataclass(frozen=True)
class StepResult:
    """What one step says about itself; the same on every rank."""

    loss: float
    """Mean cross entropy per counted token over the global batch, in nats."""
    tokens: int
    """Tokens whose loss counted."""
    grad_norm: float
    """Norm of the gradients of all weights that are trained, before clipping."""
    updated: bool = True
    """False when the update was skipped."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradients are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def token_losses(micro_batch: MicroBatch, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of the counted losses, their number, and both for the report; `losses` is [batch, length] in nats."""
    mask = micro_batch.loss_mask
    total = (losses.float() * mask).sum()
    count = mask.sum().to(torch.int)
    return total, count, {"report": torch.stack([total.detach().double(), count.double()])}


def forward_step(
    batches: Iterator[MicroBatch], model: Any, report: Callable[[MicroBatch, Tensor], Any] = token_losses
) -> tuple[Tensor, Any]:
    """megatron-core's forward hook: one micro-batch through this process's model chunk.

    Stages after the first ignore the tokens (their input arrives through the pipeline); stages before the last ignore
    the labels and return hidden states. All need to know where documents begin. On the last stage `report` makes of the
    micro-batch and its losses what the schedule wants: a sum, a count, and what it returns.
    """
    batch = next(batches)
    output = model(batch.tokens, batch.position_ids, None, labels=batch.labels, packed_seq_params=batch.packed)
    return output, partial(report, batch)


def multiple_of_tokens(chunks: Sequence[Any]) -> int:
    """Of what a process's share of packed tokens must be a multiple under context parallelism, for FP8 products."""
    config = chunks[0].config
    return fp8_multiple(config.fp8_recipe) if config.fp8 else 1


def run_schedule(
    chunks: Sequence[Any], batches: Sequence[MicroBatch], forward_only: bool = False, forward: Any = forward_step
) -> list[dict[str, Tensor]]:
    """Run micro-batches of one shape through megatron-core's pipeline schedule; the last stage returns their reports.

    Micro-batches are whole; with context parallelism each rank takes its part of them here. `forward` is the hook of each,
    by default the loss of its counted tokens.
    """
    batches, length = context_parallel_batches(batches, multiple_of_tokens(chunks))
    micro_batch_size = batches[0].tokens.shape[0]
    iterators = [iter(batches) for _ in chunks]
    schedule = get_forward_backward_func()
    return schedule(
        forward_step_func=forward,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=list(chunks),
        num_microbatches=len(batches),
        seq_length=length,
        micro_batch_size=micro_batch_size,
        forward_only=forward_only,
    )


def reduce_reports(reports: list[dict[str, Tensor]], device: torch.device) -> tuple[float, int]:
    """Total loss (nats) and counted tokens over all micro-batches and the ranks that share them, known to every rank.

    Data-parallel ranks have micro-batches of their own, context-parallel ranks parts of the same.
    """
    total = torch.zeros(2, dtype=torch.float64, device=device)
    if parallel_state.is_pipeline_last_stage():
        for report in reports:
            total += report["report"]
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(total, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return float(total[0]), int(total[1])


def compute_gradients(
    chunks: Sequence[Any], optimizer: Any, batches: Sequence[MicroBatch], device: torch.device
) -> StepResult:
    """Forward, backward and reduction; the weights stay as they are, and the result is the same on every rank.

    Computing it again with the same batches gives the same result.
    """
    timers = timers_of(chunks)
    with timed(timers, "optimizer"):
        for chunk in chunks:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
    reports = run_schedule(chunks, batches)
    with timed(timers, "communication"):
        loss, tokens = reduce_reports(reports, device)
    with timed(timers, "optimizer"):
        optimizer.prepare_grads()
        withhold_gradients(optimizer)
        norm = optimizer.get_grad_norm()
    return StepResult(loss / max(1, tokens), tokens, float(norm))


def apply_update(optimizer: Any, result: StepResult, learning_rate: float, weight_decay: float) -> None:
    """Clip the gradients that were computed to the optimizer's limit, and update once."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_mult"]
        group["weight_decay"] = weight_decay * group["wd_mult"]
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        parameters = [] if getattr(inner, "is_stub_optimizer", False) else inner.get_parameters()
        if parameters and inner.config.clip_grad > 0:
            clip_grad_by_total_norm_fp32(
                parameters, inner.config.clip_grad, result.grad_norm,
                inner.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
            )  # fmt: skip
    optimizer.step_with_ready_grads()
    count_steps_of_frozen(optimizer)
