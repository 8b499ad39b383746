"""Readers: a piece of a file as a stream of documents and refusals, in the order of the file.

JSONL and JSON arrays (plain, .gz, .zst, .bz2, or members of a .zip), Parquet, Arrow and plain text. Nothing is lost
silently: a record that can't be read becomes a `Refusal` with its place, and so does the damaged end of a file. Memory
is bounded by the longest admitted line, not by the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from megatron_native.documents import columns
from megatron_native.documents.compression import DamagedFileError, OnRead, chunks, member_chunks
from megatron_native.documents.inputs import (
    ARROW_SUFFIXES,
    PARQUET_SUFFIXES,
    ZIP_SUFFIXES,
    is_json,
    is_text,
    unknown_kind,
)
from megatron_native.documents.parts import Part, Piece
from megatron_native.documents.records import (
    MAX_LINE_BYTES,
    TEXT_UNITS,
    Document,
    ReadSettings,
    Refusal,
    document_of_json,
    refusal,
    text_fault,
)
from megatron_native.documents.splitting import Elements, Lines
from megatron_native.errors import UserError


def _ignore(size: int) -> None:
    pass


def read_documents(
    path: Path,
    text_key: str = "text",
    id_key: str = "id",
    max_line_bytes: int = MAX_LINE_BYTES,
    text_unit: str = "file",
    on_read: OnRead = _ignore,
) -> Iterator[Document | Refusal]:
    """Every record of a whole file, read or refused, in order; the settings are `ReadSettings`'."""
    settings = ReadSettings(text_key, id_key, text_unit, max_line_bytes)
    if path.name.lower().endswith(ZIP_SUFFIXES):
        from megatron_native.documents.parts import zip_pieces

        pieces = [piece for piece, _ in zip_pieces(path)]
        return chain.from_iterable(read_piece(piece, settings, on_read) for piece in pieces)
    return read_piece(Piece(str(path)), settings, on_read)


def read_part(part: Part, settings: ReadSettings, on_read: OnRead = _ignore) -> Iterator[Document | Refusal]:
    """Every record of a part, read or refused, in order."""
    return chain.from_iterable(read_piece(piece, settings, on_read) for piece in part.pieces)


def read_piece(piece: Piece, settings: ReadSettings, on_read: OnRead = _ignore) -> Iterator[Document | Refusal]:
    """Every record that begins in a piece of a file.

    Args:
        piece: its file's kind is told by the name's ending.
        settings: what of a record is its text and its id.
        on_read: hears of everything that has been read of the file, in bytes as it lies (compressed).

    Raises:
        UserError: the file can't be opened, its kind is not known, or a table lacks the text column.
    """
    path = Path(piece.path)
    source, name = piece.source or piece.path, path.name.lower()
    if name.endswith(PARQUET_SUFFIXES):
        groups = None if piece.stop is None else range(piece.start, piece.stop)
        return columns.read_parquet(path, source, groups, piece.offset, settings, on_read)
    if name.endswith(ARROW_SUFFIXES):
        return columns.read_arrow(path, source, settings, on_read)
    if piece.member is not None:
        source, name = f"{source}!{piece.member}", Path(piece.member or "x.json").name.lower()
        own: Iterable[bytes] = member_chunks(path, piece.member, on_read)
    elif is_json(name) or is_text(name):
        own = chunks(path, piece.start, piece.stop, on_read)
    else:
        raise unknown_kind(path)

    def beyond() -> Iterable[bytes]:
        return () if piece.stop is None else chunks(path, piece.stop, None, _ignore)

    if is_text(name):
        lines = Lines(own, settings.max_line_bytes, piece.offset, beyond)
        return _read_text(source, Path(name if piece.member else path.name).name, settings, lines)
    return _read_json(source, source.rsplit("/", 1)[-1], own, beyond, piece.offset, settings)


def _read_json(
    source: str,
    name: str,
    own: Iterable[bytes],
    beyond: Callable[[], Iterable[bytes]],
    offset: int,
    settings: ReadSettings,
) -> Iterator[Document | Refusal]:
    damage = None
    if offset == 0:
        own, is_array, damage = _peek(own)
        records: Lines | Elements = (
            Elements(own, settings.max_line_bytes) if is_array else Lines(own, settings.max_line_bytes, 0, beyond)
        )
    else:
        records = Lines(own, settings.max_line_bytes, offset, beyond)
    for at, raw in records:
        if raw is None:
            yield refusal(source, at, "line too long", b"", f"more than {settings.max_line_bytes} bytes")
            continue
        raw = raw.removeprefix(b"\xef\xbb\xbf")  # of the file, or of one that was joined to it
        if not raw or raw.isspace():
            continue
        yield document_of_json(raw, source, name, at, settings)
    damage = damage or records.damage
    if damage is not None:
        yield refusal(source, records.offset, "damaged file", b"", f"broke off: {damage}")


def _peek(own: Iterable[bytes]) -> tuple[Iterable[bytes], bool, str | None]:
    """The chunks again, whether they begin a JSON array that spans lines, and why there are none, if they are damaged."""
    stream = iter(own)
    try:
        first = next(stream, b"")
    except DamagedFileError as error:
        return (), False, str(error)
    head = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    is_array = head[:1] == b"[" and (b"\n" not in head or not head.split(b"\n", 1)[0].rstrip().endswith(b"]"))
    return chain((first,), stream), is_array, None


def _read_text(source: str, name: str, settings: ReadSettings, lines: Lines) -> Iterator[Document | Refusal]:
    """Documents of one unit each; a unit of more than the most bytes of a line is refused as a whole, without being held."""
    unit, limit = settings.text_unit, settings.max_line_bytes
    if unit not in TEXT_UNITS:
        raise UserError(f"the unit of plain text is '{unit}'; it must be one of {', '.join(TEXT_UNITS)}.")
    collected: list[bytes] = []
    start, size, begun = 0, 0, False

    def finished() -> Document | Refusal:
        if size > limit:
            reason = "line too long" if unit == "line" else "text too long"
            return refusal(source, start, reason, b"", f"more than {limit} bytes")
        return _text_document(source, name if unit == "file" else f"{name}:{start}", start, collected)

    for raw in lines:
        blank = raw.content is not None and not raw.content.strip()
        if not blank or unit == "file":
            if not begun:
                start, size, begun = raw.offset, -1, True  # breaks are between lines
            size += 1 + (limit + 1 if raw.content is None else len(raw.content))
            if raw.content is None or size > limit:
                collected = []
            else:
                collected.append(raw.content)
        if begun and (unit == "line" or (unit == "paragraph" and blank)):
            yield finished()
            collected, begun = [], False
    if begun:
        yield finished()
    if lines.damage is not None:
        yield refusal(source, lines.offset, "damaged file", b"", f"broke off: {lines.damage}")


def _text_document(source: str, identifier: str, offset: int, parts: list[bytes]) -> Document | Refusal:
    raw = b"\n".join(parts)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return refusal(source, offset, "invalid UTF-8", raw, str(error))
    fault = text_fault(text)
    return refusal(source, offset, fault, raw) if fault else Document(identifier, text, {}, source, offset)
