"""One input file tokenized into one part: what a worker process of the tokenize stage does.

In goes a shard of documents; out come `PART.bin/.idx`, the documents' ids, the refused records and, last of all,
`PART.json` with the account of every record: a part with an account is finished and is never made again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megatron_native.data.indexed import IndexedWriter, token_dtype
from megatron_native.data.tokenizers import Tokenizer, load_tokenizer
from megatron_native.manifest import write_json

if TYPE_CHECKING:
    from megatron_native.corpus.readers import Document, Refusal

BATCH_BYTES = 1 << 20
"""Text held at a time: a batch is encoded when it has this many characters or `BATCH_DOCUMENTS` documents."""
BATCH_DOCUMENTS = 1000
NOT_ENCODABLE = "not encodable"
"""The reason for which a text that the tokenizer's engine can't take is refused."""
EMPTY = "empty"
"""The reason for which a document of which nothing was tokenized is dropped."""


@dataclass(frozen=True)
class TokenizeSettings:
    """What the tokens of a dataset depend on, besides its inputs.

    Attributes:
        tokenizer_type: `HuggingFaceTokenizer` or `SentencePieceTokenizer`.
        tokenizer_model: a local folder or file.
        append_eod: end every document with the document separator.
        eod_token: the separator, or None for the base model's.
        bos: begin every document with the begin token (True), with its text (False), or as the tokenizer's template
            says (None).
        json_key: the key (or column) that holds the text.
        id_key: the key (or column) that holds the document's id.
        text_unit: what a document is in a plain-text file: `file`, `line` or `paragraph`.
        max_line_bytes: a longer line is refused without being held in memory.
    """

    tokenizer_type: str
    tokenizer_model: str
    append_eod: bool = False
    eod_token: str | None = None
    bos: bool | None = None
    json_key: str = "text"
    id_key: str = "id"
    text_unit: str = "file"
    max_line_bytes: int = 64 << 20

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer; with `append_eod`, one whose separator is known."""
        tokenizer = load_tokenizer(self.tokenizer_type, self.tokenizer_model, self.eod_token, self.bos)
        if self.append_eod:
            _ = tokenizer.eod_id
        return tokenizer


