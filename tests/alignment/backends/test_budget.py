"""A budget is never passed, and all that was paid is given out."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_native.alignment.backends.answer_journal import AnswerJournal
from megatron_native.alignment.backends.backend import Answer
from megatron_native.alignment.backends.budget import Account, Budget, BudgetSpentError, prompt_bound
from megatron_native.alignment.backends.openai_server import OpenAIBackend
from megatron_native.alignment.backends.server_settings import ServerSettings
from megatron_native.errors import UserError
from tests.alignment.backends.journal_run import make_requests
from tests.data.small_tokenizers import SENTENCES, write_llama3, write_smollm
from tests.faulty_server import FaultyServer

SETTINGS = ServerSettings(concurrency=8, backoff_seconds=0.02)


def spend(
    server: FaultyServer, budget: Budget, journal: AnswerJournal | None = None
) -> tuple[list[Answer], OpenAIBackend]:
    backend = OpenAIBackend([server.url], "editor", settings=SETTINGS, budget=budget, journal=journal)
    answers: list[Answer] = []
    with pytest.raises(BudgetSpentError, match="larger budget"):
        for answer in backend.answers(make_requests(500)):
            answers.append(answer)
    backend.close()
    return answers, backend


def test_tokens_stay_within_the_budget_and_what_is_in_flight_is_finished() -> None:
    with FaultyServer(latency=0.01) as server:
        answers, backend = spend(server, Budget(max_tokens=1000))
    used = server.ledger.prompt_tokens + server.ledger.output_tokens
    assert used == backend.spending.tokens()
    # a request is 10 or so tokens; at worst 48 bytes and 80 of messages and template, and 32 of the answer
    assert 1000 - 170 < used <= 1000
    assert len(answers) == sum(server.ledger.paid.values()) == sum(server.ledger.attempts.values())
    assert not [answer for answer in answers if answer.error]


def test_money_stays_within_the_budget() -> None:
    budget = Budget(max_cost=0.004, input_price=2.0, output_price=8.0)
    with FaultyServer(latency=0.01) as server:
        _, backend = spend(server, budget)
    cost = (server.ledger.prompt_tokens * 2.0 + server.ledger.output_tokens * 8.0) / 1e6
    assert backend.spending.cost(budget) == pytest.approx(cost)
    assert 0.004 - (140 * 2.0 + 32 * 8.0) / 1e6 < cost <= 0.004


def test_attempts_that_may_have_been_charged_count_at_their_worst() -> None:
    with FaultyServer({"half": 0.5}, seed=1) as server:
        _, backend = spend(server, Budget(max_tokens=5000))
    spending = backend.spending
    broken = sum(fault == "half" for _, fault, _ in server.ledger.events)
    assert broken > 0 and spending.failed_attempts == broken
    assert spending.assumed_output_tokens == 32 * broken
    assert spending.tokens() <= 5000


def test_attempts_that_nobody_charges_for_do_not_count() -> None:
    with FaultyServer({"500": 0.3, "429": 0.2}, seed=1) as server:
        _, backend = spend(server, Budget(max_tokens=1000))
    assert backend.spending.tokens() == server.ledger.prompt_tokens + server.ledger.output_tokens > 800


def test_a_budget_holds_over_runs_with_one_journal(tmp_path: Path) -> None:
    with FaultyServer() as server:
        for most in (600, 600, 1200):
            with AnswerJournal(tmp_path / "journal") as journal:
                spend(server, Budget(max_tokens=most), journal)
            used = server.ledger.prompt_tokens + server.ledger.output_tokens
            assert most - 170 < used <= most
    assert set(server.ledger.paid.values()) == {1}


def test_a_budget_too_small_for_one_request_sends_nothing() -> None:
    with FaultyServer() as server:
        answers, _ = spend(server, Budget(max_tokens=50))
    assert not answers and not server.ledger.attempts


def test_a_budget_that_suffices_is_no_end() -> None:
    with FaultyServer() as server:
        backend = OpenAIBackend([server.url], "editor", settings=SETTINGS, budget=Budget(max_tokens=1000))
        assert len(list(backend.answers(make_requests(20)))) == 20
        backend.close()


def test_prices() -> None:
    budget = Budget(input_price=3.0, cached_price=0.3, output_price=15.0)
    assert budget.cost(1_000_000, 0, 0) == 3.0
    assert budget.cost(1_000_000, 600_000, 100_000) == pytest.approx(0.4 * 3 + 0.6 * 0.3 + 0.1 * 15)
    assert Budget(input_price=3.0).cost(10, 10, 0) == pytest.approx(30e-6)
    assert Budget(input_price=1.0, cached_price=4.0).dearest(1_000_000, 0) == 4.0


def test_what_is_in_flight_is_held_back_at_its_worst() -> None:
    account = Account(Budget(max_tokens=100))
    account.reserve((40, 10))
    assert account.fits((40, 10)) and not account.fits((41, 10))
    account.release((40, 10))
    account.book(20, 0, 5)
    assert account.fits((60, 15)) and not account.fits((61, 15))


@pytest.mark.parametrize(("wrong", "reason"), [({"max_tokens": -1}, "negative"), ({"max_cost": 5.0}, "without prices")])
def test_budgets_that_mean_nothing_are_refused(wrong: dict[str, float], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Budget(**wrong)  # type: ignore[arg-type]


def test_the_bound_of_a_prompt_holds_for_real_tokenizers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}<|im_start|>assistant\n"
    )
    for write in (write_llama3, write_smollm):
        tokenizer = AutoTokenizer.from_pretrained(write(tmp_path / write.__name__))
        for text in [*SENTENCES, "", "ﷺ 😀 \u200f\u202b" * 20, "\n".join(SENTENCES)]:
            messages = [{"role": "system", "content": text}, {"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=True, return_dict=True)[
                "input_ids"
            ]
            assert len(ids) <= prompt_bound(messages)  # type: ignore[arg-type]
