"""Best-fit decreasing over whole lengths, a compiled loop: ten million pieces a second or so.

Space left is a whole number below the sequence length, so the sequences with exactly so much left are a chain, and the
least space that is enough is found in a bitmap of the chains that aren't empty.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def pack(lengths: NDArray[np.int32], capacity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which pieces go together.

    Args:
        lengths: int32 [pieces], each from 1 to `capacity`.
        capacity: tokens a sequence.

    Returns:
        `order` int64 [pieces], the pieces sequence by sequence, within one in their own order; and `first_piece` int64
        [sequences + 1], where in it each sequence begins.
    """
    descending = np.argsort(-lengths.astype(np.int64), kind="stable")
    sequence, count = _assign(lengths, descending, capacity)
    order = np.argsort(sequence, kind="stable")
    first_piece = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(sequence, minlength=count), out=first_piece[1:])
    return order, first_piece


@numba.njit(cache=True)
def _assign(lengths: Any, descending: Any, capacity: int) -> Any:
    """The sequence of each piece, int64 [pieces], and how many there are."""
    pieces = len(lengths)
    sequence = np.empty(pieces, dtype=np.int64)
    head = np.full(capacity + 1, -1, dtype=np.int64)  # by space left: the last sequence that got so
    below = np.empty(pieces, dtype=np.int64)  # the one before it in its chain
    words = capacity // 64 + 1
    bitmap = np.zeros(words, dtype=np.uint64)
    summary = np.zeros(words // 64 + 1, dtype=np.uint64)  # which words of the bitmap aren't zero
    count = 0
    for place in range(pieces):
        piece = descending[place]
        length = lengths[piece]
        space = _first_set(bitmap, summary, length)
        if space < 0:
            target = count
            count += 1
            space = capacity
        else:
            target = head[space]
            head[space] = below[target]
            if head[space] < 0:
                bitmap[space // 64] &= ~(np.uint64(1) << np.uint64(space % 64))
                if bitmap[space // 64] == 0:
                    summary[space // 4096] &= ~(np.uint64(1) << np.uint64(space // 64 % 64))
        sequence[piece] = target
        left = space - length
        below[target] = head[left]
        head[left] = target
        bitmap[left // 64] |= np.uint64(1) << np.uint64(left % 64)
        summary[left // 4096] |= np.uint64(1) << np.uint64(left // 64 % 64)
    return sequence, count


@numba.njit(cache=True)
def _first_set(bitmap: Any, summary: Any, start: int) -> int:
    """The first set bit at `start` or after it, −1 where there is none."""
    word = start // 64
    found = bitmap[word] >> np.uint64(start % 64)
    if found:
        return start + _lowest(found)
    word += 1
    group = word // 64
    if group >= len(summary):
        return -1
    later = summary[group] >> np.uint64(word % 64)
    if later:
        word += _lowest(later)
        return word * 64 + _lowest(bitmap[word])
    for further in range(group + 1, len(summary)):
        if summary[further]:
            word = further * 64 + _lowest(summary[further])
            return word * 64 + _lowest(bitmap[word])
    return -1


@numba.njit(cache=True)
def _lowest(word: Any) -> int:
    """The place of the lowest set bit."""
    place = 0
    while not word & np.uint64(1):
        word >>= np.uint64(1)
        place += 1
    return place
