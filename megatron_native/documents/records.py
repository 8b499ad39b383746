"""What a reader gives: documents, and refusals where a record can't be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import orjson

RAW_PREVIEW_BYTES = 2000
MAX_LINE_BYTES = 64 << 20
TEXT_UNITS = ("file", "line", "paragraph")


class Document(msgspec.Struct):
    """One record that was read, with the place it came from."""

    id: str
    text: str
    metadata: dict[str, Any]
    source: str
    """Path of the file; of an archive's member `ARCHIVE!MEMBER`."""
    offset: int
    """Byte offset of the record in the (decompressed) file; for Parquet and Arrow the row number."""


class Refusal(msgspec.Struct):
    """One record that could not be read: what quarantine keeps of it."""

    source: str
    offset: int
    reason: str
    """One of a few words, counted in the account."""
    raw: str
    """The record's beginning, undecodable bytes escaped."""
    detail: str = ""


class ReadSettings(msgspec.Struct, frozen=True):
    """How records become documents; belongs into the manifest of every stage that reads.

    Attributes:
        text_key: key or column of the text; dots reach into nested objects. "" for records that hold no single text: their
            documents have an empty text, and the whole record as metadata.
        id_key: key or column of the id; a record without one is called `FILE:OFFSET`.
        text_unit: what one document of plain text is: `file`, `line` or `paragraph` (blank lines between).
        max_line_bytes: a longer line (or element of an array) is refused without being held in memory.
        metadata: whether documents get their record's other keys; without them reading is faster.
    """

    text_key: str = "text"
    id_key: str = "id"
    text_unit: str = "file"
    max_line_bytes: int = MAX_LINE_BYTES
    metadata: bool = True


def refusal(source: str, offset: int, reason: str, raw: bytes, detail: str = "") -> Refusal:
    """A refusal that keeps the beginning of the record."""
    return Refusal(source, offset, reason, raw[:RAW_PREVIEW_BYTES].decode("utf-8", "backslashreplace"), detail)


def document_of_json(raw: bytes, source: str, name: str, offset: int, settings: ReadSettings) -> Document | Refusal:
    """The document that a line of JSON holds. `name` begins the id of a record that has none."""
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return refusal(source, offset, _json_fault(raw, error), raw, str(error))
    if not isinstance(record, dict):
        return refusal(source, offset, "not a JSON object", raw)
    return document_of(record, source, name, offset, settings, raw)


def _json_fault(raw: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "invalid UTF-8"
    return "lone surrogate" if "surrogate" in str(error) else "malformed JSON"


def document_of(
    record: dict[str, Any], source: str, name: str, offset: int, settings: ReadSettings, raw: bytes
) -> Document | Refusal:
    """The document that a parsed record is; all its other keys become metadata."""
    keys = settings.text_key.split(".") if settings.text_key else []
    text: Any = record if keys else ""
    for key in keys:
        if not isinstance(text, dict) or key not in text:
            return refusal(source, offset, "no text key", raw, f"no '{settings.text_key}' in it")
        text = text[key]
    if text is None:
        text = ""
    if not isinstance(text, str):
        return refusal(source, offset, "text is not a string", raw, type(text).__name__)
    fault = text_fault(text)
    if fault:
        return refusal(source, offset, fault, raw)
    identifier = record.get(settings.id_key)
    if (
        isinstance(identifier, float) and raw
    ):  # orjson rounds integers of more than 64 bits, the standard library does not
        identifier = json.loads(raw)[settings.id_key]
    name = f"{name}:{offset}" if identifier is None or identifier == "" else str(identifier)
    if not keys:
        return Document(name, "", record, source, offset)
    others = _without(record, keys)
    others.pop(settings.id_key, None)
    metadata = others.pop("metadata") if isinstance(others.get("metadata"), dict) else {}
    metadata = metadata | {key: value for key, value in others.items() if key not in metadata}
    return Document(name, text, metadata, source, offset)


def _without(record: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The record without the value that nested keys reach, and without what is empty then."""
    rest = dict(record)
    inner = rest.pop(keys[0])
    if len(keys) > 1 and (left := _without(inner, keys[1:])):
        rest[keys[0]] = left
    return rest


def text_fault(text: str) -> str | None:
    """Why a decoded text file can't be a document's text, or None."""
    return "NUL character" if "\x00" in text else None


def utf8_bytes(text: str) -> int:
    """The bytes that a text without lone surrogates has in UTF-8, in half the time that encoding it takes."""
    if text.isascii():
        return len(text)
    units = np.frombuffer(text.encode("utf-16-le"), dtype="<u2")
    halves = np.count_nonzero((units & 0xF800) == 0xD800)  # a pair of surrogates has four bytes
    return int(len(units) + np.count_nonzero(units > 0x7F) + np.count_nonzero(units > 0x7FF) - halves)
