"""Which samples a step takes: the same for every layout, each once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_native.data.samples import Sample
from megatron_native.training.batches import make_micro_batch, sample_numbers


def test_numbers_by_hand() -> None:
    assert sample_numbers(range(16, 24), micro_batch_size=2, rank=1, size=2) == [[18, 19], [22, 23]]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2])
def test_ranks_cover_the_global_batch_once(size: int, micro: int) -> None:
    taken = [n for rank in range(size) for group in sample_numbers(range(24, 32), micro, rank, size) for n in group]
    assert sorted(taken) == list(range(24, 32))


def test_without_boundaries_a_sample_is_a_row() -> None:
    samples = [Sample(ids, ids + 1, np.ones(3, np.float32), np.array([1, 2])) for ids in (np.arange(3), np.arange(5, 8))]
    batch = make_micro_batch(samples, torch.device("cpu"), document_boundaries=False)
    assert batch.tokens.tolist() == [[0, 1, 2], [5, 6, 7]]
    assert batch.labels.tolist() == [[1, 2, 3], [6, 7, 8]]
    assert batch.position_ids.tolist() == [[0, 1, 2]] * 2
    assert batch.loss_mask.tolist() == [[1.0] * 3] * 2
    assert batch.packed is None
