"""One part of the inputs tokenized into one part of the dataset: what a task of the tokenize stage does.

In go the records of a part; out come `PART.bin/.idx`, the documents' ids, the refused records and, last of all,
`PART.json` with the account of every record: a part with an account is finished and is never made again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_native.data.indexed import IndexedWriter, token_dtype
from megatron_native.data.tokenizers import Tokenizer, load_tokenizer
from megatron_native.documents.parts import PART_BYTES, Part
from megatron_native.documents.readers import read_part
from megatron_native.documents.records import MAX_LINE_BYTES, Document, ReadSettings, Refusal, refusal, utf8_bytes
from megatron_native.documents.writers import ShardWriter
from megatron_native.engine.tasks import OnRead
from megatron_native.manifest import write_json

BATCH_CHARACTERS = 1 << 20
"""Text held at a time: a batch is encoded when it has this many characters or `BATCH_DOCUMENTS` documents."""
BATCH_DOCUMENTS = 1000
NOT_ENCODABLE = "not encodable"
"""The reason for which a text that the tokenizer's engine can't take is refused."""
EMPTY = "empty"
"""The reason for which a document of which nothing was tokenized is dropped."""
_SOURCE = attrgetter("source")


@dataclass(frozen=True)
class TokenizeSettings:
    """What the tokens of a dataset depend on, besides its inputs; and the engine, on which they don't.

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
        split_sentences: write every sentence as a sequence of its own, with NLTK's Punkt for this language; "" for not.
        keep_newlines: with `split_sentences`, line breaks stay at the ends of sentences.
        part_bytes: text that one task takes.
        engine: `auto`, `fastokens` or `tokenizers`.
    """

    tokenizer_type: str
    tokenizer_model: str
    append_eod: bool = False
    eod_token: str | None = None
    bos: bool | None = None
    json_key: str = "text"
    id_key: str = "id"
    text_unit: str = "file"
    max_line_bytes: int = MAX_LINE_BYTES
    split_sentences: str = ""
    keep_newlines: bool = False
    part_bytes: int = PART_BYTES
    engine: str = "auto"

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer; with `append_eod`, one whose separator is known."""
        tokenizer = load_tokenizer(self.tokenizer_type, self.tokenizer_model, self.eod_token, self.bos, self.engine)
        if self.append_eod:
            _ = tokenizer.eod_id
        return tokenizer

    def reading(self) -> ReadSettings:
        """What of a record is its text and its id."""
        return ReadSettings(self.json_key, self.id_key, self.text_unit, self.max_line_bytes, metadata=False)


@dataclass
class PartAccount:
    """What became of the records of one part.

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
        read_by_source: input file → records.
        documents_by_source: input file → documents of the dataset, empty ones included.
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
    read_by_source: Counter[str] = field(default_factory=Counter)
    documents_by_source: Counter[str] = field(default_factory=Counter)

    def add(self, other: PartAccount) -> None:
        """Take in the account of another part."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            elif not name.endswith("_id"):
                setattr(self, name, getattr(self, name) + value)
        self.note_range(other.lowest_id, other.highest_id)

    def note_ids(self, ids: NDArray[Any], separator: int | None = None) -> None:
        """Widen the range to these ids, and count the separators that the text gave among them."""
        if len(ids):
            self.note_range(int(ids.min()), int(ids.max()))
            if separator is not None and self.highest_id >= separator:
                self.separators_from_text += int(np.count_nonzero(ids == separator))

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
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    counted: dict[str, Any] = {key: Counter(value) if isinstance(value, dict) else value for key, value in values.items()}
    return PartAccount(**counted)


def part_file(part: Path, suffix: str) -> Path:
    """`PART.suffix`."""
    return part.with_name(f"{part.name}.{suffix}")


@cache
def _tokenizer_of_this_process(settings: TokenizeSettings) -> Tokenizer:
    return settings.load_tokenizer()


def encode_task(part: Part, on_read: OnRead, folder: Path, settings: TokenizeSettings) -> None:
    """Tokenize a part into `folder`; the process keeps the tokenizer for its next part."""
    encode_part(part, folder / f"{part.number:05d}", _tokenizer_of_this_process(settings), settings, on_read)


def encode_part(
    part: Part, target: Path, tokenizer: Tokenizer, settings: TokenizeSettings, on_read: OnRead = lambda size: None
) -> PartAccount:
    """Tokenize the records of a part into `target.bin`, `target.idx` and the files beside them."""
    account = PartAccount()
    with (
        IndexedWriter(target, token_dtype(tokenizer.vocab_size)) as writer,
        ShardWriter(part_file(target, "ids.jsonl.zst")) as identifiers,
        ShardWriter(part_file(target, "quarantine.jsonl.zst")) as quarantine,
    ):
        encoder = _BatchEncoder(tokenizer, settings, account, writer, identifiers, quarantine)
        for batch in _batches(read_part(part, settings.reading(), on_read), quarantine, account):
            encoder.encode(batch)
    write_json(part_file(target, "json"), vars(account))
    return account


