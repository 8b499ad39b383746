"""Which rows of Hugging Face tensors go where in a box of a global tensor, as stretches that move in one go.

Every transform of `weight_map` moves whole rows. So it is applied to tensors of row numbers instead of weights, and
what it does to those is what has to be done to the rows' bytes: no second description of any layout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch

from megatron_native.models.weight_map import Piece


@dataclass(frozen=True)
class Run:
    """Consecutive rows of one tensor that are consecutive in the other side too."""

    tensor: int
    """Which of the piece's Hugging Face tensors."""
    first: int
    """The first row, in the tensor that is read."""
    rows: int


def row_length(piece: Piece) -> int:
    """Values in a row, the same for a piece's tensors and its box; 1 where the tensors are vectors."""
    return prod(piece.hf_shapes[0][1:])


def box_runs(piece: Piece) -> list[Run]:
    """What a piece's box consists of, in the order of its rows: stretches of rows of the Hugging Face tensors."""
    numbers, counts = _of_rows(piece), [shape[0] for shape in piece.hf_shapes]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    tensors = [torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    order = numbers.to_megatron(tensors).reshape(-1)
    return [
        Run(tensor, first - starts[tensor], rows)
        for begin, length in _stretches(order)
        for tensor, first, rows in _split(begin, length, starts, counts)
    ]


def tensor_runs(piece: Piece) -> list[list[Run]]:
    """For each Hugging Face tensor of a piece, the stretches of rows of the box that it consists of."""
    numbers = _of_rows(piece)
    parts = numbers.to_hf(torch.arange(numbers.shape[-1]).reshape(numbers.shape))
    return [[Run(i, begin, length) for begin, length in _stretches(part.reshape(-1))] for i, part in enumerate(parts)]


def box_rows_axis(piece: Piece) -> int:
    """The axis of the box along which its rows lie: 1 where layers are stacked in front of it, else 0."""
    return len(piece.shape) - len(piece.hf_shapes[0])


def part_of_box(piece: Piece, first: int, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offset and shape, in the global tensor, of `rows` rows of a piece's box from its row `first` on."""
    axis = box_rows_axis(piece)
    offset = (*piece.offset[:axis], piece.offset[axis] + first, *piece.offset[axis + 1 :])
    return offset, (*piece.shape[:axis], rows, *piece.shape[axis + 1 :])


def _of_rows(piece: Piece) -> Piece:
    """The piece as if every row were one value."""
    rows = sum(shape[0] for shape in piece.hf_shapes)
    front = (1,) * box_rows_axis(piece)
    return replace(piece, shape=(*front, rows), hf_shapes=tuple((shape[0],) for shape in piece.hf_shapes))


def _stretches(order: torch.Tensor) -> list[tuple[int, int]]:
    """(first number, how many) of each stretch of numbers that rise by one."""
    cuts = (torch.nonzero(order[1:] != order[:-1] + 1).reshape(-1) + 1).tolist()
    begins = [0, *cuts]
    return [(int(order[begin]), end - begin) for begin, end in zip(begins, [*cuts, order.numel()], strict=True)]


def _split(begin: int, length: int, starts: list[int], counts: list[int]) -> list[tuple[int, int, int]]:
    """A stretch of numbered rows, cut where a tensor ends: (tensor, first number, rows)."""
    return [
        (i, max(begin, start), min(begin + length, start + count) - max(begin, start))
        for i, (start, count) in enumerate(zip(starts, counts, strict=True))
        if max(begin, start) < min(begin + length, start + count)
    ]
