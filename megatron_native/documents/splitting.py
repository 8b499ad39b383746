"""Records as bytes: the lines of a stream, or the elements of a JSON array, bounded in memory.

A range of a file owns the records that begin in it: every range but the first passes over the line it starts in, and
every range reads on into the next until the line that begins at or before its end is whole. So ranges may be cut
anywhere, and together give each line once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from megatron_native.documents.compression import DamagedFileError


class Raw(NamedTuple):
    """One record's bytes; None for one that is too long to be held."""

    offset: int
    content: bytes | None


class Lines:
    """The lines of a range.

    Args:
        own: the chunks of the range.
        beyond: makes the chunks after it, asked for only when the last line is not whole.
        offset: where the range begins, in bytes of the decompressed file.
        max_line_bytes: a longer line comes as None.
    """

    def __init__(
        self, own: Iterable[bytes], max_line_bytes: int, offset: int = 0, beyond: Callable[[], Iterable[bytes]] = tuple
    ) -> None:
        self._own, self._beyond, self._max = own, beyond, max_line_bytes
        self.offset = offset
        """Where the next line begins."""
        self._inside = offset > 0
        self.damage: str | None = None
        """Why the stream ended early, once it has."""

    def __iter__(self) -> Iterator[Raw]:
        pending: list[bytes] = []
        size = 0  # bytes of the line in hand so far
        skipping = self._inside
        for chunk in self._guarded(self._own):
            start = 0
            while (end := chunk.find(b"\n", start)) >= 0:
                length = end - start
                if skipping:
                    self.offset += size + length + 1
                    skipping = False
                elif size == 0:
                    yield Raw(self.offset, chunk[start:end] if length <= self._max else None)
                    self.offset += length + 1
                else:
                    size += length
                    fits = size <= self._max
                    yield Raw(self.offset, b"".join([*pending, chunk[start:end]]) if fits else None)
                    self.offset += size + 1
                pending, size, start = [], 0, end + 1
            rest = len(chunk) - start
            size += rest
            if not skipping and rest and size <= self._max:
                pending.append(chunk[start:] if start else chunk)
            elif size > self._max:
                pending = []
        if self.damage is not None or skipping:
            return  # the line in which a damaged file broke off is part of the damage
        for chunk in self._guarded(self._beyond()):
            end = chunk.find(b"\n")
            part = chunk if end < 0 else chunk[:end]
            size += len(part)
            if size <= self._max:
                pending.append(part)
            else:
                pending = []
                if end < 0:
                    break  # too long already, and the rest is not ours to read
            if end >= 0:
                yield Raw(self.offset, b"".join(pending) if size <= self._max else None)
                self.offset += size + 1
                return
        if self.damage is None and size:
            yield Raw(self.offset, b"".join(pending) if size <= self._max else None)
            self.offset += size

    def _guarded(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        try:
            yield from chunks
        except DamagedFileError as error:
            self.damage = str(error)


class Elements:
    """The elements of a JSON array of any length."""

    def __init__(self, chunks: Iterable[bytes], max_bytes: int) -> None:
        self._chunks, self._max = chunks, max_bytes
        self.offset = 0
        self.damage: str | None = None

    def __iter__(self) -> Iterator[Raw]:
        scan = _element_scanner()
        state = np.zeros(4, dtype=np.int64)  # depth, inside a string, after a backslash, characters of this element
        pending, begin, size = b"", -1, 0
        position = 0
        try:
            for chunk in self._chunks:
                bytes_of = np.frombuffer(chunk, dtype=np.uint8)
                place = 0
                while place < len(chunk):
                    kind, where = scan(bytes_of, place, state)
                    if kind == _BEGIN:
                        begin, pending, size = position + where, b"", 0
                        place = where
                        self.offset = begin
                        state[3] = 1
                        continue
                    part = chunk[place:where] if begin >= 0 else b""
                    size += len(part)
                    pending = pending + part if size <= self._max else b""
                    place = where
                    if kind == _END:
                        yield Raw(begin, pending if size <= self._max else None)
                        begin, pending, size = -1, b"", 0
                        state[3] = 0
                position += len(chunk)
        except DamagedFileError as error:
            self.damage = str(error)
        self.offset = position
        if self.damage is None and state[0] != 0:
            self.damage = "the array is not closed"


_BEGIN, _END, _MORE = 0, 1, 2


@cache
def _element_scanner() -> Any:
    """A compiled walk over JSON bytes to the next place where an element of the outermost array begins or ends."""
    import numba

    @numba.njit(nogil=True)
    def scan(data: Any, place: int, state: Any) -> Any:
        depth, in_string, escaped, started = state[0], state[1], state[2], state[3]
        kind = 2
        while place < len(data):
            byte = data[place]
            if in_string:
                if escaped:
                    escaped = 0
                elif byte == 92:  # \
                    escaped = 1
                elif byte == 34:  # "
                    in_string = 0
                place += 1
                continue
            if depth == 1 and started and (byte == 44 or byte == 93):  # , or ]
                kind = 1
                break
            if depth == 1 and not started and byte not in (32, 9, 10, 13, 44, 93):
                kind = 0
                break
            if byte == 34:
                in_string = 1
            elif byte == 91 or byte == 123:  # [ {
                depth += 1
            elif byte == 93 or byte == 125:  # ] }
                depth -= 1
            place += 1
        state[0], state[1], state[2] = depth, in_string, escaped
        return kind, place

    return scan
