"""Bytes of a file, decompressed a piece at a time, whatever they blow up to; and where a zstd file can be cut."""

from __future__ import annotations

import bz2
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from megatron_native.errors import UserError

OnRead = Callable[[int], None]
"""Hears of bytes of an input file that have been read."""
CHUNK_BYTES = 1 << 20
_COMPRESSED_CHUNK_BYTES = 1 << 16
_LARGEST_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` writes
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)


class DamagedFileError(Exception):
    """A compressed file broke off or is corrupt; what came before it has been read."""


class Frame(NamedTuple):
    """One frame of a zstd file: its place in the file and its content's place in the decompressed whole, in bytes."""

    start: int
    content_start: int


def open_input(path: Path) -> IO[bytes]:
    """The file, opened for reading.

    Raises:
        UserError: it can't be opened, for instance because it has vanished since the inputs were listed.
    """
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error


def chunks(path: Path, start: int, stop: int | None, on_read: OnRead) -> Iterator[bytes]:
    """The decompressed bytes of the file's bytes `start` to `stop` (None: its end), all frames or members of them.

    Raises:
        UserError: the file can't be opened.
        DamagedFileError: compressed data is corrupt or ends early, after all that could be decompressed was given.
    """
    with open_input(path) as file:
        file.seek(start)
        make = _decompressor_of(path)
        if make is None:
            yield from _plain(file, None if stop is None else stop - start, on_read)
        else:
            yield from _decompressed(
                file, None if stop is None else stop - start, make, path.suffix.lower() == ".gz", on_read
            )


def _plain(file: IO[bytes], left: int | None, on_read: OnRead) -> Iterator[bytes]:
    while data := file.read(CHUNK_BYTES if left is None else min(left, CHUNK_BYTES)):
        on_read(len(data))
        if left is not None:
            left -= len(data)
        yield data


def _decompressed(
    file: IO[bytes], left: int | None, make: Callable[[], Any], zero_padded: bool, on_read: OnRead
) -> Iterator[bytes]:
    decompressor, padding = None, b""
    piece = 1 << 8  # zstd can turn 4 bytes into 128 KiB: pieces are as small as what comes out of them is large
    while data := file.read(piece if left is None else min(piece, left)):
        on_read(len(data))
        if left is not None:
            left -= len(data)
        while data:
            if decompressor is None and not (data := data.lstrip(padding)):
                break
            decompressor = decompressor or make()
            try:
                out = decompressor.decompress(data)
            except Exception as error:  # each library has an error of its own
                raise DamagedFileError(str(error)) from error
            piece = max(64, piece >> 3) if len(out) > CHUNK_BYTES else min(2 * piece, _COMPRESSED_CHUNK_BYTES)
            if out:
                yield out
            while getattr(decompressor, "more", False):
                try:
                    yield decompressor.decompress(b"")
                except OSError as error:
                    raise DamagedFileError(str(error)) from error
            data = decompressor.unused_data if decompressor.eof else b""
            if decompressor.eof:
                decompressor = None
                padding = b"\0" if zero_padded else b""  # gzip allows zeros after a member
    if decompressor is not None:
        raise DamagedFileError("the compressed data ends early")


def _decompressor_of(path: Path) -> Callable[[], Any] | None:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        from isal import isal_zlib

        return lambda: isal_zlib.decompressobj(wbits=31)
    if suffix == ".zst":
        import zstandard

        return lambda: zstandard.ZstdDecompressor(max_window_size=_LARGEST_ZSTD_WINDOW).decompressobj()
    if suffix == ".bz2":
        return _BoundedBz2
    return None


class _BoundedBz2:
    """bz2 in bounded pieces: a block of a few bytes may inflate to 45 MB."""

    def __init__(self) -> None:
        self._inner = bz2.BZ2Decompressor()

    def decompress(self, data: bytes) -> bytes:
        """At most a chunk; there is more to come, without more data, while `more` is true."""
        return self._inner.decompress(data, max_length=CHUNK_BYTES)

    @property
    def more(self) -> bool:
        """Whether bytes wait inside."""
        return not self._inner.eof and not self._inner.needs_input

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        """What came after the stream."""
        return self._inner.unused_data


def member_chunks(path: Path, member: str, on_read: OnRead) -> Iterator[bytes]:
    """The bytes of a zip archive's member.

    Raises:
        UserError: the archive can't be opened, or the member is encrypted.
        DamagedFileError: the member is corrupt, after all that could be read was given.
    """
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error
    except zipfile.BadZipFile as error:
        raise DamagedFileError(str(error)) from error
    with archive:
        information = archive.getinfo(member)
        share = information.compress_size / max(1, information.file_size)
        try:
            with archive.open(member) as file:
                while data := file.read(CHUNK_BYTES):
                    on_read(round(len(data) * share))
                    yield data
        except RuntimeError as error:
            raise UserError(f"{path}: {member} is encrypted; unpack the archive first.") from error
        except Exception as error:  # zlib and zipfile have errors of their own
            raise DamagedFileError(str(error)) from error


def zstd_frames(path: Path) -> list[Frame] | None:
    """Where the frames of a zstd file begin; None where one does not tell its content's size, or nothing can be told.

    The headers of frames and blocks are walked, contents are not read (RFC 8878, section 3).
    """
    import zstandard

    frames, content = [], 0
    size = path.stat().st_size
    with open(path, "rb") as file:
        while (start := file.tell()) < size:
            head = file.read(18)
            if len(head) >= 8 and int.from_bytes(head[:4], "little") in _ZSTD_SKIPPABLE:
                file.seek(start + 8 + int.from_bytes(head[4:8], "little"))
                continue
            if not head.startswith(_ZSTD_MAGIC):
                return None
            try:
                parameters = zstandard.get_frame_parameters(head)
                header = zstandard.frame_header_size(head)
            except zstandard.ZstdError:
                return None
            if parameters.content_size == zstandard.CONTENTSIZE_UNKNOWN:
                return None
            frames.append(Frame(start, content))
            content += parameters.content_size
            file.seek(start + header)
            if not _skip_blocks(file, size):
                return None
            if parameters.has_checksum:
                file.seek(4, os.SEEK_CUR)
    return frames


def _skip_blocks(file: IO[bytes], size: int) -> bool:
    """Move behind a frame's last block; False where the file ends before it."""
    while True:
        head = file.read(3)
        if len(head) < 3:
            return False
        word = int.from_bytes(head, "little")
        last, kind, length = word & 1, word >> 1 & 3, word >> 3
        file.seek(1 if kind == 1 else length, os.SEEK_CUR)
        if file.tell() > size:
            return False
        if last:
            return True
