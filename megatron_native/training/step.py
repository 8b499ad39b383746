"""One optimizer step, top to bottom: batches through the pipeline schedule, gradients reduced, weights updated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_native.training.batches import MicroBatch


@dataclass(frozen=True)
class StepResult:
    """What one step says about itself; the same on every rank."""

    loss: float
    """Mean cross entropy per token over the global batch, in nats."""
    tokens: int
    """Tokens whose loss counted."""
    grad_norm: float
    """Norm of all gradients before clipping."""
    updated: bool
    """False when gradients were not finite and the optimizer skipped the update."""


def token_losses(micro_batch: MicroBatch, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of the counted losses, their number, and both for the report; `losses` is [batch, length] in nats."""
    mask = micro_batch.loss_mask
    total = (losses.float() * mask).sum()
    count = mask.sum().to(torch.int)
    return total, count, {"report": torch.stack([total.detach().double(), count.double()])}


def forward_step(batches: Iterator[MicroBatch], model: Any) -> tuple[Tensor, Any]:
    """megatron-core's forward hook: one micro-batch through this process's model chunk.

    Stages after the first ignore the tokens (their input arrives through the pipeline); stages before the last ignore
    the labels and return hidden states.
    """
    batch = next(batches)
    output = model(batch.tokens, batch.position_ids, None, labels=batch.labels)
    return output, partial(token_losses, batch)


def run_schedule(
    chunks: Sequence[Any],
    batches: Sequence[MicroBatch],
    seq_length: int,
    micro_batch_size: int,
    forward_only: bool = False,
) -> list[dict[str, Tensor]]:
    """Run micro-batches through megatron-core's pipeline schedule; the last stage returns their reports."""
    iterators = [iter(batches) for _ in chunks]
    schedule = get_forward_backward_func()
    return schedule(
        forward_step_func=forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=list(chunks),
        num_microbatches=len(batches),
        seq_length=seq_length,
        micro_batch_size=micro_batch_size,
        forward_only=forward_only,
    )


def reduce_reports(reports: list[dict[str, Tensor]], device: torch.device) -> tuple[float, int]:
    """Total loss (nats) and counted tokens over all micro-batches and data-parallel ranks, known to every rank."""
    total = torch.zeros(2, dtype=torch.float64, device=device)
    if parallel_state.is_pipeline_last_stage():
        for report in reports:
            total += report["report"]
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(total, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return float(total[0]), int(total[1])


def train_step(
    chunks: Sequence[Any],
    optimizer: Any,
    batches: Sequence[MicroBatch],
    learning_rate: float,
    weight_decay: float,
    seq_length: int,
    device: torch.device,
) -> StepResult:
    """Forward, backward, reduce, clip and update once."""
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_mult"]
        group["weight_decay"] = weight_decay * group["wd_mult"]
    reports = run_schedule(chunks, batches, seq_length, batches[0].tokens.shape[0])
    updated, grad_norm, _ = optimizer.step()
    loss, tokens = reduce_reports(reports, device)
    return StepResult(loss / max(1, tokens), tokens, float(grad_norm or 0.0), bool(updated))
