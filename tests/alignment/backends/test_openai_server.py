"""The openai backend against a real server on loopback that fails: every request answered once and paid once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_native.alignment.backends.answer_journal import AnswerJournal, PaidAnswer
from megatron_native.alignment.backends.backend import Answer, BackendDownError, Request
from megatron_native.alignment.backends.openai_server import OpenAIBackend
from megatron_native.alignment.backends.server_settings import ServerSettings
from megatron_native.alignment.backends.worker import Worker
from megatron_native.errors import UserError
from tests.alignment.backends.journal_run import make_requests
from tests.faulty_server import ANSWERED, FAULTS, FaultyServer, edited, sensible_answer
from tests.tiny_models import make_tiny_model

QUICK: dict[str, Any] = {"concurrency": 8, "backoff_seconds": 0.02, "request_seconds": 5.0, "give_up_seconds": 20.0}
KEY = "sk-very-secret-0123456789"
RETRIED = [fault for fault in FAULTS if fault not in ANSWERED and fault not in ("400", "401", "404", "hang")]

Open = Callable[..., OpenAIBackend]


@pytest.fixture
def connect() -> Iterator[Open]:
    """A backend for servers, with quick settings; closed at the end."""
    backends = []

    def make(*servers: FaultyServer | str, **settings: Any) -> OpenAIBackend:
        urls = [server if isinstance(server, str) else server.url for server in servers]
        more = {name: settings.pop(name) for name in ("budget", "journal", "sampling", "worker") if name in settings}
        backend = OpenAIBackend(urls, "editor", settings=ServerSettings(**{**QUICK, **settings}), **more)
        backends.append(backend)
        return backend

    yield make
    for backend in backends:
        backend.close()


def check(requests: list[Request], answers: list[Answer]) -> None:
    """Each request has one answer, and it is the server's for this very request."""
    assert sorted(answer.key for answer in answers) == sorted(request.key for request in requests)
    texts = {request.key: edited(request.messages[-1]["content"]) for request in requests}
    for answer in answers:
        assert (answer.text, answer.finish, answer.error) == (texts[answer.key], "stop", "")


def paid_once(server: FaultyServer, number: int) -> None:
    assert len(server.ledger.paid) == number
    assert set(server.ledger.paid.values()) == {1}


@pytest.mark.parametrize("fault", RETRIED)
def test_a_fault_is_retried_until_the_answer_comes(fault: str, connect: Open) -> None:
    requests = make_requests(6)
    with FaultyServer(schedule=lambda body, attempt: fault if attempt < 2 else "") as server:
        backend = connect(server)
        check(requests, list(backend.answers(requests)))
    paid_once(server, 6)
    assert set(server.ledger.attempts.values()) == {3}
    assert backend.spending.failed_attempts == 12


def test_no_more_than_is_in_flight_waits_for_the_disk(tmp_path: Path, connect: Open) -> None:
    """A kill loses what was in flight, also where the disk is slower than the server."""
    waiting = []

    class SlowJournal(AnswerJournal):
        def record(self, digest: str, model: str, answer: PaidAnswer) -> None:
            time.sleep(0.03)
            waiting.append(sum(server.ledger.paid.values()) - len(self))
            super().record(digest, model, answer)

    requests = make_requests(20)
    with FaultyServer() as server, SlowJournal(tmp_path / "paid.jsonl") as journal:
        check(requests, list(connect(server, journal=journal, concurrency=3).answers(requests)))
    paid_once(server, 20)
    assert len(waiting) == 20 and max(waiting) <= 3, waiting


def test_an_attempt_without_an_answer_in_time_is_made_again(connect: Open) -> None:
    requests = make_requests(3)
    with FaultyServer(schedule=lambda body, attempt: "hang" if attempt == 0 else "") as server:
        check(requests, list(connect(server, request_seconds=0.5).answers(requests)))
        paid_once(server, 3)


def test_mixed_faults_lose_nothing_and_pay_nothing_twice(connect: Open) -> None:
    requests = make_requests(300)
    faults = dict.fromkeys(RETRIED, 0.06) | {"slow": 0.02, "no_usage": 0.04}
    with FaultyServer(faults, seed=5, retry_after=0.01, slow_seconds=0.1) as server:
        backend = connect(server, concurrency=16)
        check(requests, list(backend.answers(requests)))
    paid_once(server, 300)
    seen = {fault for _, fault, _ in server.ledger.events}
    assert seen == {*faults, ""}
    assert backend.spending.failed_attempts == sum(fault in RETRIED for _, fault, _ in server.ledger.events)


