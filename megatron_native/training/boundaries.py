"""The start-up assertion about document boundaries: what one document says must not reach the losses of another.

A packed sample is run twice through the model as it will train (its layers, its layout, its pipeline stages); in between
one document's tokens are changed. The losses of the others must be the same, whatever the attention backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_native.errors import UserError
from megatron_native.training.batches import MicroBatch, pack, positions_of, whole_sequences
from megatron_native.training.step import forward_step, multiple_of_tokens, run_schedule

TOLERANCE = {"fp32": 1e-6, "bf16": 1e-3, "fp8": 1e-3}
"""Nats. Another document changes nothing at all where kernels are deterministic; a leak moves losses by a hundredth."""


def every_loss(micro_batch: MicroBatch, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The hook's second half: the losses of every token, as they are."""
    return losses.sum(), torch.tensor(losses.numel(), dtype=torch.int), {"losses": losses.detach().float()}


def token_losses_of(chunks: Sequence[Any], batch: MicroBatch) -> Tensor:
    """The loss of every token of a micro-batch [b, S], in nats, on every rank; the model stays as it is."""
    # the interleaved schedule wants as many micro-batches as there are stages
    count = parallel_state.get_pipeline_model_parallel_world_size() if len(chunks) > 1 else 1
    training = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
    with torch.no_grad():
        reports = run_schedule(chunks, [batch] * count, forward_only=True, forward=partial(forward_step, report=every_loss))
    for chunk, was_training in zip(chunks, training):
        chunk.train(was_training)
    losses = torch.zeros(batch.tokens.shape)
    if parallel_state.is_pipeline_last_stage():
        losses = whole_sequences(reports[0]["losses"], None if batch.packed is None else batch.packed.cu_seqlens_q)
    losses = losses.to(batch.tokens.device)
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(losses, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return losses


def probe_batch(
    vocab_size: int, seq_length: int, device: torch.device, seed: int = 0, multiple: int = 1
) -> tuple[MicroBatch, list[int]]:
    """A packed sequence of four documents of random tokens, one of them of a single token, and their lengths.

    All lengths are multiples of `multiple`, which divides `seq_length`: for context parallelism.
    """
    generator = np.random.default_rng(seed)
    shares = [seq_length * share // 16 // multiple * multiple for share in (3, 5)]
    lengths = [length for length in (*shares, multiple, seq_length - sum(shares) - multiple) if length > 0]
    tokens, labels = (torch.from_numpy(generator.integers(0, vocab_size, (1, seq_length))).to(device) for _ in range(2))
    batch = MicroBatch(tokens, labels, torch.ones(tokens.shape, device=device), positions_of(tokens))
    return pack(batch, np.array(lengths)), lengths


def assert_boundaries(
    chunks: Sequence[Any], vocab_size: int, seq_length: int, precision: str, device: torch.device, keep: bool = True
) -> float:
    """Perturb one document of a packed sequence and compare the losses of the others; every rank calls this.

    Args:
        chunks: the model chunks as the schedule runs them.
        vocab_size: ids to draw from.
        seq_length: S of the sequence.
        precision: `fp32`, `bf16` or `fp8` (whose products are to be in BF16 meanwhile), which decides the tolerance.
        device: where the model is.
        keep: False drops the boundaries from the batch, to see that the assertion notices.

    Returns:
        The largest change among the other documents' losses, in nats.

    Raises:
        UserError: they changed, or the changed document's own did not.
    """
    context = parallel_state.get_context_parallel_world_size()
    multiple = 2 * context if context > 1 else 1
    if multiple > 1:  # nothing to fill up, also for tensor-parallel ranks that share it
        whole = multiple * parallel_state.get_tensor_model_parallel_world_size() * multiple_of_tokens(chunks)
        seq_length = -(-seq_length // whole) * whole
    batch, lengths = probe_batch(vocab_size, seq_length, device, multiple=multiple)
    if not keep:
        batch = replace(batch, packed=None)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    before = token_losses_of(chunks, batch)
    worst = 0.0
    for document in range(len(lengths) - 1):  # the first ones: a leak goes forward
        low, high = int(bounds[document]), int(bounds[document + 1])
        tokens = batch.tokens.clone()
        tokens[0, low:high] = (tokens[0, low:high] + 1) % vocab_size
        change = (token_losses_of(chunks, replace(batch, tokens=tokens)) - before).abs()[0]
        own = float(change[low:high].max())
        change[low:high] = 0
        worst = max(worst, float(change.max()))
        if worst > TOLERANCE[precision]:
            at = int(change.argmax())
            other = int(np.searchsorted(bounds, at, side="right")) - 1
            raise UserError(
                f"document boundaries are not kept: changing document {document} of a packed sequence moved a loss of "
                f"document {other} (token {at}) by {worst:.3g} nats, where {TOLERANCE[precision]:g} is allowed. The attention "
                "of this platform leaks between documents; set data.document_boundaries=false if you accept that, or use "
                "another layer_spec."
            )
        if own == 0.0:
            raise UserError(
                "the check of document boundaries can't see anything: changing a document's tokens did not change its own "
                "losses. The model's weights are probably all zero."
            )
    return worst
