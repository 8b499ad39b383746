"""Lines that one site repeats on many pages: menus, notices and signatures that no pattern knows.

A line is the hash of its words in the matching view, together with its site. Only documents that stay are counted, so
that copies of a page don't make its own lines look repeated; a line that comes twice on one page counts once there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numba
import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_native.corpus.folding import Words, mix

MAX_LINE_WORDS = 25
"""A longer line is prose, however often it comes."""
_RECORD = np.dtype([("key", "<u8"), ("document", "<u4")])


def site_of(metadata: dict[str, Any], folder: str) -> str:
    """Where a document is from: the host of its `url`, its `source`, or the folder of its file."""
    url = metadata.get("url")
    if isinstance(url, str) and (host := _host(url)):
        return host.removeprefix("www.")
    source = metadata.get("source")
    return source if isinstance(source, str) and source else folder


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # such as an unclosed bracket of an IPv6 address
        return None


def line_keys(
    codes: NDArray[np.uint32], words: Words, site: str
) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int32]]:
    """The lines of 1 to `MAX_LINE_WORDS` words.

    Returns:
        uint64 [lines] keys of the line at this site, and int32 [lines] where each begins and ends (its break excluded).
    """
    seed = np.uint64(xxhash.xxh3_64_intdigest(site.encode("utf-8", "surrogatepass")))
    return _line_keys(codes, words.hashes, words.begins, seed, MAX_LINE_WORDS)


@numba.njit(cache=True, nogil=True)
def _line_keys(codes: Any, hashes: Any, begins: Any, seed: Any, max_words: int) -> Any:
    capacity = len(hashes)
    keys = np.empty(capacity, dtype=np.uint64)
    starts = np.empty(capacity, dtype=np.int32)
    stops = np.empty(capacity, dtype=np.int32)
    count, word = 0, 0
    start = 0
    length = len(codes)
    while start < length and word < capacity:
        stop = start
        while stop < length and codes[stop] != 10:
            stop += 1
        state, words_here = seed, 0
        while word < capacity and begins[word] < stop:
            state = mix(state * np.uint64(31) + hashes[word])
            words_here += 1
            word += 1
        if 0 < words_here <= max_words:
            keys[count], starts[count], stops[count] = state, start, stop
            count += 1
        start = stop + 1
    return keys[:count], starts[:count], stops[:count]


class LineFile:
    """The line keys of one part's documents, on disk: written once, read in whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[NDArray[Any]] = []

    def add(self, document: int, keys: NDArray[np.uint64]) -> None:
        """The distinct keys of the part's `document`-th document."""
        rows = np.empty(len(distinct := np.unique(keys)), dtype=_RECORD)
        rows["key"], rows["document"] = distinct, document
        self._rows.append(rows)

    def write(self) -> None:
        """Write the file beside its place and rename it."""
        partial = self.path.with_name(self.path.name + ".partial")
        rows = np.concatenate(self._rows) if self._rows else np.empty(0, dtype=_RECORD)
        rows.tofile(partial)
        partial.replace(self.path)


def repeated_keys(
    files: Sequence[Path], stays: Callable[[int], NDArray[np.bool_]], minimum: int, memory_bytes: int
) -> NDArray[np.uint64]:
    """The sorted keys that `minimum` or more documents have.

    Args:
        files: the parts' line files.
        stays: of the part with this place in `files`, which of its documents stay, bool [documents].
        minimum: documents of one site.
        memory_bytes: keys are gone through in as many ranges as this asks for; every range reads all files once.
    """
    total = sum(path.stat().st_size // _RECORD.itemsize for path in files)
    ranges = max(1, -(-total * 32 // memory_bytes))
    found = []
    for index in range(ranges):
        low, high = (index << 64) // ranges, ((index + 1) << 64) // ranges - 1
        chosen = []
        for place, path in enumerate(files):
            rows = np.fromfile(path, dtype=_RECORD)
            keys = rows["key"][stays(place)[rows["document"]]]
            chosen.append(keys[(keys >= np.uint64(low)) & (keys <= np.uint64(high))])
        keys = np.concatenate(chosen) if chosen else np.empty(0, dtype=np.uint64)
        distinct, counts = np.unique(keys, return_counts=True)
        found.append(distinct[counts >= minimum])
    return np.concatenate(found)


def without_lines(text: str, starts: Sequence[int], stops: Sequence[int]) -> str:
    """The text without the lines at these places, their breaks taken along."""
    kept, last = [], 0
    for start, stop in zip(starts, stops):
        kept.append(text[last:start])
        last = min(stop + 1, len(text))
    return "".join([*kept, text[last:]]).strip("\n")
