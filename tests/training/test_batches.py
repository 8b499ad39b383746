"""Which samples a step takes: the same for every layout, each once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_native.training.batches import make_micro_batch, sample_numbers


def test_numbers_by_hand() -> None:
    assert sample_numbers(16, global_batch_size=8, micro_batch_size=2, rank=1, size=2) == [[18, 19], [22, 23]]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2])
def test_ranks_cover_the_global_batch_once(size: int, micro: int) -> None:
    taken = [n for rank in range(size) for group in sample_numbers(24, 8, micro, rank, size) for n in group]
    assert sorted(taken) == list(range(24, 32))


def test_labels_are_the_next_tokens() -> None:
    batch = make_micro_batch(np.array([[5, 6, 7, 8], [1, 2, 3, 4]]), torch.device("cpu"))
    assert batch.tokens.tolist() == [[5, 6, 7], [1, 2, 3]]
    assert batch.labels.tolist() == [[6, 7, 8], [2, 3, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2]] * 2
    assert batch.loss_mask.tolist() == [[1.0] * 3] * 2
