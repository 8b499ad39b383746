"""Ranges of elements as boxes of a tensor: filled box by box, every element of the range is there once and no other."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_native.training.owned_state import boxes_of_range


@given(st.lists(st.integers(1, 4), max_size=4), st.data())
def test_boxes_cover_the_range_once(shape: list[int], data: st.DataObject) -> None:
    total = int(torch.Size(shape).numel())
    start = data.draw(st.integers(0, total))
    end = data.draw(st.integers(start, total))
    elements = torch.arange(total)
    covered = torch.zeros(shape, dtype=torch.int64)
    boxes = list(boxes_of_range(tuple(shape), start, end))
    for offset, size, first in boxes:
        where = tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))
        count = int(torch.Size(size).numel())
        assert torch.equal(elements.view(shape)[where].flatten(), torch.arange(first, first + count))
        covered[where] += 1
    expected = torch.zeros(total, dtype=torch.int64)
    expected[start:end] = 1
    assert torch.equal(covered.flatten(), expected)
    assert len(boxes) <= max(1, 2 * len(shape) - 1)
    assert all(a[2] < b[2] for a, b in pairwise(boxes))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 12, [((0, 0), (3, 4), 0)]),
        (5, 7, [((1, 1), (1, 2), 5)]),
        (3, 9, [((0, 3), (1, 1), 3), ((1, 0), (1, 4), 4), ((2, 0), (1, 1), 8)]),
        (4, 4, []),
    ],
)
def test_boxes_of_a_matrix(start: int, end: int, expected: list[object]) -> None:
    assert list(boxes_of_range((3, 4), start, end)) == expected
