"""From a worker's answer to what becomes of a passage: read, compared, judged by the gates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_native.alignment.backends.backend import Answer
from megatron_native.alignment.edits import apply_edits, parse_edits
from megatron_native.alignment.prompts import delimiter_token, parse_full
from megatron_native.alignment.rewriting.chunks import (
    QUARANTINED,
    REFUSED,
    REWRITTEN,
    UNCHANGED,
    PassageOutcome,
    WaitingPassage,
)
from megatron_native.documents.records import text_fault
from megatron_native.errors import UserError

if TYPE_CHECKING:
    from megatron_native.alignment.gates.judging import Gates
    from megatron_native.alignment.prompts import Form


def outcome_of(passage: WaitingPassage, answer: Answer, form: Form, gates: Gates | None, tries: int) -> PassageOutcome:
    """What becomes of a passage, given an answer that has a text.

    An answer that was cut off, can't be read, has what no document may have, or that a gate refuses leaves the passage as
    it is; the answer is kept for people to look at.
    """
    outcome = PassageOutcome(
        passage.document, passage.number, passage.digest, REFUSED, passage.tokens, prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens, output_tokens=answer.output_tokens, tries=tries,
    )  # fmt: skip
    text, fault = _read(passage, answer, form)
    if text is None:
        outcome.reason, outcome.answer = fault, answer.text
        return outcome
    if fault := _unfit(text):
        outcome.reason, outcome.answer = f"unfit for a document: {fault}", ascii(text)
        return outcome
    if text == passage.text:
        outcome.state = UNCHANGED
        return outcome
    if gates is not None:
        try:
            verdict = gates.judge(passage.text, text, passage.before, passage.after)
        except UserError:  # such as a judge that does not answer: no passage is at fault
            raise
        except Exception as error:  # a gate's defect costs one passage its rewrite, not the run
            outcome.reason, outcome.answer = f"a gate failed: {type(error).__name__}: {error}", text
            return outcome
        outcome.gates = verdict.scores
        if not verdict.passed:
            outcome.refused, outcome.reason = list(verdict.refused_by), "; ".join(verdict.reasons)
            outcome.answer = text
            return outcome
    outcome.state, outcome.text = REWRITTEN, text
    return outcome


def quarantined(passage: WaitingPassage, reason: str, tries: int, answer: str | None = None) -> PassageOutcome:
    """The outcome of a passage that no engine could answer: it stays as it is."""
    return PassageOutcome(
        passage.document, passage.number, passage.digest, QUARANTINED, passage.tokens, reason=reason, answer=answer,
        tries=tries,
    )  # fmt: skip


def _unfit(text: str) -> str:
    """Why no reader would take a document with this text; "" where it would."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "lone surrogate"
    return text_fault(text) or ""


def _read(passage: WaitingPassage, answer: Answer, form: Form) -> tuple[str | None, str]:
    """The passage's new text, or why there is none."""
    if answer.finish == "length":
        return None, "cut off: the answer reached its limit of tokens"
    assert answer.text is not None
    if form == "full":
        text = parse_full(answer.text, delimiter_token(passage.text, passage.before, passage.after))
        return (text, "") if text else (None, "empty answer")
    result = parse_edits(answer.text, passage.text)
    if not result.complete:
        problems = sorted({problem.kind for problem in result.problems})
        return None, f"edits not understood: {', '.join(problems)}"
    return apply_edits(passage.text, result.edits), ""
