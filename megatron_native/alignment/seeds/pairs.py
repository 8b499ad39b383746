"""From answers to seed pairs: each judged by the gates, kept ones written as pairs, every decision on record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from megatron_native.alignment.backends.backend import Answer
from megatron_native.alignment.rewriting.chunks import (
    QUARANTINED,
    REFUSED,
    REWRITTEN,
    UNCHANGED,
    PassageOutcome,
    WaitingPassage,
)
from megatron_native.alignment.rewriting.joining import DECISIONS
from megatron_native.alignment.rewriting.judging import outcome_of, quarantined
from megatron_native.alignment.rewriting.parts_of_conduct import checks_of
from megatron_native.alignment.seeds.asking import Answered
from megatron_native.alignment.seeds.candidates import read_lines
from megatron_native.alignment.seeds.choosing import Chosen
from megatron_native.alignment.seeds.settings import AnnotateSettings
from megatron_native.corpus.account import Account
from megatron_native.corpus.stage import PartResult
from megatron_native.documents.records import utf8_bytes
from megatron_native.documents.writers import ShardWriter, written
from megatron_native.engine.tasks import OnRead

ANSWERED = "answered"


def answered_path(work: Path, name: str) -> Path:
    """Where the passages of a part of the sample are, with their answers."""
    return work / ANSWERED / f"{name}.jsonl.zst"


def judge_part(name: str, on_read: OnRead, output: Path, work: Path, settings: AnnotateSettings) -> dict[str, Any]:
    """Write the pairs and the decisions of one part of the sample; `on_read` is of no use, since a part is a step.

    Returns:
        `account`, whose records are passages, and `outputs`; `states` and `refused` by gate or reason; `tokens` as the
        server counted them.
    """
    account = Account()
    states, refused = Counter[str](), Counter[str]()
    gates = checks_of(settings.asking)
    pairs = ShardWriter(output / f"{name}.jsonl.zst")
    decisions = ShardWriter(output / DECISIONS / f"{name}.jsonl.zst")
    with ExitStack() as stack:
        stack.enter_context(pairs)
        stack.enter_context(decisions)
        for place, answered in enumerate(read_lines(answered_path(work, name), Answered)):
            candidate = answered.chosen.candidate
            passage = WaitingPassage(
                place, 0, candidate.id, candidate.text, candidate.before, candidate.after, candidate.tokens, ""
            )
            outcome = _outcome(passage, answered, gates)
            states[outcome.state] += 1
            account.read += 1
            account.bytes_read += utf8_bytes(candidate.text)
            lineage = lineage_of(answered, outcome, settings)
            if outcome.state in (REWRITTEN, UNCHANGED):
                rewritten = candidate.text if outcome.text is None else outcome.text
                account.kept += 1
                account.bytes_kept += utf8_bytes(rewritten)
                pairs.write({
                    "origin": candidate.text, "rewritten": rewritten, "id": candidate.id, "metadata": lineage,
                })  # fmt: skip
            else:
                reason = (outcome.refused or [outcome.reason.partition(":")[0]])[0]
                (account.dropped if outcome.state == REFUSED else account.quarantined)[reason] += 1
                refused.update(outcome.refused or [reason])
            decisions.write(_decision(answered, outcome, lineage))
    result = PartResult(account, written(output, [pairs, decisions])).as_json()
    return result | {"states": dict(states), "refused": dict(refused)}


def _outcome(passage: WaitingPassage, answered: Answered, gates: Any) -> PassageOutcome:
    if answered.finish == "error":
        reason = f"no answer: {answered.error}"
        return quarantined(passage, reason, answered.tries, answered.raw)
    if answered.text is None and answered.finish == "stop":
        outcome = quarantined(passage, "answer not understood", answered.tries, answered.raw)
        outcome.state = REFUSED
        return outcome
    answer = Answer(passage.id, answered.text or "", answered.finish)  # type: ignore[arg-type]  # of the three
    outcome = outcome_of(passage, answer, "full", gates, answered.tries)
    if outcome.state == REFUSED and answered.raw is not None:
        outcome.answer = answered.raw
    return outcome


def lineage_of(answered: Answered, outcome: PassageOutcome, settings: AnnotateSettings) -> dict[str, Any]:
    """Where a pair comes from, why it was chosen, who wrote it, what it took, and what the gates said."""
    chosen: Chosen = answered.chosen
    candidate = chosen.candidate
    selection: dict[str, Any] = {"rule": settings.selection.rule, "seed": settings.selection.seed}
    if candidate.stratum:
        selection["stratum"] = candidate.stratum
    if settings.selection.by_perplexity:
        selection |= {"perplexity": chosen.perplexity, "bits_per_byte": chosen.bits_per_byte}
    served = {key: value for key, value in zip(("model", "system_fingerprint"), answered.served) if value}
    return {
        "document": {
            "id": candidate.document, "passage": candidate.number, "source": candidate.origin or None,
            "file": candidate.file, "offset": candidate.offset,
        },
        "tokens": candidate.tokens, "selection": selection,
        "annotation": {
            **settings.lineage, "structured": answered.structured, "served_by": served, "tries": answered.tries,
            "usage": {"prompt_tokens": answered.prompt_tokens, "output_tokens": answered.output_tokens},
        },
        "gates": {gate: score for gate, (score, _) in outcome.gates.items()}, "state": outcome.state,
    }  # fmt: skip


def _decision(answered: Answered, outcome: PassageOutcome, lineage: dict[str, Any]) -> dict[str, Any]:
    candidate = answered.chosen.candidate
    record = outcome.decision(candidate.id, candidate.text, candidate.tokens, answered.output_tokens)
    if outcome.state not in (REWRITTEN, UNCHANGED):
        record["metadata"] = {key: lineage[key] for key in ("document", "selection", "annotation")}
    return record


def figures_of(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Passages by state and refusals by gate or reason, of all parts."""
    states, refused = Counter[str](), Counter[str]()
    for result in results:
        states.update(result["states"])
        refused.update(result["refused"])
    return {
        "passages": {state: states[state] for state in (REWRITTEN, UNCHANGED, REFUSED, QUARANTINED)},
        "refused_by": dict(refused.most_common()),
    }  # fmt: skip
