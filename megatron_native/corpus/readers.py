"""Readers: the files teams have, as a stream of documents and refusals, in the order of the file.

JSONL (plain, .gz, .zst, .bz2), Parquet and plain text. Nothing is lost silently: a record that can't be read becomes a
`Refusal` with its place, and so does the damaged end of a compressed file. Memory is bounded by the longest admitted
line, not by the file.
"""

from __future__ import annotations

import bz2
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson

from megatron_native.errors import UserError

JSONL_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst", ".jsonl.bz2", ".json.bz2")
TEXT_SUFFIXES = (".txt", ".txt.gz", ".txt.zst", ".txt.bz2")
PARQUET_SUFFIXES = (".parquet",)
READABLE_SUFFIXES = (*JSONL_SUFFIXES, *TEXT_SUFFIXES, *PARQUET_SUFFIXES)
TEXT_UNITS = ("file", "line", "paragraph")
MAX_LINE_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_COMPRESSED_CHUNK_BYTES = 1 << 13
_LARGEST_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` writes
_RAW_PREVIEW_BYTES = 2000


class Document(msgspec.Struct):
    """One record that was read, with the place it came from."""

    id: str
    text: str
    metadata: dict[str, Any]
    source: str
    """Path of the file."""
    offset: int
    """Byte offset of the line in the (decompressed) file; for Parquet the row number."""
    line: int
    """Line, row or unit, 1 for the first."""


class Refusal(msgspec.Struct):
    """One record that could not be read: what quarantine keeps of it."""

    source: str
    offset: int
    line: int
    reason: str
    """One of a few words, counted in the account."""
    raw: str
    """The record's beginning, undecodable bytes escaped."""
    detail: str = ""


def expand_inputs(patterns: Sequence[str]) -> list[Path]:
    """Files that paths, globs and folders name, each once, in the order given; a folder means its readable files, sorted.

    Files and folders whose name begins with `_` or `.` (quarantine, progress) are passed over inside folders; of a
    stage folder, wherever it lies, only the documents in its manifest are taken.

    Raises:
        UserError: a pattern that names nothing readable, a link that leads nowhere, a stage that is not whole.
    """
    found: dict[Path, Path] = {}
    for pattern in map(str, patterns):
        path = Path(pattern)
        if path.is_dir():
            files = _folder_files(path)
            if not files:
                raise UserError(f"the folder {pattern} holds no file that can be read ({', '.join(READABLE_SUFFIXES)}).")
        elif path.exists() or path.is_symlink():
            files = [path]
        else:
            matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
            files = [match for match in matches if not match.is_dir()]
            if not files:
                raise UserError(f"{pattern} does not exist and matches no file; check the path (globs need quotes).")
        for file in files:
            _check_readable(file)
            found.setdefault(Path.cwd() / file, file)
    return list(found.values())


def read_documents(
    path: Path,
    text_key: str = "text",
    id_key: str = "id",
    max_line_bytes: int = MAX_LINE_BYTES,
    text_unit: str = "file",
) -> Iterator[Document | Refusal]:
    """Every record of a file, read or refused, in order.

    Args:
        path: the kind of file is told by its name's ending.
        text_key: key or column of the text; dots reach into nested objects.
        id_key: key or column of the id; a record without one is called `FILE:LINE`.
        max_line_bytes: a longer line is refused without being held in memory.
        text_unit: what one document of plain text is: `file`, `line` or `paragraph` (blank lines between).

    Raises:
        UserError: the file can't be opened, its kind is not known, or a Parquet file lacks the text column.
    """
    name = path.name.lower()
    if name.endswith(PARQUET_SUFFIXES):
        return _read_parquet(path, text_key, id_key)
    if name.endswith(JSONL_SUFFIXES):
        return _read_jsonl(path, text_key, id_key, max_line_bytes)
    if name.endswith(TEXT_SUFFIXES):
        return _read_text(path, max_line_bytes, text_unit)
    raise _unknown_kind(path)


def _check_readable(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {path.readlink()}, which does not exist; mend the link.")
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder; give a file of documents.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} can't be read: permission denied.")
    if not path.name.lower().endswith(READABLE_SUFFIXES):
        raise _unknown_kind(path)


def _unknown_kind(path: Path) -> UserError:
    return UserError(f"{path}: this kind of file is not read; known are {', '.join(READABLE_SUFFIXES)}.")


def _folder_files(folder: Path) -> list[Path]:
    """Every readable file of a folder and its sub-folders; of a stage folder the documents that its manifest knows."""
    if (folder / "manifest.json").is_file():
        return _stage_files(folder)
    if (folder / "_progress").is_dir():
        raise UserError(f"{folder} holds a stage that did not finish: run that command again first.")
    files = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(("_", ".")):
            continue
        if path.is_dir():
            if path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
                raise UserError(f"{path} is a link to a folder around it; remove the link.")
            files += _folder_files(path)
        elif path.name.lower().endswith(READABLE_SUFFIXES):
            files.append(path)
    return files


def _stage_files(folder: Path) -> list[Path]:
    from megatron_native.manifest import read_manifest

    try:
        manifest = read_manifest(folder / "manifest.json")
    except UserError:
        raise UserError(
            f"{folder / 'manifest.json'} is no stage manifest, so what the folder holds is not known: name its files, for "
            f"instance '{folder}/*.jsonl.gz'."
        ) from None
    assert manifest is not None
    files = []
    for entry in manifest["outputs"]:
        hidden = any(part.startswith(("_", ".")) for part in Path(entry["path"]).parts)
        if hidden or not entry["path"].lower().endswith(READABLE_SUFFIXES):
            continue
        if not (folder / entry["path"]).exists():
            raise UserError(f"{folder / entry['path']} is in the folder's manifest but not there; redo that stage.")
        files.append(folder / entry["path"])
    return files


class _DamagedFileError(Exception):
    """A compressed file broke off or is corrupt; what came before it has been read."""


def _chunks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file, a piece at a time, all frames or members of it.

    Raises:
        UserError: the file can't be opened.
        _DamagedFileError: compressed data is corrupt or ends early, after all that could be decompressed was given.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder where a file of documents is expected.")
    try:
        file = open(path, "rb", buffering=_CHUNK_BYTES)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error
    with file:
        make = _decompressor_of(path)
        if make is None:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
            return
        decompressor, padding = None, b""
        piece = 1 << 8  # zstd can turn 4 bytes into 128 KiB: pieces are as small as what comes out of them is large
        while data := file.read(piece):
            while data:
                if decompressor is None and not (data := data.lstrip(padding)):
                    break
                decompressor = decompressor or make()
                try:
                    out = decompressor.decompress(data)
                except Exception as error:  # each library has an error of its own
                    raise _DamagedFileError(str(error)) from error
                piece = max(64, piece >> 3) if len(out) > _CHUNK_BYTES else min(2 * piece, _COMPRESSED_CHUNK_BYTES)
                if out:
                    yield out
                data = decompressor.unused_data if decompressor.eof else b""
                if decompressor.eof:
                    decompressor = None
                    padding = b"\0" if path.suffix.lower() == ".gz" else b""  # gzip allows zeros after a member
        if decompressor is not None:
            raise _DamagedFileError("the compressed data ends early")


def _decompressor_of(path: Path) -> Callable[[], Any] | None:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        from isal import isal_zlib

        return lambda: isal_zlib.decompressobj(wbits=31)
    if suffix == ".zst":
        import zstandard

        return lambda: zstandard.ZstdDecompressor(max_window_size=_LARGEST_ZSTD_WINDOW).decompressobj()
    if suffix == ".bz2":
        return bz2.BZ2Decompressor
    return None


class _Lines:
    """The lines of a file as (number, offset, bytes); None for the bytes of a line that is too long."""

    def __init__(self, path: Path, max_line_bytes: int) -> None:
        self._path, self._max = path, max_line_bytes
        self.number = 0
        self.offset = 0
        self.damage: str | None = None
        """Why the file ended early, once it has."""

    def __iter__(self) -> Iterator[tuple[int, int, bytes | None]]:
        pending, too_long, size = b"", False, 0
        for chunk in self._pieces():
            parts = chunk.split(b"\n")
            for index, part in enumerate(parts):
                size += len(part)
                if not too_long:
                    pending = pending + part if pending else part
                    too_long = len(pending) > self._max
                if too_long:
                    pending = b""
                if index < len(parts) - 1:
                    yield from self._line(pending, too_long, size + 1)
                    pending, too_long, size = b"", False, 0
        if size and self.damage is None:  # the line in which a damaged file broke off is part of the damage
            yield from self._line(pending, too_long, size)

    def _line(self, line: bytes, too_long: bool, size: int) -> Iterator[tuple[int, int, bytes | None]]:
        self.number += 1
        yield self.number, self.offset, None if too_long else line
        self.offset += size

    def _pieces(self) -> Iterator[bytes]:
        try:
            yield from _chunks(self._path)
        except _DamagedFileError as error:
            self.damage = str(error)


def _read_jsonl(path: Path, text_key: str, id_key: str, max_line_bytes: int) -> Iterator[Document | Refusal]:
    lines = _Lines(path, max_line_bytes)
    keys = text_key.split(".")
    for number, offset, raw in lines:
        if raw is None:
            yield _refusal(path, offset, number, "line too long", b"", f"more than {max_line_bytes} bytes")
            continue
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        try:
            record = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            yield _refusal(path, offset, number, _json_fault(raw, error), raw, str(error))
            continue
        if not isinstance(record, dict):
            yield _refusal(path, offset, number, "not a JSON object", raw)
            continue
        yield _document(path, offset, number, record, keys, id_key, raw)
    yield from _damage(path, lines)


def _json_fault(raw: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "invalid UTF-8"
    return "lone surrogate" if "surrogate" in str(error) else "malformed JSON"


def _document(
    path: Path, offset: int, number: int, record: dict[str, Any], keys: Sequence[str], id_key: str, raw: bytes
) -> Document | Refusal:
    text: Any = record
    for key in keys:
        if not isinstance(text, dict) or key not in text:
            return _refusal(path, offset, number, "no text key", raw, f"no '{'.'.join(keys)}' in it")
        text = text[key]
    if text is None:
        text = ""
    if not isinstance(text, str):
        return _refusal(path, offset, number, "text is not a string", raw, type(text).__name__)
    fault = _text_fault(text)
    if fault:
        return _refusal(path, offset, number, fault, raw)
    identifier = record.get(id_key)
    others = _without(record, keys)
    others.pop(id_key, None)
    metadata = others.pop("metadata") if isinstance(others.get("metadata"), dict) else {}
    metadata = metadata | {key: value for key, value in others.items() if key not in metadata}
    name = f"{path.name}:{number}" if identifier is None or identifier == "" else str(identifier)
    return Document(name, text, metadata, str(path), offset, number)


def _without(record: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The record without the value that nested keys reach, and without what is empty then."""
    rest = dict(record)
    inner = rest.pop(keys[0])
    if len(keys) > 1 and (left := _without(inner, keys[1:])):
        rest[keys[0]] = left
    return rest


def _text_fault(text: str) -> str | None:
    if "\x00" in text:
        return "NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "lone surrogate"
    return None


def _read_parquet(path: Path, text_key: str, id_key: str) -> Iterator[Document | Refusal]:
    import pyarrow
    import pyarrow.parquet

    if path.is_dir():
        raise UserError(f"{path} is a folder where a Parquet file is expected.")
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file: {_one_line(error)}.") from error
    keys = text_key.split(".")
    columns = file.schema_arrow.names
    if keys[0] not in columns:
        raise UserError(f"{path} has no column '{keys[0]}'; it has {', '.join(columns)}; choose one of them as the text key.")
    row = 0
    try:
        for batch in file.iter_batches(batch_size=1000):
            for record in _rows(batch):
                row += 1
                if isinstance(record, UnicodeDecodeError):
                    yield _refusal(path, row - 1, row, "invalid UTF-8", b"", str(record))
                elif isinstance(record, ValueError):
                    yield _refusal(path, row - 1, row, "unreadable value", b"", _one_line(record))
                else:
                    item = _document(path, row - 1, row, record, keys, id_key, b"")
                    if isinstance(item, Refusal):
                        item.raw = repr(record)[:_RAW_PREVIEW_BYTES]
                    yield item
    except (OSError, pyarrow.ArrowException) as error:
        yield _refusal(path, row, row + 1, "damaged file", b"", _one_line(error))


def _rows(batch: Any) -> Iterator[dict[str, Any] | ValueError]:
    """The rows of a Parquet batch; in place of one that has no Python value (text that is not UTF-8), why not."""
    try:
        yield from batch.to_pylist()
        return
    except ValueError:
        pass  # then row by row
    for place in range(batch.num_rows):
        try:
            yield from batch.slice(place, 1).to_pylist()
        except ValueError as error:
            yield error


def _read_text(path: Path, max_line_bytes: int, unit: str) -> Iterator[Document | Refusal]:
    """Documents of one unit each; a unit of more than `max_line_bytes` is refused as a whole, without being held."""
    if unit not in TEXT_UNITS:
        raise UserError(f"the unit of plain text is '{unit}'; it must be one of {', '.join(TEXT_UNITS)}.")
    lines = _Lines(path, max_line_bytes)
    collected: list[bytes] = []
    start, first, size, count, begun = 0, 1, 0, 0, False

    def finished() -> Document | Refusal:
        if size > max_line_bytes:
            reason = "line too long" if unit == "line" else "text too long"
            return _refusal(path, start, first, reason, b"", f"more than {max_line_bytes} bytes")
        return _text_document(path, start, first, collected, "" if unit == "file" else f":{count}")

    for number, offset, raw in lines:
        blank = raw is not None and not raw.strip()
        if not blank or unit == "file":
            if not begun:
                start, first, size, count, begun = offset, number, -1, count + 1, True  # breaks are between lines
            size += 1 + (max_line_bytes + 1 if raw is None else len(raw))
            if raw is None or size > max_line_bytes:
                collected = []
            else:
                collected.append(raw)
        if begun and (unit == "line" or (unit == "paragraph" and blank)):
            yield finished()
            collected, begun = [], False
    if begun:
        yield finished()
    yield from _damage(path, lines)


def _text_document(path: Path, offset: int, line: int, parts: list[bytes], suffix: str) -> Document | Refusal:
    raw = b"\n".join(parts)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return _refusal(path, offset, line, "invalid UTF-8", raw, str(error))
    fault = _text_fault(text)
    if fault:
        return _refusal(path, offset, line, fault, raw)
    return Document(f"{path.name}{suffix}", text, {}, str(path), offset, line)


def _damage(path: Path, lines: _Lines) -> Iterator[Refusal]:
    if lines.damage is not None:
        yield _refusal(path, lines.offset, lines.number + 1, "damaged file", b"", f"broke off: {lines.damage}")


def _refusal(path: Path, offset: int, line: int, reason: str, raw: bytes, detail: str = "") -> Refusal:
    preview = raw[:_RAW_PREVIEW_BYTES].decode("utf-8", "backslashreplace")
    return Refusal(str(path), offset, line, reason, preview, detail)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
