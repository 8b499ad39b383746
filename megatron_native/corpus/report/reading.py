"""How the report reads: the one place that knows the readers, the writers' folders and the dataset files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from megatron_native.documents.compression import OnRead, chunks
from megatron_native.documents.readers import read_documents
from megatron_native.documents.records import MAX_LINE_BYTES, Document, Refusal
from megatron_native.documents.splitting import Lines

__all__ = ["Damage", "Document", "OnRead", "Refusal", "documents_in", "records_in", "side_files", "tokens_in_index"]

_LINE_ENDINGS = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".jsonl.bz2")


class Damage(NamedTuple):
    """A place of a file that can't be read."""

    file: Path
    reason: str


def documents_in(path: Path, on_read: OnRead) -> Iterator[Document | Refusal]:
    """The documents of a stage's output file."""
    return iter(read_documents(path, on_read=on_read))


def records_in(path: Path, on_read: OnRead) -> Iterator[dict[str, Any] | Damage]:
    """The JSON objects, one a line, of what a stage wrote beside its documents."""
    lines = Lines(chunks(path, 0, None, on_read), MAX_LINE_BYTES)
    for line in lines:
        if line.content is None:
            yield Damage(path, f"a line of more than {MAX_LINE_BYTES:,} bytes")
            continue
        if not line.content.strip():
            continue
        try:
            record = orjson.loads(line.content)
        except orjson.JSONDecodeError as error:
            yield Damage(path, f"malformed JSON at byte {line.offset:,}: {error}")
            continue
        yield record if isinstance(record, dict) else Damage(path, f"no JSON object at byte {line.offset:,}")
    if lines.damage is not None:
        yield Damage(path, f"broke off: {lines.damage}")


def side_files(folder: Path, name: str) -> list[Path]:
    """The files of `FOLDER/NAME/`, or `FOLDER/NAME.jsonl…` without the underscore, as older stages have it."""
    inside = folder / name
    found = sorted(path for path in inside.iterdir() if path.name.endswith(_LINE_ENDINGS)) if inside.is_dir() else []
    beside = [folder / f"{name.removeprefix('_')}{ending}" for ending in _LINE_ENDINGS]
    return found or [path for path in beside if path.is_file()]


def tokens_in_index(prefix: Path) -> tuple[int, int]:
    """(tokens, documents) of an indexed dataset, from its `.idx` alone.

    Raises:
        UserError: the files are not an indexed dataset.
    """
    from megatron_native.data.indexed import IndexedTokens

    dataset = IndexedTokens(prefix)
    return int(dataset.token_count), int(dataset.document_count)
