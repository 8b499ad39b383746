"""What one pass over the ids of a dataset finds: ids outside the vocabulary, begin and end tokens out of place.

Fed with blocks of ids in any cut, so that memory is a block's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_native.data.dataset_files import DocumentPolicy


class RangeOfIds:
    """Smallest and largest id, and those outside the vocabulary."""

    def __init__(self, vocab_size: int | None) -> None:
        self._limit = vocab_size
        self.seen = self.wrong = 0
        self.lowest = self.highest = self.first_at = self.first_id = -1

    def look(self, at: int, ids: NDArray[Any]) -> None:
        """Take in ids that stand at the token `at`."""
        if not len(ids):
            return
        lowest, highest = int(ids.min()), int(ids.max())
        self.lowest = min(self.lowest, lowest) if self.seen else lowest
        self.highest = max(self.highest, highest)
        self.seen += len(ids)
        limit = highest + 1 if self._limit is None else self._limit
        if lowest >= 0 and highest < limit:
            return
        wrong = np.flatnonzero((ids < 0) | (ids.astype(np.int64) >= limit))
        if not self.wrong:
            self.first_at, self.first_id = at + int(wrong[0]), int(ids[wrong[0]])
        self.wrong += len(wrong)


@dataclass
class Places:
    """How often something was found, and where first."""

    count: int = 0
    first_document: int = -1
    first_token: int = -1

    def note(self, tokens: NDArray[np.int64], document_of: Callable[[int], int]) -> None:
        """Take in further places, of which the first may be the first of all."""
        if len(tokens) and not self.count:
            self.first_token = int(tokens[0])
            self.first_document = document_of(self.first_token)
        self.count += len(tokens)


class DocumentEnds:
    """Which documents lack their begin or end token, and where those stand inside a document."""

    def __init__(self, policy: DocumentPolicy) -> None:
        self._begin, self._end, self._separator = policy.begin_id, policy.end_id, policy.separator_id
        self.without_begin, self.without_end, self.inner_begin, self.inner_end = (Places() for _ in range(4))
        self.ended = 0

    def look(self, first: int, starts: NDArray[np.int64], at: int, ids: NDArray[Any]) -> None:
        """Take in ids from the token `at` on, of the documents `first` … whose starts and last end are `starts`."""
        full = np.flatnonzero(np.diff(starts))
        until = at + len(ids)

        def document_of(token: int) -> int:
            return first + int(np.searchsorted(starts, token, side="right")) - 1

        begins = _within(starts[full], at, until)
        ends = _within(starts[full + 1] - 1, at, until)
        if self._begin is not None:
            stands = np.flatnonzero(ids == self._begin) + at
            self.without_begin.note(begins[ids[begins - at] != self._begin], document_of)
            self.inner_begin.note(np.setdiff1d(stands, self._expected(begins, ends), assume_unique=True), document_of)
        if self._separator is not None:
            stands = np.flatnonzero(ids == self._separator) + at
            ended = ids[ends - at] == self._separator
            self.ended += int(np.count_nonzero(ended))
            if self._end is not None:
                self.without_end.note(ends[~ended], document_of)
            self.inner_end.note(np.setdiff1d(stands, self._expected(ends, begins), assume_unique=True), document_of)

    def _expected(self, places: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where a token may stand: also at the other end, for a family that begins and ends documents with one token."""
        return np.union1d(places, others) if self._begin == self._separator else places


def _within(tokens: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """Those of some ascending places that lie from `start` up to `stop`."""
    return tokens[int(np.searchsorted(tokens, start)) : int(np.searchsorted(tokens, stop))]
