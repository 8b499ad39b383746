"""From sample numbers to micro-batches: which data-parallel rank sees which samples of a step.

The samples of a run are numbered by the blend. Step n takes the next `global_batch_size` of them, whatever the layout;
a rank takes its share, and pipeline and tensor ranks of one data-parallel rank read the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class SampleSource(Protocol):
    """Anything that numbers its samples: `sample(i)` is seq_length + 1 token ids."""

    def sample(self, index: int) -> np.ndarray:
        """Sample `index` ≥ 0: int64 [seq_length + 1]."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one data-parallel rank."""

    tokens: Tensor
    """int64 [micro_batch_size, seq_length]"""
    labels: Tensor
    """int64, the same shape: the next token at every position."""
    loss_mask: Tensor
    """float32, the same shape: 1 where the loss counts."""
    position_ids: Tensor
    """int64, the same shape."""


def make_micro_batch(samples: np.ndarray, device: torch.device) -> MicroBatch:
    """A micro-batch of whole sequences from samples [micro_batch_size, seq_length + 1]."""
    ids = torch.from_numpy(np.ascontiguousarray(samples)).to(device)
    tokens, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    return MicroBatch(tokens, labels, torch.ones_like(tokens, dtype=torch.float32), positions_of(tokens))


def positions_of(tokens: Tensor) -> Tensor:
    """Positions 0, 1, … for tokens [batch, length]."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)


def sample_numbers(
    consumed_samples: int, global_batch_size: int, micro_batch_size: int, rank: int, size: int
) -> list[list[int]]:
    """The sample numbers of each of a data-parallel rank's micro-batches, for the step after `consumed_samples`.

    Micro-batch m of rank r of `size` covers `micro_batch_size` consecutive numbers from consumed + (m · size + r) ·
    micro_batch_size on: together the ranks cover the step's `global_batch_size` numbers once, for every layout.
    """
    count = global_batch_size // (micro_batch_size * size)
    starts = [consumed_samples + (m * size + rank) * micro_batch_size for m in range(count)]
    return [list(range(start, start + micro_batch_size)) for start in starts]


def step_micro_batches(
    source: SampleSource, numbers: list[list[int]], device: torch.device
) -> Iterator[MicroBatch]:
    """The micro-batches of one step, read as they are needed."""
    for group in numbers:
        yield make_micro_batch(np.stack([source.sample(number) for number in group]), device)
