"""From the samples of a step to micro-batches: which data-parallel rank sees which, as tensors.

Step n takes the next samples of the run, whatever the layout; a rank takes its share, and pipeline and tensor ranks of one
data-parallel rank read the same. With document boundaries a micro-batch is one packed sequence (THD): all its samples end
to end, with `PackedSeqParams` that say where documents begin. Every pipeline stage gets them, since every stage attends.

With context parallelism a rank computes two slices of every sequence: cut into 2·C equal slices, rank r of C takes slices r and
2·C − 1 − r, so that all ranks have as much causal attention to do. Of a packed sequence that holds for every document, which
is filled up to a multiple of 2·C with tokens that count nothing. Never run on a GPU; the CPU has no context parallelism.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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


def pad_documents(batches: Sequence[MicroBatch], multiple: int, total_multiple: int = 1) -> list[MicroBatch]:
    """Packed micro-batches with every document filled up to a multiple of `multiple` tokens, all of one length.

    The pipeline's messages have one length a step, so that of the longest is every micro-batch's; documents of padding make it
    up. Padding has token 0, counts nothing, and stands behind what it fills up, where causal attention doesn't see it.
    `max_seqlen` is a multiple too, and differs from the length of the whole for the reason that `pack` gives.

    Args:
        batches: packed micro-batches.
        multiple: of a document's length.
        total_multiple: `multiple` times this divides the length of the whole.
    """
    from megatron.core.packed_seq_params import PackedSeqParams

    lengths = [batch.packed.cu_seqlens_q.diff().cpu().numpy().astype(np.int64) for batch in batches]
    padded = [-(-length // multiple) * multiple for length in lengths]
    whole = multiple * total_multiple
    total = -(-max(int(length.sum()) for length in padded) // whole) * whole
    filled = []
    for batch, own, wide in zip(batches, lengths, padded):
        longest = -(-int(batch.packed.max_seqlen_q) // multiple) * multiple
        longest += multiple if longest == total else 0
        missing = total - int(wide.sum())
        pads = np.array([min(longest, missing - at) for at in range(0, missing, longest)], dtype=np.int64)
        bounds, wide_bounds = (
            np.concatenate([[0], np.cumsum(np.concatenate([array, pads]))]).astype(np.int32) for array in (own, wide)
        )
        starts = np.repeat(wide_bounds[: len(own)], own)
        within = np.arange(int(own.sum())) - np.repeat(np.cumsum(own) - own, own)
        device = batch.tokens.device
        places = torch.from_numpy(starts + within).to(device)

        def spread(tensor: Tensor, places: Tensor = places) -> Tensor:
            return tensor.new_zeros(1, total).index_copy_(1, places, tensor)

        cumulative, wide_cumulative = (torch.from_numpy(array).to(device) for array in (bounds, wide_bounds))
        packed = PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=cumulative, cu_seqlens_kv=cumulative, cu_seqlens_q_padded=wide_cumulative,
            cu_seqlens_kv_padded=wide_cumulative, max_seqlen_q=longest, max_seqlen_kv=longest,
        )  # fmt: skip
        filled.append(
            MicroBatch(
                spread(batch.tokens), spread(batch.labels), spread(batch.loss_mask), spread(batch.position_ids), packed
            )
        )
    return filled


def context_indices(length: int, rank: int, size: int, bounds: Tensor | None = None) -> Tensor:
    """Which positions of a sequence context-parallel rank `rank` of `size` computes, int64, in its order.

    Args:
        length: of the sequence.
        rank: of the context-parallel group.
        size: of the group.
        bounds: where the documents of a packed sequence begin, and its end.

    Raises:
        ValueError: a sequence or document is no multiple of 2 · `size`.
    """
    ends = [0, length] if bounds is None else bounds.tolist()
    parts = []
    for start, end in pairwise(ends):
        if (end - start) % (2 * size):
            raise ValueError(f"{end - start} tokens don't divide into the 2 × {size} slices of context parallelism")
        width = (end - start) // (2 * size)
        for number in (rank, 2 * size - 1 - rank):
            parts.append(torch.arange(start + number * width, start + (number + 1) * width))
    return torch.cat(parts)


def on_context_rank(batch: MicroBatch, rank: int, size: int) -> MicroBatch:
    """The part of context-parallel rank `rank` of `size` in a micro-batch, whose documents `pad_documents` has filled up.

    `packed` stays that of the whole sequence, which is what attention and rotary positions are told.
    """
    bounds = None if batch.packed is None else batch.packed.cu_seqlens_q_padded
    indices = context_indices(batch.tokens.shape[1], rank, size, bounds).to(batch.tokens.device)
    tokens, labels, mask, positions = (
        tensor.index_select(1, indices) for tensor in (batch.tokens, batch.labels, batch.loss_mask, batch.position_ids)
    )
    return replace(batch, tokens=tokens, labels=labels, loss_mask=mask, position_ids=positions)


def context_parallel_batches(batches: Sequence[MicroBatch], multiple: int = 1) -> tuple[list[MicroBatch], int]:
    """This process's part of micro-batches, and the length of the whole sequences: all of them without context parallelism.

    Args:
        batches: whole micro-batches of one length.
        multiple: of which each process's share of packed tokens is made one, as FP8 products want it (16, or 128 by blocks).
    """
    from megatron.core import parallel_state

    rank, size = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    whole = list(batches)
    if size > 1 and whole[0].packed is not None:
        # Also with sequence parallelism, where a process has a share of a share.
        whole = pad_documents(whole, 2 * size, parallel_state.get_tensor_model_parallel_world_size() * multiple)
    length = whole[0].tokens.shape[1]
    return (whole if size == 1 else [on_context_rank(batch, rank, size) for batch in whole]), length


def whole_sequences(part: Tensor, bounds: Tensor | None = None) -> Tensor:
    """This process's part [b, s / C, …] of something, put together with those of the other context-parallel ranks: [b, s, …].

    Collective in the context-parallel group. `bounds` are those of the documents of a packed sequence, all multiples of 2·C.
    """
    from megatron.core import parallel_state

    rank, size = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    if size == 1:
        return part
    length = part.shape[1] * size
    whole = part.new_zeros(part.shape[0], length, *part.shape[2:])
    whole.index_copy_(1, context_indices(length, rank, size, bounds).to(part.device), part)
    torch.distributed.all_reduce(whole, group=parallel_state.get_context_parallel_group())
    return whole


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
