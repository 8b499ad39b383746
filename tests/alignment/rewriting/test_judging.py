from typing import Any

import pytest

from megatron_native.alignment.backends.backend import Answer
from megatron_native.alignment.passages import digest_of
from megatron_native.alignment.prompts import delimiter_token
from megatron_native.alignment.rewriting.chunks import WaitingPassage
from megatron_native.alignment.rewriting.judging import outcome_of

TEXT = "تقع المدينة على ضفاف نهر كبير."
PASSAGE = WaitingPassage(3, 1, "d#1", TEXT, "", "", 12, digest_of(TEXT))


def judged(answer: str, gates: Any = None, form: Any = "full"):
    return outcome_of(PASSAGE, Answer("k", answer, "stop", 100, 80, 20), form, gates, 2)


def test_what_the_engine_counted_and_the_passage_are_kept() -> None:
    outcome = judged("تقع البلدة على ضفاف نهر كبير.")
    assert (outcome.document, outcome.number, outcome.digest, outcome.tokens) == (3, 1, PASSAGE.digest, 12)
    assert (outcome.prompt_tokens, outcome.cached_tokens, outcome.output_tokens, outcome.tries) == (100, 80, 20, 2)
    assert (outcome.state, outcome.text) == ("rewritten", "تقع البلدة على ضفاف نهر كبير.")


def test_boundary_lines_that_a_worker_repeats_are_no_change() -> None:
    token = delimiter_token(TEXT)
    assert judged(f"<passage {token}>\n{TEXT}\n</passage {token}>").state == "unchanged"


@pytest.mark.parametrize(("answer", "reason"), [("", "empty answer"), (" \n", "empty answer")])
def test_an_empty_answer_is_refused(answer: str, reason: str) -> None:
    outcome = judged(answer)
    assert (outcome.state, outcome.reason, outcome.text) == ("refused", reason, None)


def test_a_gate_that_fails_costs_the_passage_its_rewrite_and_no_more() -> None:
    class Broken:
        def judge(self, *texts: str) -> None:
            raise ZeroDivisionError("no words")

    outcome = judged("تقع البلدة على ضفاف نهر كبير.", Broken())
    assert outcome.state == "refused"
    assert outcome.reason == "a gate failed: ZeroDivisionError: no words"
    assert outcome.answer == "تقع البلدة على ضفاف نهر كبير."