def test_after_the_last_attempt_the_request_has_an_error_and_the_others_go_on(connect: Open) -> None:
    requests = make_requests(20)

    def schedule(body: dict[str, Any], attempt: int) -> str:
        return "500" if "رقم 7," in body["messages"][0]["content"] else ""

    with FaultyServer(schedule=schedule) as server:
        answers = {answer.key: answer for answer in connect(server, attempts=4).answers(requests)}
    assert answers["p7"].finish == "error" and answers["p7"].text is None
    assert "HTTP 500" in answers["p7"].error and "4 attempts" in answers["p7"].error
    assert max(server.ledger.attempts.values()) == 4
    check([request for request in requests if request.key != "p7"], [a for k, a in answers.items() if k != "p7"])


def test_a_request_the_server_rejects_has_an_error_at_once(connect: Open) -> None:
    with FaultyServer(schedule=lambda body, attempt: "400" if "رقم 0," in str(body) else "") as server:
        answers = {answer.key: answer for answer in connect(server).answers(make_requests(2))}
    assert "maximum context length" in answers["p0"].error and answers["p0"].finish == "error"
    assert answers["p1"].finish == "stop"
    assert set(server.ledger.attempts.values()) == {1}


def test_an_answer_ended_by_a_filter_is_an_error_and_not_asked_again(connect: Open) -> None:
    with FaultyServer(schedule=lambda body, attempt: "filtered") as server:
        [answer] = connect(server).answers(make_requests(1))
    assert answer.finish == "error" and "content_filter" in answer.error and answer.text is not None
    paid_once(server, 1)


def test_an_answer_cut_at_its_limit_says_length(connect: Open) -> None:
    request = Request("a", [{"role": "user", "content": "واحد اثنان ثلاثة أربعة"}], max_tokens=2)
    with FaultyServer() as server:
        [answer] = connect(server).answers([request])
    assert (answer.text, answer.finish, answer.output_tokens) == ("واحد اثنان ", "length", 2)


def test_usage_is_the_servers_with_cached_tokens(connect: Open) -> None:
    system = "أنت محرر عربي"  # three words, which are this server's tokens
    requests = [
        Request(str(i), [{"role": "system", "content": system}, {"role": "user", "content": f"جملة {i}"}], 16)
        for i in range(3)
    ]
    with FaultyServer() as server:
        backend = connect(server, concurrency=1)
        answers = list(backend.answers(requests))
    assert [(a.prompt_tokens, a.cached_tokens, a.output_tokens) for a in answers] == [(5, 0, 2), (5, 3, 2), (5, 3, 2)]
    spending = backend.spending
    assert (spending.prompt_tokens, spending.cached_tokens, spending.output_tokens) == (15, 6, 6)
    assert spending.answers_without_usage == 0
    assert dict(backend.reported) == {("editor-0001", "fp_loopback"): 3}


def test_answers_without_usage_are_counted_as_such(connect: Open) -> None:
    with FaultyServer(schedule=lambda body, attempt: "no_usage") as server:
        backend = connect(server)
        [answer] = backend.answers(make_requests(1))
    assert (answer.prompt_tokens, answer.output_tokens) == (0, 0)
    assert backend.spending.answers_without_usage == 1
    assert backend.spending.assumed_output_tokens == 32  # max_tokens of the request


def test_no_more_requests_at_once_than_allowed_and_as_many(connect: Open) -> None:
    requests = make_requests(40)
    with FaultyServer(latency=0.03) as server:
        check(requests, list(connect(server, concurrency=5).answers(requests)))
    assert server.ledger.most_at_once == 5


def test_requests_are_drawn_only_while_there_is_room(connect: Open) -> None:
    drawn, answered, most = 0, 0, 0

    def stream() -> Iterator[Request]:
        nonlocal drawn, most
        for request in make_requests(60):
            drawn += 1
            most = max(most, drawn - answered)
            yield request

    with FaultyServer(latency=0.01) as server:
        for _ in connect(server, concurrency=3).answers(stream()):
            answered += 1
    assert answered == 60 and most == 6  # twice the places: one in flight, one waiting


def test_requests_a_minute_are_kept(connect: Open) -> None:
    requests = make_requests(20)
    with FaultyServer() as server:
        began = server.now()
        check(requests, list(connect(server, requests_a_minute=1200).answers(requests)))
    for place, (_, _, arrived) in enumerate(server.ledger.events):
        assert arrived >= began + place * 0.05  # 1200 a minute are one every 50 ms


