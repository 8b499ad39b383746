"""Rewriting without a worker: a part's documents tidied by the rules, each checked by the gates, written in one pass."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from megatron_native.alignment.rewriting.chunks import REFUSED, REWRITTEN, STATES, UNCHANGED
from megatron_native.alignment.rewriting.joining import DECISIONS
from megatron_native.alignment.rewriting.parts_of_conduct import checks_of, rules_of
from megatron_native.alignment.rewriting.preparing import came_from, read_into
from megatron_native.alignment.rewriting.settings import RewriteSettings
from megatron_native.corpus.account import Account
from megatron_native.corpus.stage import QUARANTINE, PartResult
from megatron_native.documents.parts import Part
from megatron_native.documents.records import utf8_bytes
from megatron_native.documents.writers import ShardWriter, document_writer, written
from megatron_native.engine.tasks import OnRead


def tidy_part(part: Part, on_read: OnRead, output: Path, settings: RewriteSettings) -> dict[str, Any]:
    """The documents of a part after the rules; one whose change a gate refuses stays as it is.

    Where there are gates, `_decisions/` holds every changed document before and after, with what the gates said.

    Returns:
        `account` and `outputs` of the part, documents by state, refusals by gate, and the processor seconds it took.
    """
    rules, gates = rules_of(settings), checks_of(settings)
    assert rules is not None
    account = Account()
    states: Counter[str] = Counter(dict.fromkeys(STATES, 0))
    refused_by: Counter[str] = Counter()
    started = time.process_time()
    documents = document_writer(output / part.folder, part.name, settings.output_format)
    quarantine = ShardWriter(output / QUARANTINE / f"{part.name}.jsonl.zst")
    decisions = ShardWriter(output / DECISIONS / f"{part.name}.jsonl.zst")
    with ExitStack() as stack:
        for writer in (documents, quarantine, decisions):
            stack.enter_context(writer)
        before = 0
        for document in read_into(part, settings, on_read, account, quarantine):
            result = rules.apply(document.text)
            text, edits = result.text, dict(result.edits)
            state = UNCHANGED if text == document.text else REWRITTEN
            if gates is not None and state == REWRITTEN and document.text.strip():
                verdict = gates.judge(document.text, text)
                record: dict[str, Any] = {
                    "id": document.id, "origin": document.text, "rewritten": text if verdict.passed else None,
                    "state": REWRITTEN if verdict.passed else REFUSED, "rules": edits,
                    "gates": verdict.scores,
                }  # fmt: skip
                if not verdict.passed:
                    refused_by.update(verdict.refused_by)
                    record |= {"refused": verdict.refused_by, "reason": "; ".join(verdict.reasons), "answer": text}
                    text, edits, state = document.text, {}, REFUSED
                decisions.write(record)
            states[state] += 1
            account.kept += 1
            account.kept_by_language[document.metadata.get("lang", "?")] += 1
            account.bytes_kept += utf8_bytes(text) if state == REWRITTEN else account.bytes_read - before
            before = account.bytes_read
            account.edits.update(edits)
            own: dict[str, Any] = {"engine": "rules"}
            if edits:
                own["rules"] = edits
            documents.write({"text": text, "id": document.id, "metadata": came_from(document) | {"rewrite": own}})
    result_of_part = PartResult(account, written(output, [documents, quarantine, decisions])).as_json()
    return result_of_part | {
        "states": dict(states), "refused": dict(refused_by), "processor_seconds": time.process_time() - started,
    }  # fmt: skip
