"""The second half of a rewriting: a part's passages with what became of them, joined to documents, every decision kept."""

from __future__ import annotations

import errno
import io
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from megatron_native.alignment.passages import Outcome, Passage, digest_of, join
from megatron_native.alignment.rewriting.chunks import (
    ANSWERS,
    CHUNKS,
    CLEAN,
    FROZEN,
    STATES,
    PassageOutcome,
    answered,
    answers_path,
    read_answers,
)
from megatron_native.alignment.rewriting.preparing import DOCUMENTS, PreparedDocument
from megatron_native.corpus.account import Account
from megatron_native.corpus.stage import PartResult
from megatron_native.documents.records import utf8_bytes
from megatron_native.documents.writers import ShardWriter, document_writer, written
from megatron_native.manifest import write_json

if TYPE_CHECKING:
    from megatron_native.alignment.rewriting.leases import Leases
    from megatron_native.alignment.rewriting.settings import RewriteSettings

DECISIONS = "_decisions"
JOINED = "parts"


def joined_path(work: Path, name: str) -> Path:
    """The account of a part that is done; it is there once the part's files are."""
    return work / JOINED / f"{int(name[5:]):05d}.json"


def join_if_complete(
    prepared: dict[str, Any], output: Path, work: Path, settings: RewriteSettings, leases: Leases
) -> bool:
    """Join a part if all its chunks have answers and nobody else does; True when it is joined."""
    name = prepared["name"]
    if joined_path(work, name).exists():
        return True
    if len(answered(work, name)) < len(prepared["chunks"]):
        return False
    lease = leases.take(f"join-{name}")
    if lease is None:
        return False
    if not joined_path(work, name).exists():
        write_json(joined_path(work, name), join_part(prepared, output, work, settings))
    leases.finish(lease)
    shutil.rmtree(work / ANSWERS / name, ignore_errors=True)
    (work / DOCUMENTS / f"{name}.jsonl.zst").unlink(missing_ok=True)
    (work / CHUNKS / f"{name}.zst").unlink(missing_ok=True)
    return True


def join_part(prepared: dict[str, Any], output: Path, work: Path, settings: RewriteSettings) -> dict[str, Any]:
    """The output of a part: its documents, and the decision on every passage that the worker saw.

    Returns:
        `account` and `outputs` of the part, `passages`, `tokens` and `refused` by state or gate, and what the part cost.

    Raises:
        FileNotFoundError: what the part is made from is gone, since another run joined it; its output is left alone.
    """
    name = prepared["name"]
    source = work / DOCUMENTS / f"{name}.jsonl.zst"
    if prepared["documents"] and not source.exists():  # before the writers take away what is there
        raise FileNotFoundError(errno.ENOENT, "the part was joined meanwhile", str(source))
    account = Account.of(prepared["account"])
    figures = _Figures(prepared)
    outcomes: dict[tuple[int, int], PassageOutcome] = {}
    for chunk in range(len(prepared["chunks"])):
        header, answers = read_answers(answers_path(work, name, chunk))
        figures.chunk(header.accelerator_seconds, header.engine)
        for answer in answers:
            outcomes[answer.document, answer.number] = answer
            figures.outcome(answer)
    documents = document_writer(output / prepared["folder"], name, settings.output_format)
    decisions = ShardWriter(output / DECISIONS / f"{name}.jsonl.zst")
    lineage = {
        "prompt_hash": settings.prompt_hash, "worker_hash": settings.worker.get("worker_hash"),
        "worker": settings.worker.get("worker"), "sampling": settings.sampling.as_parameters(),
    }  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(documents)
        stack.enter_context(decisions)
        for number, document in enumerate(_prepared_documents(source)):
            of_document = {place: outcomes.get((number, place)) for place in range(len(document.passages))}
            text, states, refused = _joined(document, of_document)
            for place, outcome in of_document.items():
                if outcome is not None:
                    decisions.write(_decision(document, place, outcome))
            account.kept += 1
            account.kept_by_language[document.metadata.get("lang", "?")] += 1
            account.bytes_kept += utf8_bytes(text)
            account.edits.update(document.edits)
            own: dict[str, Any] = lineage | {"passages": dict(states)}
            if refused:
                own["refused_by"] = dict(refused)
            if document.edits:
                own["rules"] = document.edits
            documents.write({"text": text, "id": document.id, "metadata": document.metadata | {"rewrite": own}})
    result = PartResult(account, [*prepared["outputs"], *written(output, [documents, decisions])]).as_json()
    return result | figures.as_json()


class _Figures:
    """Passages and tokens by state, what the engines counted, and what it cost."""

    def __init__(self, prepared: dict[str, Any]) -> None:
        self.passages = Counter({state: prepared["passages"].get(state, 0) for state in (CLEAN, FROZEN)})
        self.tokens = Counter({state: prepared["tokens"].get(state, 0) for state in (CLEAN, FROZEN)})
        self.refused: Counter[str] = Counter()
        self.engine_tokens: Counter[str] = Counter()
        self.seconds = 0.0
        self.engines: list[dict[str, Any]] = []

    def chunk(self, seconds: float, engine: dict[str, Any]) -> None:
        self.seconds += seconds
        if engine not in self.engines:
            self.engines.append(engine)

    def outcome(self, outcome: PassageOutcome) -> None:
        self.passages[outcome.state] += 1
        self.tokens[outcome.state] += outcome.tokens
        self.refused.update(
            outcome.refused or ([outcome.reason.partition(":")[0]] if outcome.state == "refused" else [])
        )
        self.engine_tokens.update(
            prompt=outcome.prompt_tokens, cached=outcome.cached_tokens, output=outcome.output_tokens
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "passages": {state: self.passages[state] for state in STATES},
            "tokens": {state: self.tokens[state] for state in STATES},
            "refused": dict(self.refused), "engine_tokens": dict(self.engine_tokens),
            "accelerator_seconds": self.seconds, "engines": self.engines,
        }  # fmt: skip


def _prepared_documents(path: Path) -> Iterator[PreparedDocument]:
    import zstandard

    if not path.exists():  # a part in which every record was refused
        return
    decoder = msgspec.json.Decoder(PreparedDocument)
    with open(path, "rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        for line in io.BufferedReader(reader, 1 << 20):
            yield decoder.decode(line)


def _joined(
    document: PreparedDocument, outcomes: dict[int, PassageOutcome | None]
) -> tuple[str, Counter[str], Counter[str]]:
    """The document's new text, its passages by state, and how many each gate refused."""
    passages, became = [], []
    states: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for place, (start, stop, state) in enumerate(document.passages):
        text, identifier = document.text[start:stop], f"{document.id}#{place}"
        frozen = state.partition(": ")[2] if state.startswith(FROZEN) else None
        passages.append(Passage(identifier, start, stop, text, "", "", 0, frozen, digest_of(text)))
        outcome = outcomes[place]
        if outcome is not None:
            became.append(Outcome(identifier, outcome.digest, outcome.text))
            states[outcome.state] += 1
            refused.update(outcome.refused)
        else:
            states[state.partition(":")[0]] += 1
            if frozen is None:
                became.append(Outcome(identifier, passages[-1].digest, None))
    return join(document.text, passages, became), states, refused


def _decision(document: PreparedDocument, place: int, outcome: PassageOutcome) -> dict[str, Any]:
    start, stop, _ = document.passages[place]
    return outcome.decision(f"{document.id}#{place}", document.text[start:stop], outcome.tokens, outcome.output_tokens)
