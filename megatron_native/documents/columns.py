"""Tables: the rows of Parquet files and of `datasets` folders (Arrow streams) as documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_native.documents.compression import OnRead
from megatron_native.documents.records import RAW_PREVIEW_BYTES, Document, ReadSettings, Refusal, document_of, refusal
from megatron_native.errors import UserError

_BATCH_ROWS = 1000


def row_groups(path: Path) -> list[tuple[int, int]] | None:
    """(rows, bytes) of a Parquet file's row groups; None where its footer can't be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.ParquetFile(path).metadata
    except (OSError, pyarrow.ArrowException):
        return None
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return [(group.num_rows, group.total_byte_size) for group in groups]


def read_parquet(
    path: Path, source: str, groups: range | None, first_row: int, settings: ReadSettings, on_read: OnRead
) -> Iterator[Document | Refusal]:
    """The rows of some row groups (None: of all); the first of them is row `first_row` of the file."""
    import pyarrow
    import pyarrow.parquet

    if path.is_dir():
        raise UserError(f"{path} is a folder where a Parquet file is expected.")
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except OSError as error:
        raise UserError(f"{path} can't be read: {one_line(error)}.") from error
    except pyarrow.ArrowException as error:
        yield refusal(source, 0, "damaged file", b"", one_line(error))
        return
    with file:
        chosen = range(file.metadata.num_row_groups) if groups is None else groups
        rows = sum(file.metadata.row_group(index).num_rows for index in chosen)
        size = path.stat().st_size * rows // max(1, file.metadata.num_rows)
        batches = file.iter_batches(batch_size=_BATCH_ROWS, row_groups=list(chosen)) if rows else iter(())
        yield from _documents(batches, file.schema_arrow.names, path, source, first_row, rows, size, settings, on_read)


def read_arrow(path: Path, source: str, settings: ReadSettings, on_read: OnRead) -> Iterator[Document | Refusal]:
    """The rows of an Arrow stream, as `datasets` saves them."""
    import pyarrow
    import pyarrow.ipc

    try:
        file = pyarrow.memory_map(str(path))
        stream = pyarrow.ipc.open_stream(file)
    except OSError as error:
        raise UserError(f"{path} can't be read: {one_line(error)}.") from error
    except pyarrow.ArrowException as error:
        yield refusal(source, 0, "damaged file", b"", one_line(error))
        return
    with file:
        on_read(path.stat().st_size)
        yield from _documents(stream, stream.schema.names, path, source, 0, 0, 0, settings, on_read)


def _documents(
    batches: Any,
    columns: list[str],
    path: Path,
    source: str,
    row: int,
    rows: int,
    size: int,
    settings: ReadSettings,
    on_read: OnRead,
) -> Iterator[Document | Refusal]:
    import pyarrow

    needed = settings.text_key.split(".")[0]
    if needed and needed not in columns:
        raise UserError(
            f"{path} has no column '{needed}'; it has {', '.join(columns)}; choose one of them as the text key."
        )
    name, read, done = path.name, 0, 0
    try:
        for batch in batches:
            done += batch.num_rows
            if rows:  # a batch has no place in the file: its share of the rows
                on_read(size * done // rows - read)
                read = size * done // rows
            for record in _rows(batch):
                if isinstance(record, UnicodeDecodeError):
                    yield refusal(source, row, "invalid UTF-8", b"", str(record))
                elif isinstance(record, ValueError):
                    yield refusal(source, row, "unreadable value", b"", one_line(record))
                else:
                    item = document_of(record, source, name, row, settings, b"")
                    if isinstance(item, Refusal):
                        item.raw = repr(record)[:RAW_PREVIEW_BYTES]
                    yield item
                row += 1
    except (OSError, pyarrow.ArrowException) as error:
        yield refusal(source, row, "damaged file", b"", one_line(error))


def _rows(batch: Any) -> Iterator[dict[str, Any] | ValueError]:
    """The rows of a batch; in place of one that has no Python value (text that is not UTF-8), why not."""
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


def one_line(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())