class _BatchEncoder:
    """Documents to ids, with the begin and end tokens of the policy; keeps the account."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: TokenizeSettings,
        account: PartAccount,
        writer: IndexedWriter,
        identifiers: ShardWriter,
        quarantine: ShardWriter,
    ) -> None:
        self._tokenizer, self._account = tokenizer, account
        self._writer, self._identifiers, self._quarantine = writer, identifiers, quarantine
        self._begin = tokenizer.bos_id
        self._end = tokenizer.eod_id if settings.append_eod else None
        self._splitter = None
        if settings.split_sentences:
            from megatron_native.data.sentences import SentenceSplitter

            self._splitter = SentenceSplitter(settings.split_sentences, settings.keep_newlines)

    def encode(self, batch: list[Document]) -> None:
        """Encode and write a batch; a text that the engine can't take is refused alone."""
        units = [
            [document.text] if self._splitter is None else self._splitter.split(document.text) for document in batch
        ]
        try:
            ids, bounds = self._tokenizer.encode_flat([text for texts in units for text in texts])
        except Exception as error:  # the engines raise types of their own for a text they can't take
            if len(batch) == 1:
                self._account.quarantined[NOT_ENCODABLE] += 1
                self._quarantine.write(_not_encodable(batch[0], error))
                return
            for document in batch:
                self.encode([document])
            return
        self._write(batch, units, ids, bounds)

    def _write(
        self, batch: list[Document], units: list[list[str]], ids: NDArray[np.int32], bounds: NDArray[np.int64]
    ) -> None:
        """Put the begin and end tokens around each document's ids, and write all with one call."""
        account = self._account
        account.documents_by_source.update(map(_SOURCE, batch))
        for document in batch:
            self._identifiers.write(document.id)
        if self._splitter is None:  # a text is one sequence
            sizes = np.diff(bounds)
            sequence_lengths, sequences = sizes[sizes > 0], (sizes > 0).astype(np.int64)
        else:
            sentence_sizes = np.diff(bounds)
            edges = np.cumsum([0, *map(len, units)])
            bounds = bounds[edges]
            sizes = np.diff(bounds)
            sequences = np.diff(np.cumsum([0, *(sentence_sizes > 0)])[edges])
            sequence_lengths = sentence_sizes[sentence_sizes > 0]
        kept = np.flatnonzero(sizes)
        account.dropped.update({EMPTY: len(batch) - len(kept)} if len(kept) < len(batch) else {})
        account.kept += len(kept)
        texts = [batch[number].text for number in kept.tolist()]
        whole = "".join(texts)
        account.text_bytes += utf8_bytes(whole)
        if self._tokenizer.count_special_tokens(whole):  # hardly ever; some may be made by the joining
            account.special_tokens_in_text += sum(map(self._tokenizer.count_special_tokens, texts))
        account.note_ids(ids, self._end)
        framed = self._framed(ids, bounds, kept)
        if len(kept):
            last = np.cumsum(sequences)[kept] - 1
            sequence_lengths = sequence_lengths.copy()
            sequence_lengths[last] += self._end is not None
            sequence_lengths[last - sequences[kept] + 1] += self._begin is not None
            account.note_ids(np.array([token for token in (self._begin, self._end) if token is not None]))
        account.tokens += len(framed)
        self._writer.add_documents(framed, sequence_lengths, sequences)

    def _framed(self, ids: NDArray[np.int32], bounds: NDArray[np.int64], kept: NDArray[np.int64]) -> NDArray[Any]:
        """The ids of all documents, those of the `kept` ones within their begin and end tokens, as they are written."""
        before, after = int(self._begin is not None), int(self._end is not None)
        if not before and not after:
            return ids
        out = np.empty(len(ids) + (before + after) * len(kept), dtype=self._writer.dtype)
        first, stop = bounds[:-1][kept], bounds[1:][kept]
        places = first + (before + after) * np.arange(len(kept)) + before
        ends = places + stop - first
        if before:
            out[places - 1] = self._begin
        if after:
            out[ends] = self._end
        for place, end, start, finish in zip(places.tolist(), ends.tolist(), first.tolist(), stop.tolist()):
            out[place:end] = ids[start:finish]
        return out


def _not_encodable(document: Document, error: Exception) -> Any:
    return refusal(
        document.source,
        document.offset,
        NOT_ENCODABLE,
        document.text[:2000].encode("utf-8", "backslashreplace"),
        str(error),
    )


def _batches(
    records: Iterable[Document | Refusal], quarantine: ShardWriter, account: PartAccount
) -> Iterator[list[Document]]:
    """Documents in batches; refused records are set aside, and all are counted."""
    batch: list[Document] = []
    characters = 0
    for record in records:
        if isinstance(record, Refusal):
            account.read += 1
            account.read_by_source[record.source] += 1
            account.quarantined[record.reason] += 1
            quarantine.write(record)
            continue
        batch.append(record)
        characters += len(record.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            _count_read(batch, account)
            yield batch
            batch, characters = [], 0
    if batch:
        _count_read(batch, account)
        yield batch


def _count_read(batch: list[Document], account: PartAccount) -> None:
    account.read += len(batch)
    account.read_by_source.update(map(_SOURCE, batch))
