"""The first half of a rewriting, before any worker: a part's documents tidied by rules, cut into passages, looked at.

What a passage needs is decided here: `frozen` ones can't be rewritten, `clean` ones need no rewrite, the others wait in
chunks. With `rules` as the engine there are no passages: the tidied text, if the gates let it through, is the output.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from megatron_native.alignment.passages import Passage, split
from megatron_native.alignment.rewriting.chunks import CLEAN, FROZEN, WaitingPassage, write_chunks
from megatron_native.alignment.rewriting.parts_of_conduct import first_look_of, rules_of
from megatron_native.alignment.rewriting.settings import RewriteSettings
from megatron_native.corpus.account import Account
from megatron_native.corpus.folding import code_points
from megatron_native.corpus.stage import QUARANTINE, PartResult
from megatron_native.documents.parts import Part
from megatron_native.documents.records import Document, Refusal, utf8_bytes
from megatron_native.documents.writers import ShardWriter, written
from megatron_native.engine.tasks import OnRead

DOCUMENTS = "documents"
WAITING = ""
"""State of a passage that waits for the worker."""


_CONTROL_TOKENS = re.compile(r"<\|[\w-]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[\w▁]{1,40}｜>")
"""Signs by which chats of known model families are parted: inside a passage a tokenizer would take them for the real ones."""


class PreparedDocument(msgspec.Struct, array_like=True):
    """A document between the two halves.

    Attributes:
        id, text, metadata: the document's; the text is tidied.
        passages: (start, stop, state) each: a state of `chunks.STATES` with its reason (`frozen: code`), or `WAITING`.
        edits: what the rules did, by rule.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    passages: list[tuple[int, int, str]]
    edits: dict[str, int]


@dataclass
class Tidier:
    """Rules, cutting and first look over one text at a time."""

    settings: RewriteSettings
    tokens: Counter[str] = field(default_factory=Counter)
    """Tokens of the passages so far, by state."""
    passages: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rules = rules_of(self.settings)
        self._look = first_look_of(self.settings)
        self._finder: Any = None

    def tidy(self, text: str) -> tuple[str, dict[str, int]]:
        """The text after the rules, and how often each did something."""
        if self._rules is None:
            return text, {}
        result = self._rules.apply(text)
        return result.text, dict(result.edits)

    def cut(self, text: str, document_id: str) -> list[tuple[Passage, str]]:
        """The passages of a tidied text, each with its state."""
        found = []
        passages = split(
            text, self.settings.passage_tokens, context=self.settings.context_tokens, document_id=document_id,
            scripture=self._verses(text),
        )  # fmt: skip
        for passage in passages:
            if passage.frozen:
                state = f"{FROZEN}: {passage.frozen}"
            elif any(map(_CONTROL_TOKENS.search, (passage.text, passage.before, passage.after))):
                state = f"{FROZEN}: control tokens"
            elif self._look is not None and self._look.look(passage.text, {}).clean:
                state = CLEAN
            else:
                state = WAITING
            kind = state.partition(":")[0] or "waiting"
            self.tokens[kind] += passage.tokens
            self.passages[kind] += 1
            found.append((passage, state))
        return found

    def _verses(self, text: str) -> Sequence[tuple[int, int]]:
        if self._finder is None:
            from megatron_native.corpus.scripture import ScriptureFinder

            self._finder = ScriptureFinder()
        spans: Sequence[tuple[int, int]] = self._finder.spans(code_points(text))
        return spans


def prepare_part(part: Part, on_read: OnRead, output: Path, work: Path, settings: RewriteSettings) -> dict[str, Any]:
    """Tidy and cut one part; what waits for the worker goes into chunks.

    Args:
        part: what to read.
        on_read: hears of bytes read.
        output: the stage folder, for what can't be read.
        work: the folder of what is between the two halves.
        settings: of the rewriting.

    Returns:
        `account` and `outputs` of the part so far, its `chunks` ([offset, bytes, passages] each), and the passages and
        tokens by state.
    """
    account, tidier = Account(), Tidier(settings)
    waiting: list[WaitingPassage] = []
    documents = ShardWriter(work / DOCUMENTS / f"{part.name}.jsonl.zst")
    quarantine = ShardWriter(output / QUARANTINE / f"{part.name}.jsonl.zst")
    with ExitStack() as stack:
        stack.enter_context(documents)
        stack.enter_context(quarantine)
        for document in read_into(part, settings, on_read, account, quarantine):
            text, edits = tidier.tidy(document.text)
            states = []
            for number, (passage, state) in enumerate(tidier.cut(text, document.id)):
                states.append((passage.start, passage.stop, state))
                if state == WAITING:
                    waiting.append(WaitingPassage.of(passage, documents.records, number))
            documents.write(PreparedDocument(document.id, text, came_from(document), states, edits))
    chunks = write_chunks(work, part.name, waiting, settings.chunk_passages)
    return PartResult(account, written(output, [quarantine])).as_json() | {
        "name": part.name, "folder": part.folder, "chunks": chunks, "documents": documents.records,
        "passages": dict(tidier.passages), "tokens": dict(tidier.tokens),
    }  # fmt: skip


def read_into(
    part: Part, settings: RewriteSettings, on_read: OnRead, account: Account, quarantine: ShardWriter
) -> Iterator[Document]:
    """The documents of a part; what can't be read goes into quarantine and the account."""
    from megatron_native.documents.readers import read_part

    for record in read_part(part, settings.reading, on_read):
        account.note(record)
        if isinstance(record, Refusal):
            quarantine.write(record)
            continue
        account.bytes_read += utf8_bytes(record.text)
        yield record


def came_from(document: Document) -> dict[str, Any]:
    """The metadata of a document, with its place in the first dump it came from."""
    if "from" in document.metadata:
        return document.metadata
    return document.metadata | {"from": {"file": document.source, "offset": document.offset}}