@dataclass
class PartAccount:
    """What became of the records of one input file.

    Attributes:
        read: records, good and bad.
        kept: documents with tokens.
        dropped: reason → documents.
        quarantined: reason → records.
        tokens: ids written, begin and end tokens included.
        text_bytes: UTF-8 bytes of the kept documents' text.
        special_tokens_in_text: spellings of special tokens in the text, all encoded as ordinary text.
        separators_from_text: separator ids that the text itself gave, which only a tokenizer that can't tell a
            spelling from the token produces; 0 otherwise.
        lowest_id, highest_id: the range of the ids, −1 where there are none.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    text_bytes: int = 0
    special_tokens_in_text: int = 0
    separators_from_text: int = 0
    lowest_id: int = -1
    highest_id: int = -1

    def add(self, other: PartAccount) -> None:
        """Take in the account of another file."""
        for name in ("read", "kept", "tokens", "text_bytes", "special_tokens_in_text", "separators_from_text"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped.update(other.dropped)
        self.quarantined.update(other.quarantined)
        self.note_range(other.lowest_id, other.highest_id)

    def note_range(self, lowest: int, highest: int) -> None:
        """Widen the range of ids."""
        if lowest >= 0:
            self.lowest_id = lowest if self.lowest_id < 0 else min(self.lowest_id, lowest)
            self.highest_id = max(self.highest_id, highest)


def read_account(part: Path) -> PartAccount | None:
    """The account of a finished part, or None where the part is not finished."""
    path = part_file(part, "json")
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return PartAccount(**{**values, "dropped": Counter(values["dropped"]), "quarantined": Counter(values["quarantined"])})


def part_file(part: Path, suffix: str) -> Path:
    """`PART.suffix`."""
    return part.with_name(f"{part.name}.{suffix}")


def encode_part(
    path: Path, part: Path, tokenizer: Tokenizer, settings: TokenizeSettings,
    on_batch: Callable[[int], None] = lambda text_bytes: None,
) -> PartAccount:
    """Tokenize the file `path` into the part `part`; `on_batch(text bytes)` hears of the progress."""
    from megatron_native.corpus.readers import read_documents

    account = PartAccount()
    records = read_documents(
        path, text_key=settings.json_key, id_key=settings.id_key,
        max_line_bytes=settings.max_line_bytes, text_unit=settings.text_unit,
    )
    dtype = token_dtype(tokenizer.vocab_size)
    with (
        IndexedWriter(part, dtype) as writer,
        JsonLines(part_file(part, "ids.jsonl.zst")) as identifiers,
        JsonLines(part_file(part, "quarantine.jsonl.zst")) as quarantine,
    ):
        encoder = _DocumentEncoder(tokenizer, settings, account)
        for batch in _batches(_without_refusals(records, quarantine, account)):
            before = account.text_bytes
            for document, ids in encoder.encode(batch, quarantine):
                writer.add_document(ids)
                identifiers.write(document.id)
            on_batch(account.text_bytes - before)
    write_json(part_file(part, "json"), vars(account))
    return account


class _DocumentEncoder:
    """Documents to ids, with the begin and end tokens of the policy; keeps the account."""

    def __init__(self, tokenizer: Tokenizer, settings: TokenizeSettings, account: PartAccount) -> None:
        self._tokenizer = tokenizer
        self._account = account
        self._prefix = np.array([] if tokenizer.bos_id is None else [tokenizer.bos_id], dtype=np.int32)
        self._suffix = np.array([tokenizer.eod_id] if settings.append_eod else [], dtype=np.int32)

    def encode(
        self, batch: list[Document], quarantine: JsonLines
    ) -> Iterator[tuple[Document, NDArray[np.int32]]]:
        """Each document with all its ids; none, not even an end token, where its text gives none."""
        account = self._account
        for document, ids in self._encode_texts(batch, quarantine):
            if len(ids) == 0:
                account.dropped[EMPTY] += 1
                yield document, ids
                continue
            if len(self._suffix):
                account.separators_from_text += int(np.count_nonzero(ids == self._suffix[0]))
            ids = np.concatenate([self._prefix, ids, self._suffix])
            account.kept += 1
            account.tokens += len(ids)
            account.text_bytes += len(document.text.encode())
            account.special_tokens_in_text += self._tokenizer.count_special_tokens(document.text)
            account.note_range(int(ids.min()), int(ids.max()))
            yield document, ids

    def _encode_texts(
        self, batch: list[Document], quarantine: JsonLines
    ) -> Iterable[tuple[Document, NDArray[np.int32]]]:
        try:
            return list(zip(batch, self._tokenizer.encode_batch([document.text for document in batch])))
        except Exception as error:  # the engines raise types of their own for a text they can't take
            if len(batch) == 1:
                self._account.quarantined[NOT_ENCODABLE] += 1
                quarantine.write(_not_encodable(batch[0], error))
                return []
        return [pair for document in batch for pair in self._encode_texts([document], quarantine)]


class JsonLines:
    """A zstd-compressed JSONL file, written beside its place and renamed; made only once something is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + ".partial")
        self._stream: Any = None
        self._file: Any = None

    def __enter__(self) -> JsonLines:
        self._path.unlink(missing_ok=True)
        return self

    def write(self, value: Any) -> None:
        """Append one value as a line."""
        import msgspec
        import zstandard

        if self._stream is None:
            self._file = open(self._temporary, "wb")  # noqa: SIM115 — closed on exit
            self._stream = zstandard.ZstdCompressor(level=3).stream_writer(self._file, closefd=False)
        self._stream.write(msgspec.json.encode(value) + b"\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is None:
            return
        self._stream.close()
        self._file.close()
        if kind is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def _without_refusals(
    records: Iterable[Document | Refusal], quarantine: JsonLines, account: PartAccount
) -> Iterator[Document]:
    from megatron_native.corpus.readers import Refusal

    for record in records:
        account.read += 1
        if isinstance(record, Refusal):
            account.quarantined[record.reason] += 1
            quarantine.write(record)
        else:
            yield record


def _not_encodable(document: Document, error: Exception) -> Refusal:
    from megatron_native.corpus.readers import Refusal

    raw = document.text[:2000].encode("utf-8", "backslashreplace").decode()
    return Refusal(document.source, document.offset, document.line, NOT_ENCODABLE, raw, str(error))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
