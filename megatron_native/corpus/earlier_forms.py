"""Documents of earlier corpora that come again: same id, same document, in an earlier form.

A document is never a copy of its own earlier form. Where it is one of *another* document's earlier form, it is a copy of
that document, and what is counted is the form that stays: the new one. So the pairs that were found, of texts, become
pairs of documents here. A stored document that does not come again stays, whatever is a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from megatron_native.corpus.clusters import PAIR, read_pairs
from megatron_native.corpus.document_ids import id_hashes
from megatron_native.corpus.signatures import SignaturePart

_NONE = np.uint32(0xFFFFFFFF)
_LEAVES_FIRST = 1 << 62
"""Taken from the rank of a document that is a copy of another one's earlier form."""


class EarlierForms:
    """Which stored documents come again among the new ones, and as which; 4 bytes a document, 40 a new one meanwhile.

    Args:
        parts: all documents' signatures, the stored ones first; numbers of documents run over them.
        ids: the parts' files of ids.
        stored: how many documents are stored ones.
    """

    def __init__(self, parts: Sequence[SignaturePart], ids: Sequence[Path], stored: int) -> None:
        self.stored = stored
        hashes, number = [], 0
        for part, path in zip(parts, ids):
            if number >= stored:
                hashes.append(id_hashes(path))
            number += part.documents
        new = np.concatenate(hashes) if hashes else np.empty((0, 2), dtype=np.uint64)
        order = np.lexsort((new[:, 1], new[:, 0]))
        high, low = new[order, 0], new[order, 1]
        del new, hashes
        self._first = np.empty(number - stored, dtype=np.uint32)  # of each new document, the first of its id
        _first_of_equals(high, low, order, self._first)
        self._again = np.full(stored, _NONE, dtype=np.uint32)
        number = 0
        for part, path in zip(parts, ids):
            if number >= stored:
                break
            found = _find(id_hashes(path), high, low, order)
            again = (found >= 0) & ~part.unpaired()
            self._again[number : number + part.documents][again] = self._first[found[again]] + np.uint32(stored)
            number += part.documents
        earlier = np.flatnonzero(self._again != _NONE)
        order = np.argsort(self._again[earlier], kind="stable")
        self._earlier = earlier[order].astype(np.uint32)  # stored documents that come again, by what they come again as
        self._as = self._again[self._earlier]

    @property
    def documents(self) -> int:
        """How many new documents (ids) were in the earlier corpora."""
        return len(np.unique(self._as))

    def meaning(self, pairs: NDArray[Any]) -> NDArray[Any]:
        """Pairs of documents for pairs of texts: other documents' earlier forms replaced, own ones left out."""
        with_stored = pairs["one"] < self.stored
        again = np.full(len(pairs), _NONE, dtype=np.uint32)
        again[with_stored] = self._again[pairs["one"][with_stored]]
        own = (again != _NONE) & (again == self._ids(pairs["other"]))
        replaced = (again != _NONE) & ~own
        result = pairs.copy()
        other = pairs["other"][replaced]
        result["one"][replaced] = np.minimum(again[replaced], other)
        result["other"][replaced] = np.maximum(again[replaced], other)
        return result[~own]

    def _ids(self, numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The first new documents with the ids of these new documents."""
        return self._first[numbers - np.uint32(self.stored)] + np.uint32(self.stored)

    def stored_copies(self, files: Sequence[Path], documents: int, memory_bytes: int) -> NDArray[np.uint32]:
        """uint32 [documents]: the stored document that stays and that a document is a copy of, or itself.

        Of several the first, one of the first of `files` (equal digests) before all others.
        """
        itself = np.arange(documents, dtype=np.uint32)
        found, exact = itself.copy(), np.zeros(documents, dtype=bool)
        for place, path in enumerate(files):
            for pairs in read_pairs(path, memory_bytes):
                pairs = pairs[pairs["one"] < self.stored]
                pairs = pairs[(self._again[pairs["one"]] == _NONE) & ~exact[pairs["other"]]]
                np.minimum.at(found, pairs["other"], pairs["one"])
            if place == 0:
                exact = found != itself
        return found

    def lower_ranks(self, files: Sequence[Path], ranks: NDArray[np.int64], memory_bytes: int) -> None:
        """Let documents that are a copy of another one's earlier form leave before all others."""
        lower = np.zeros(len(ranks), dtype=bool)
        for path in files:
            for pairs in read_pairs(path, memory_bytes):
                pairs = pairs[pairs["one"] < self.stored]
                again = self._again[pairs["one"]]
                lower[pairs["other"][(again != _NONE) & (again != self._ids(pairs["other"]))]] = True
        ranks[lower] -= _LEAVES_FIRST

    def of(self, pairs: NDArray[Any]) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """For pairs (who stays, who leaves): which of them may be pairs by an earlier form of who stays, and these pairs.

        Each has at most one in a turn; there are as many turns as a document has earlier forms.
        """
        low, high = (np.searchsorted(self._as, pairs["one"], side=side) for side in ("left", "right"))
        fresh = pairs["other"] >= self.stored
        own = np.zeros(len(pairs), dtype=bool)
        own[fresh] = self._ids(pairs["other"][fresh]) == pairs["one"][fresh]
        turn = 0
        while len(places := np.flatnonzero((low + turn < high) & ~own)):
            earlier = np.empty(len(places), dtype=PAIR)
            earlier["one"], earlier["other"] = self._earlier[low[places] + turn], pairs["other"][places]
            yield places, earlier
            turn += 1


@numba.njit(cache=True, nogil=True)
def _first_of_equals(high: Any, low: Any, order: Any, first: Any) -> None:
    start = 0
    for place in range(len(order)):
        if high[place] != high[start] or low[place] != low[start]:
            start = place
        first[order[place]] = order[start]


@numba.njit(cache=True, nogil=True)
def _find(hashes: Any, high: Any, low: Any, order: Any) -> Any:
    """int64 [hashes]: the place in `order` terms of an equal hash, or −1."""
    found = np.full(len(hashes), -1, dtype=np.int64)
    for place in range(len(hashes)):
        begin, end = 0, len(order)
        while begin < end:
            middle = (begin + end) // 2
            if high[middle] < hashes[place, 0] or (high[middle] == hashes[place, 0] and low[middle] < hashes[place, 1]):
                begin = middle + 1
            else:
                end = middle
        if begin < len(order) and high[begin] == hashes[place, 0] and low[begin] == hashes[place, 1]:
            found[place] = order[begin]
    return found
