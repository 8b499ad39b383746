"""One part of the inputs encoded into one part of a masked dataset: what a task of the prepare stage does.

In go the records of a part; out come `PART.bin/.idx/.mask` and the conversations' ids, the same of `PART_heldout`, the
refused records and, last of all, `PART.json` with the account: a part with an account is finished.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

from megatron_native.data.encode_part import part_file
from megatron_native.data.indexed import IndexedWriter, token_dtype
from megatron_native.documents.parts import PART_BYTES, Part
from megatron_native.documents.readers import read_part
from megatron_native.documents.records import MAX_LINE_BYTES, Document, ReadSettings, Refusal, refusal
from megatron_native.documents.writers import ShardWriter
from megatron_native.engine.tasks import OnRead
from megatron_native.errors import UserError
from megatron_native.manifest import write_json
from megatron_native.posttraining.chat_encoding import ChatEncoder, EncodedChat, Learn
from megatron_native.posttraining.conversations import (
    SHAPES,
    RefusedConversationError,
    Shape,
    conversation_of,
)

TOO_LONG = "too long"
HELD_OUT = "held out"
HELDOUT_SUFFIX = "_heldout"
"""What the prefix of the held-out dataset ends with."""


@dataclass(frozen=True)
class PrepareSettings:
    """What a masked dataset depends on, besides its inputs.

    Attributes:
        tokenizer: the Hugging Face folder whose tokenizer, and chat template, are used.
        seq_length: tokens; a longer conversation is dropped, never cut.
        template: `chatml`, `llama3`, or a file; None: the tokenizer's own.
        learn: `all` answers of a conversation, or the `last`.
        shape: `messages`, `alpaca` or `sharegpt`; None: by each record's keys.
        held_out: share of the conversations, by the hash of their id, that goes into `PREFIX_heldout`; 0 for none.
        id_key: the key (or column) that holds a conversation's id.
        part_bytes: text that one task takes.
        max_line_bytes: a longer line is refused without being held in memory.
    """

    tokenizer: Path
    seq_length: int
    template: str | None = None
    learn: Learn = "all"
    shape: Shape | None = None
    held_out: float = 0.0
    id_key: str = "id"
    part_bytes: int = PART_BYTES
    max_line_bytes: int = MAX_LINE_BYTES

    def check(self) -> None:
        """Raise `UserError` for what can't be."""
        if self.seq_length < 2:
            raise UserError(f"--seq-length {self.seq_length}: a conversation has at least two tokens.")
        if not 0 <= self.held_out < 1:
            raise UserError(f"--held-out {self.held_out}: it is a share from 0 up to, but not, 1 (0.02 is a fiftieth).")
        if self.shape is not None and self.shape not in SHAPES:
            raise UserError(f"--shape {self.shape}: it is one of {', '.join(SHAPES)}.")

    def absolute(self) -> PrepareSettings:
        """The same for a process with another working folder."""
        template = self.template
        if template is not None and Path(template).is_file():
            template = str(Path(template).absolute())
        return replace(self, tokenizer=Path(self.tokenizer).absolute(), template=template)