def test_tokens_a_minute_are_kept(connect: Open) -> None:
    requests = [Request(str(i), [{"role": "user", "content": f"{i} " + "كلمة " * 199}], 400) for i in range(10)]
    with FaultyServer() as server:
        began = server.now()
        list(connect(server, tokens_a_minute=60_000).answers(requests))
    for place, (_, _, arrived) in enumerate(server.ledger.events):
        assert arrived >= began + place * 0.4  # 1000 a second allowed, 200 in and 200 out used by each before
    assert arrived - began < 9 * 2.2  # far less than by the worst case, 1791 bytes and 400 tokens each


@pytest.mark.parametrize("fault", ["429", "503"])
def test_retry_after_is_waited_for(fault: str, connect: Open) -> None:
    requests = make_requests(4)
    with FaultyServer(schedule=lambda body, attempt: fault if attempt == 0 else "", retry_after=0.7) as server:
        check(requests, list(connect(server).answers(requests)))
    times: dict[str, list[float]] = {}
    for digest, _, seconds in server.ledger.events:
        times.setdefault(digest, []).append(seconds)
    assert all(second - first >= 0.69 for first, second in times.values())


def test_many_limits_in_a_row_are_no_failures_of_a_request(connect: Open) -> None:
    with FaultyServer(schedule=lambda body, attempt: "429" if attempt < 9 else "", retry_after=0.01) as server:
        requests = make_requests(3)
        check(requests, list(connect(server, attempts=2).answers(requests)))


def test_requests_go_to_the_endpoint_with_the_least_load(connect: Open) -> None:
    requests = make_requests(90)
    with FaultyServer(latency=0.02) as quick, FaultyServer(latency=0.2) as slow:
        check(requests, list(connect(quick, slow, concurrency=4).answers(requests)))
    assert sum(slow.ledger.paid.values()) >= 4
    assert sum(quick.ledger.paid.values()) > 3 * sum(slow.ledger.paid.values())


def test_a_dead_endpoint_is_put_aside_and_comes_back(connect: Open) -> None:
    requests = make_requests(400)
    with FaultyServer(latency=0.02) as one, FaultyServer(latency=0.02) as two, FaultyServer(latency=0.02) as three:
        backend = connect(one, two, three, concurrency=2)
        answers, before_death, while_dead = [], 0, 0
        for answer in backend.answers(requests):
            answers.append(answer)
            if len(answers) == 60:
                two.die()
                before_death = sum(two.ledger.attempts.values())
            if len(answers) == 180:
                while_dead = sum(two.ledger.attempts.values())
                two.revive()
        check(requests, answers)
        assert 0 < before_death == while_dead < sum(two.ledger.attempts.values())
        paid = one.ledger.paid + two.ledger.paid + three.ledger.paid
    assert len(paid) == 400 and set(paid.values()) == {1}


def test_an_endpoint_that_only_fails_gets_little_and_costs_no_request_its_answer(connect: Open) -> None:
    requests = make_requests(100)
    with FaultyServer(latency=0.01) as good, FaultyServer(schedule=lambda body, attempt: "500") as bad:
        check(requests, list(connect(good, bad, failures_to_put_aside=3, attempts=4).answers(requests)))
    assert sum(good.ledger.paid.values()) == 100
    assert sum(bad.ledger.attempts.values()) < 50


def test_when_no_endpoint_answers_the_backend_is_down_and_says_why(connect: Open) -> None:
    with FaultyServer() as one, FaultyServer(schedule=lambda body, attempt: "503") as two:
        one.die()
        backend = connect(one, two, give_up_seconds=0.6, failures_to_put_aside=2, attempts=1000)
        began = time.monotonic()
        with pytest.raises(BackendDownError) as raised:
            list(backend.answers(make_requests(5)))
        assert 0.6 <= time.monotonic() - began < 5
    assert one.url in str(raised.value) and "connection" in str(raised.value)
    assert two.url in str(raised.value) and "overloaded" in str(raised.value)


def test_a_server_that_starts_late_is_waited_for(connect: Open) -> None:
    with FaultyServer() as server:
        server.die()
        backend = connect(server, attempts=1)
        answers = backend.answers(late(server))
        assert [answer.text for answer in answers] == ["مرحبا، يا أهل الدار"]


def late(server: FaultyServer) -> Iterator[Request]:
    yield Request("a", [{"role": "user", "content": "مرحبا, يا أهل الدار"}], 16)
    time.sleep(0.4)
    server.revive()


