"""From the samples of a step to micro-batches: which data-parallel rank sees which, as tensors.

Step n takes the next samples of the run, whatever the layout; a rank takes its share, and pipeline and tensor ranks of one
data-parallel rank read the same. With document boundaries a micro-batch is one packed sequence (THD): all its samples end
to end, with `PackedSeqParams` that say where documents begin. Every pipeline stage gets them, since every stage attends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from megatron_native.data.samples import Sample


class SampleSource(Protocol):
    """Anything that numbers its samples."""

    def sample(self, number: int) -> Sample:
        """Sample `number` ≥ 0."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one data-parallel rank: [b, S] tensors of b samples, or [1, b · S] when they are packed."""

    tokens: Tensor
    """int64"""
    labels: Tensor
    """int64: the next token at every position."""
    loss_mask: Tensor
    """float32: 1 where the loss counts."""
    position_ids: Tensor
    """int64: position in the sequence, or in the document when packed."""
    packed: Any = None
    """megatron-core's PackedSeqParams, or None where a sequence attends to all of itself."""


def make_micro_batch(samples: Sequence[Sample], device: torch.device, document_boundaries: bool) -> MicroBatch:
    """A micro-batch of whole samples."""
    tokens, labels, mask = (
        torch.from_numpy(np.stack([getattr(sample, name) for sample in samples])).to(device)
        for name in ("tokens", "labels", "loss_mask")
    )
    if not document_boundaries:
        return MicroBatch(tokens, labels, mask, positions_of(tokens))
    lengths = np.concatenate([sample.document_lengths for sample in samples])
    return pack(MicroBatch(tokens, labels, mask, positions_of(tokens)), lengths)


def pack(batch: MicroBatch, document_lengths: np.ndarray) -> MicroBatch:
    """The same tokens as one packed sequence of documents of the given lengths, whose sum is all tokens.

    `max_seqlen` is the same for every micro-batch, so that buffers and kernels keep their shapes. It is one more than the
    length of a sample: where it equals all tokens, megatron-core 0.16 lets positions run on from document to document.
    """
    from megatron.core.packed_seq_params import PackedSeqParams

    bounds = np.zeros(len(document_lengths) + 1, dtype=np.int32)
    np.cumsum(document_lengths, out=bounds[1:])
    if bounds[-1] != batch.tokens.numel():
        raise ValueError(f"documents of {bounds[-1]} tokens in a micro-batch of {batch.tokens.numel()}")
    starts = np.repeat(bounds[:-1], document_lengths)
    positions = torch.from_numpy((np.arange(int(bounds[-1])) - starts).astype(np.int64)).to(batch.tokens.device)
    cumulative = torch.from_numpy(bounds).to(batch.tokens.device)
    longest = batch.tokens.shape[1] + 1
    packed = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=cumulative, cu_seqlens_kv=cumulative, max_seqlen_q=longest, max_seqlen_kv=longest
    )
    tokens, labels, mask = (tensor.reshape(1, -1) for tensor in (batch.tokens, batch.labels, batch.loss_mask))
    return MicroBatch(tokens, labels, mask, positions[None], packed)


def positions_of(tokens: Tensor) -> Tensor:
    """Positions 0, 1, … for tokens [batch, length]."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)


def sample_numbers(samples: range, micro_batch_size: int, rank: int, size: int) -> list[list[int]]:
    """The sample numbers of each of a data-parallel rank's micro-batches of a step.

    Micro-batch m of rank r of `size` covers `micro_batch_size` consecutive numbers from the (m · size + r) ·
    micro_batch_size-th on: together the ranks cover the step's samples once, for every layout.
    """
    count = len(samples) // (micro_batch_size * size)
    starts = [samples.start + (m * size + rank) * micro_batch_size for m in range(count)]
    return [list(range(start, start + micro_batch_size)) for start in starts]


def step_micro_batches(
    source: SampleSource, numbers: list[list[int]], device: torch.device, document_boundaries: bool
) -> Iterator[MicroBatch]:
    """The micro-batches of one step, read as they are needed."""
    for group in numbers:
        yield make_micro_batch([source.sample(number) for number in group], device, document_boundaries)