@dataclass
class SideAccount:
    """What went into one of the two datasets.

    Attributes:
        kept: conversations.
        tokens, learned_tokens: ids, and those that are learned.
        answers: runs of learned ids.
        longest: tokens of the longest conversation.
        lowest_id, highest_id: the range of the ids, −1 where there are none.
    """

    kept: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    answers: int = 0
    longest: int = 0
    lowest_id: int = -1
    highest_id: int = -1

    def note(self, chat: EncodedChat) -> None:
        """Take in a conversation."""
        ids, learned = chat
        answers = int(np.count_nonzero(np.diff(learned, prepend=0) == 1))
        self.add(SideAccount(1, len(ids), int(learned.sum()), answers, len(ids), int(ids.min()), int(ids.max())))

    def add(self, other: SideAccount) -> None:
        """Take in the account of another part."""
        if not other.kept:
            return
        self.lowest_id = min(self.lowest_id, other.lowest_id) if self.kept else other.lowest_id
        self.highest_id = max(self.highest_id, other.highest_id)
        self.longest = max(self.longest, other.longest)
        for name in ("kept", "tokens", "learned_tokens", "answers"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class ConversationAccount:
    """What became of the records of one part, or of all.

    Attributes:
        read: records, good and bad.
        too_long: conversations that were dropped for their length.
        quarantined: reason → records.
        read_by_source: input file → records.
        train, heldout: what was kept, and where.
    """

    read: int = 0
    too_long: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    read_by_source: Counter[str] = field(default_factory=Counter)
    train: SideAccount = field(default_factory=SideAccount)
    heldout: SideAccount = field(default_factory=SideAccount)

    def add(self, other: ConversationAccount) -> None:
        """Take in the account of another part."""
        self.read += other.read
        self.too_long += other.too_long
        self.quarantined.update(other.quarantined)
        self.read_by_source.update(other.read_by_source)
        self.train.add(other.train)
        self.heldout.add(other.heldout)


def read_account(part: Path) -> ConversationAccount:
    """The account of a finished part."""
    values: dict[str, Any] = json.loads(part_file(part, "json").read_text(encoding="utf-8"))
    return ConversationAccount(
        values["read"], values["too_long"], Counter(values["quarantined"]), Counter(values["read_by_source"]),
        SideAccount(**values["train"]), SideAccount(**values["heldout"]),
    )  # fmt: skip


def is_held_out(identifier: str, share: float) -> bool:
    """Whether a conversation belongs to the held-out share: by a hash of its id alone."""
    return xxhash.xxh3_64_intdigest(f"held-out/{identifier}".encode("utf-8", "surrogatepass")) < share * 2**64


@cache
def _encoder_of_this_process(tokenizer: Path, template: str | None, learn: Learn) -> ChatEncoder:
    return ChatEncoder(tokenizer, template, learn)


def encode_task(part: Part, on_read: OnRead, folder: Path, settings: PrepareSettings) -> None:
    """Encode a part into `folder`; the process keeps the encoder for its next part."""
    encoder = _encoder_of_this_process(settings.tokenizer, settings.template, settings.learn)
    encode_conversations(part, folder / f"{part.number:05d}", encoder, settings, on_read)


def encode_conversations(
    part: Part, target: Path, encoder: ChatEncoder, settings: PrepareSettings, on_read: OnRead = lambda size: None
) -> ConversationAccount:
    """Encode the conversations of a part into `target.bin`, `.idx`, `.mask` and the files beside them."""
    account = ConversationAccount()
    dtype = token_dtype(encoder.vocab_size)
    heldout = target.with_name(f"{target.name}{HELDOUT_SUFFIX}")
    with ExitStack() as stack:
        writers = [stack.enter_context(IndexedWriter(prefix, dtype, masked=True)) for prefix in (target, heldout)]
        names = [stack.enter_context(ShardWriter(part_file(prefix, "ids.jsonl.zst"))) for prefix in (target, heldout)]
        quarantine = stack.enter_context(ShardWriter(part_file(target, "quarantine.jsonl.zst")))
        for name, chat in _encoded(part, encoder, settings, account, quarantine, on_read):
            side = int(is_held_out(name, settings.held_out))
            writers[side].add_document(chat.ids, learned=chat.learned)
            names[side].write(name)
            (account.heldout if side else account.train).note(chat)
    sides = {"train": vars(account.train), "heldout": vars(account.heldout)}
    write_json(part_file(target, "json"), {**vars(account), **sides})
    return account


def _encoded(
    part: Part,
    encoder: ChatEncoder,
    settings: PrepareSettings,
    account: ConversationAccount,
    quarantine: ShardWriter,
    on_read: OnRead,
) -> Iterator[tuple[str, EncodedChat]]:
    """The conversations of a part that fit, with their ids; all others are counted, and the refused ones set aside."""
    reading = ReadSettings("", settings.id_key, "line", settings.max_line_bytes)
    for record in read_part(part, reading, on_read):
        account.read += 1
        account.read_by_source[record.source] += 1
        try:
            chat = None if isinstance(record, Refusal) else _encode(record, encoder, settings)
        except RefusedConversationError as error:
            assert isinstance(record, Document)
            raw = orjson.dumps(record.metadata, default=str)
            record = refusal(record.source, record.offset, error.reason, raw, error.detail)
            chat = None
        if isinstance(record, Refusal):
            account.quarantined[record.reason] += 1
            quarantine.write(record)
        elif chat is None or len(chat.ids) > settings.seq_length:
            account.too_long += 1
        else:
            yield record.id, chat


def _encode(record: Document, encoder: ChatEncoder, settings: PrepareSettings) -> EncodedChat:
    return encoder.encode(conversation_of(record.metadata, record.id, settings.shape).messages)