def test_a_model_that_is_not_there_ends_the_run_at_once(connect: Open) -> None:
    with FaultyServer(model="another") as server:
        with pytest.raises(UserError, match=r"404.*model's name") as raised:
            list(connect(server).answers(make_requests(50)))
        assert server.url in str(raised.value)
        assert sum(server.ledger.attempts.values()) <= QUICK["concurrency"]


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "EXPERT_KEY"])
def test_the_key_comes_from_the_environment_and_shows_nowhere(
    variable: str, connect: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(variable, KEY)
    requests = make_requests(8)
    with FaultyServer({"500": 0.3, "half": 0.3}, api_key=KEY, seed=2) as server:
        backend = connect(server, api_key_variable=variable)
        check(requests, list(backend.answers(requests)))
        shown = [repr(backend), repr(backend.settings), str(backend.identity()), repr(vars(backend))]
        monkeypatch.setenv(variable, KEY + "-expired")
        with pytest.raises(UserError, match=variable) as raised:  # this server repeats the key in its refusal
            list(connect(server, api_key_variable=variable).answers(requests))
    error: BaseException | None = raised.value
    while error is not None:
        shown += [str(error), repr(error)]
        error = error.__cause__ or error.__context__
    output = capfd.readouterr()
    shown += [record.getMessage() for record in caplog.records] + [output.out, output.err]
    assert len(caplog.records) > 8
    assert not [text for text in shown if KEY in text]


def test_a_key_that_a_server_repeats_is_struck_out(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "context")  # a word of the server's message
    with FaultyServer(schedule=lambda body, attempt: "400") as server:
        [answer] = connect(server).answers(make_requests(1))
    assert "maximum [key] length" in answer.error


@pytest.mark.parametrize(
    ("endpoints", "reason"),
    [
        ([], "no endpoint"),
        (["localhost:8000"], "no URL"),
        (["http://user:geheim@host:80/v1"], "carries a user"),
        (["http://host/v1?api-key=geheim"], "carries a user"),
        (["http://host:99999/geheim"], "no URL"),
        (["http://host:80", "http://host:80/v1/"], "named twice"),
    ],
)
def test_endpoints_are_checked_and_never_quoted_with_a_key(endpoints: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as raised:
        OpenAIBackend(endpoints, "editor")
    assert "geheim" not in str(raised.value)


def test_text_that_is_no_unicode_is_an_error_of_its_request(connect: Open) -> None:
    with FaultyServer() as server:
        requests = [Request("bad", [{"role": "user", "content": "\ud800"}], 4), *make_requests(1)]
        answers = {answer.key: answer for answer in connect(server).answers(requests)}
    assert answers["bad"].finish == "error" and "UTF-8" in answers["bad"].error
    assert answers["p0"].finish == "stop"


def test_a_caller_who_leaves_early_can_ask_again(connect: Open) -> None:
    with FaultyServer(latency=0.05) as server:
        backend = connect(server)
        answers = backend.answers(make_requests(50))
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        requests = make_requests(5)
        check(requests, list(backend.answers(requests)))


def test_what_goes_wrong_while_drawing_reaches_the_caller(connect: Open) -> None:
    def broken() -> Iterator[Request]:
        yield from make_requests(3)
        raise OSError("the input is gone")

    with FaultyServer() as server, pytest.raises(OSError, match="the input is gone"):
        list(connect(server).answers(broken()))


def test_the_identity_names_the_model_and_the_worker_where_it_is_known(tmp_path: Path, connect: Open) -> None:
    import openai

    plain = {"backend": "openai", "backend_version": openai.__version__, "model": "editor"}
    assert connect("http://one:1").identity() == connect("http://two:2").identity() == plain
    worker = Worker(make_tiny_model(tmp_path / "worker", "llama2"))
    assert connect("http://one:1", worker=worker).identity() == {
        **plain,
        "worker": "worker",
        "worker_hash": worker.hash,
    }


def test_the_servers_edits_turn_the_passage_into_its_answer() -> None:
    from megatron_native.alignment.conduct import load_conduct
    from megatron_native.alignment.edits import apply_edits, parse_edits
    from megatron_native.alignment.prompts import parse_full, render_rewriting

    passage, code = "هل وصل الوفد? نعم,  وصل صباحا.", load_conduct("general")
    assert (
        parse_full(sensible_answer(list(map(dict, render_rewriting(code, passage))))) == "هل وصل الوفد؟ نعم، وصل صباحا."
    )
    answer = sensible_answer(list(map(dict, render_rewriting(code, passage, form="edits"))))
    assert apply_edits(passage, parse_edits(answer, passage).edits) == "هل وصل الوفد؟ نعم، وصل صباحا."
