"""Writers: documents as zstd-compressed JSONL in many frames, so that any reader can cut it, or as Parquet.

A file is made when its first record comes, written beside its place and renamed on a clean exit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from megatron_native.errors import UserError

FORMATS = ("jsonl.zst", "parquet")
FRAME_BYTES = 4 << 20
"""Text in one zstd frame: the unit in which a later stage cuts its work."""
_ROW_GROUP_RECORDS = 2000
_ENCODER = msgspec.json.Encoder()


class ShardWriter:
    """One file of records."""

    def __init__(self, path: Path) -> None:
        self.path, self.records = path, 0
        self._partial = path.with_name(path.name + ".partial")
        self._file: Any = None
        self._compressor: Any = None
        self._buffer = bytearray()

    def write(self, record: Any) -> None:
        """Append one record as a JSON line."""
        start = len(self._buffer)
        _ENCODER.encode_into(record, self._buffer, start)
        self._buffer += b"\n"
        self.records += 1
        if len(self._buffer) >= FRAME_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._buffer:
            return
        if self._file is None:
            import zstandard

            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._partial, "wb")  # noqa: SIM115 (closed on exit)
            self._compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
        self._file.write(self._compressor.compress(bytes(self._buffer)))
        self._buffer.clear()

    def __enter__(self) -> ShardWriter:
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
        except BaseException:
            self._discard()
            raise
        if self._file is None:
            return
        if kind is not None:
            self._discard()
            return
        try:
            self._file.close()
        except BaseException:
            self._partial.unlink(missing_ok=True)
            raise
        self._partial.replace(self.path)

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._partial.unlink(missing_ok=True)


class ParquetWriter:
    """One Parquet file of documents: columns `text`, `id` and `metadata` (JSON), in row groups of 2,000."""

    def __init__(self, path: Path) -> None:
        self.path, self.records = path, 0
        self._partial = path.with_name(path.name + ".partial")
        self._writer: Any = None
        self._rows: list[dict[str, Any]] = []

    def write(self, record: dict[str, Any]) -> None:
        """Append one document."""
        metadata = _ENCODER.encode(record.get("metadata") or {}).decode()
        self._rows.append({"text": record["text"], "id": record["id"], "metadata": metadata})
        self.records += 1
        if len(self._rows) >= _ROW_GROUP_RECORDS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema(
            [("text", pyarrow.large_string()), ("id", pyarrow.string()), ("metadata", pyarrow.string())]
        )
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pyarrow.parquet.ParquetWriter(self._partial, schema, compression="zstd")
        self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=schema))
        self._rows = []

    def __enter__(self) -> ParquetWriter:
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is None:
            self._flush()
        if self._writer is None:
            return
        self._writer.close()
        if kind is None:
            self._partial.replace(self.path)
        else:
            self._partial.unlink(missing_ok=True)


def document_writer(folder: Path, name: str, output_format: str) -> ShardWriter | ParquetWriter:
    """The writer of `FOLDER/NAME.FORMAT`."""
    check_format(output_format)
    kind = ParquetWriter if output_format == "parquet" else ShardWriter
    return kind(folder / f"{name}.{output_format}")


def check_format(output_format: str) -> None:
    """Raise a UserError for a format that is not written."""
    if output_format not in FORMATS:
        raise UserError(f"--output-format {output_format} is not written; it is one of {', '.join(FORMATS)}.")


def written(folder: Path, writers: Sequence[ShardWriter | ParquetWriter]) -> list[list[Any]]:
    """[path below `folder`, records, bytes, xxh3_128] of every file that was made."""
    from megatron_native.manifest import file_digest

    return [
        [str(writer.path.relative_to(folder)), writer.records, writer.path.stat().st_size, file_digest(writer.path)]
        for writer in writers
        if writer.records
    ]
