"""Nothing is paid twice: what is in the journal is not asked again, also after a kill, and a torn file loses one line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from megatron_native.alignment.backends.answer_journal import AnswerJournal, PaidAnswer, request_hash
from megatron_native.alignment.backends.backend import Request, Sampling
from megatron_native.alignment.backends.choice import BackendChoice
from megatron_native.alignment.backends.openai_server import OpenAIBackend
from megatron_native.alignment.backends.server_settings import ServerSettings
from megatron_native.errors import UserError
from tests.alignment.backends.journal_run import make_requests
from tests.faulty_server import FaultyServer, edited

SETTINGS = ServerSettings(concurrency=8, backoff_seconds=0.02)
PAID = PaidAnswer("نص", "stop", 7, 3, 2)


def digest(number: int) -> str:
    return f"{number:064x}"


def test_what_is_recorded_is_found_again_after_opening(tmp_path: Path) -> None:
    other = PaidAnswer(None, "error", 1, 0, 1, "the answer has no text", counted=False)
    with AnswerJournal(tmp_path / "a" / "journal") as journal:
        journal.record(digest(1), "m", PAID)
        journal.record(digest(2), "m", other)
        journal.record_assumed("m", (100, 50))
        journal.record(digest(3), "another", PAID)
        assert journal.find(digest(1)) == PAID
        costs = journal.costs("m")
    with AnswerJournal(tmp_path / "a" / "journal") as journal:
        assert [journal.find(digest(number)) for number in (1, 2, 3, 4)] == [PAID, other, PAID, None]
        assert journal.costs("m") == costs == (7, 3, 2, 101, 51)
        assert len(journal) == 3


def test_wherever_the_file_is_cut_whole_lines_are_kept_and_writing_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with AnswerJournal(path) as journal:
        for number in range(3):
            journal.record(digest(number), "m", PAID)
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with AnswerJournal(path) as journal:
            assert len(journal) == max(sum(end <= cut for end in ends) - 1, 0)
            journal.record(digest(9), "m", PAID)
        with AnswerJournal(path) as journal:
            assert journal.find(digest(9)) == PAID and journal.damaged_lines == 0


def test_a_damaged_line_in_the_middle_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with AnswerJournal(path) as journal:
        for number in range(3):
            journal.record(digest(number), "m", PAID)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0" * 40 + b"\n", lines[3]]))
    with AnswerJournal(path) as journal:
        assert journal.damaged_lines == 1
        assert [journal.find(digest(number)) for number in range(3)] == [PAID, None, PAID]


def test_another_kind_of_file_and_a_second_process_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("something else\n")
    with pytest.raises(UserError, match="is not a journal of answers"):
        AnswerJournal(tmp_path / "text")
    assert (tmp_path / "text").read_text() == "something else\n"
    with AnswerJournal(tmp_path / "journal"), pytest.raises(UserError, match="another process"):
        AnswerJournal(tmp_path / "journal")


def test_a_hash_changes_with_whatever_an_answer_depends_on_and_with_nothing_else() -> None:
    request = Request("a", [{"role": "user", "content": "نص"}], 8)
    same = request_hash("m", Sampling(), Request("b", request.messages, 8, size=5), {})
    others = [
        request_hash("n", Sampling(), request, {}),
        request_hash("m", Sampling(temperature=0.5), request, {}),
        request_hash("m", Sampling(seed=1), request, {}),
        request_hash("m", Sampling(), Request("a", [{"role": "user", "content": "نصّ"}], 8), {}),
        request_hash("m", Sampling(), Request("a", [{"role": "system", "content": "نص"}], 8), {}),
        request_hash("m", Sampling(), Request("a", request.messages, 9), {}),
        request_hash("m", Sampling(), request, {"top_k": 4}),
    ]
    assert request_hash("m", Sampling(), request, {}) == same
    assert len({same, *others}) == len(others) + 1


def test_answers_of_the_journal_cost_no_request(tmp_path: Path) -> None:
    requests = make_requests(30)
    with FaultyServer() as server, AnswerJournal(tmp_path / "journal") as journal:
        first = OpenAIBackend([server.url], "editor", settings=SETTINGS, journal=journal)
        before = {answer.key: answer for answer in first.answers(requests)}
        first.close()
        attempts = Counter(server.ledger.attempts)
        second = OpenAIBackend([server.url], "editor", settings=SETTINGS, journal=journal)
        after = {answer.key: answer for answer in second.answers([*requests, *make_requests(31)[30:]])}
        second.close()
        assert {key: after[key] for key in before} == before
        assert sum((server.ledger.attempts - attempts).values()) == 1
        assert (second.spending.answers, second.spending.journal_answers) == (1, 30)
        assert second.spending.prompt_tokens == server.ledger.prompt_tokens  # what earlier runs spent counts


def test_what_another_process_of_the_job_was_paid_for_is_not_asked_again(tmp_path: Path) -> None:
    """After a kill the chunk that one engine had begun is another's: it finds the answers in that one's journal."""
    with FaultyServer() as server:
        choice = BackendChoice("openai", model=server.model, endpoints=(server.url,), journal=tmp_path / "paid")
        requests = make_requests(12)
        with choice.running("0-1") as backend:
            first = {answer.key: answer.text for answer in backend.answers(requests[:8])}
        with choice.running("0-0") as backend:
            second = {answer.key: answer.text for answer in backend.answers(requests)}
        assert set(server.ledger.paid.values()) == {1}
    assert len(first) == 8
    assert len(second) == 12
    assert second == second | first
    with AnswerJournal(tmp_path / "paid" / "paid-0-1.jsonl") as one, AnswerJournal(tmp_path / "x", [one.path]) as other:
        assert other.costs(server.model) == one.costs(server.model)
        assert len(other) == 0


def test_equal_requests_at_the_same_time_are_asked_once(tmp_path: Path) -> None:
    [one] = make_requests(1)
    requests = [Request(f"copy{number}", one.messages, one.max_tokens) for number in range(40)]
    with FaultyServer({"500": 0.5}, latency=0.02, most_in_a_row=1) as server, AnswerJournal(tmp_path / "j") as journal:
        backend = OpenAIBackend([server.url], "editor", settings=SETTINGS, journal=journal)
        answers = list(backend.answers(requests))
        backend.close()
    assert sorted(answer.key for answer in answers) == sorted(request.key for request in requests)
    assert {answer.text for answer in answers} == {edited(one.messages[0]["content"])}
    assert list(server.ledger.paid.values()) == [1]
    assert (backend.spending.answers, backend.spending.journal_answers) == (1, 39)


def test_an_answer_is_on_disk_before_the_caller_has_it(tmp_path: Path) -> None:
    with FaultyServer() as server, AnswerJournal(tmp_path / "journal") as journal:
        backend = OpenAIBackend([server.url], "editor", settings=SETTINGS, journal=journal)
        for answer in backend.answers(make_requests(20)):
            lines = (tmp_path / "journal").read_text(encoding="utf-8").splitlines()[1:]
            assert answer.text in [json.loads(line)["answer"]["text"] for line in lines]
        backend.close()


def test_where_the_journal_cannot_be_written_the_run_ends_and_gives_what_was_paid(tmp_path: Path) -> None:
    """The limit on a file's size is another process's: ours may be writing its output to a longer file."""
    with FaultyServer() as server:
        limited = ["sh", "-c", 'ulimit -f 4; exec "$@"', "sh"]  # in units of 512 bytes
        run = ["-m", "tests.alignment.backends.journal_run", server.url, tmp_path / "journal", "/dev/stdout", 200]
        command = [*limited, sys.executable, *map(str, run)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        paid = sum(server.ledger.paid.values())
    assert ended.returncode == 1
    assert "UserError" in ended.stderr and "the journal of answers can't be written" in ended.stderr
    assert len(ended.stdout.splitlines()) == paid < 50
    assert (tmp_path / "journal").stat().st_size <= 2048


def test_killed_again_and_again_nothing_is_lost_and_no_recorded_answer_paid_twice(tmp_path: Path) -> None:
    number, kills = 120, 5
    journal, output = tmp_path / "journal", tmp_path / "answers"
    chance = random.Random(7)
    with FaultyServer({"500": 0.1, "half": 0.1, "closed": 0.05}, seed=3, latency=0.03) as server:
        command = [sys.executable, "-m", "tests.alignment.backends.journal_run", server.url, journal, output, number]
        for _ in range(kills):
            done_before = sum(server.ledger.paid.values())
            process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
            wanted = done_before + chance.randrange(8, 20)
            while sum(server.ledger.paid.values()) < wanted and process.poll() is None:
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            paid, lines = sum(server.ledger.paid.values()), journal.read_bytes().count(b'"answer":')
            assert paid - lines <= kills * 4  # what was in flight at a kill, of 4 places
        finished = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert finished.stdout == "done\n", finished.stderr
        twice = sum(count - 1 for count in server.ledger.paid.values())
    # the last process gave out every answer: those of the journal and those it asked for
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines() if line.endswith("]")]
    assert dict(answers[-number:]) == {r.key: edited(r.messages[0]["content"]) for r in make_requests(number)}
    assert len(server.ledger.paid) == number
    with AnswerJournal(journal) as read:
        assert len(read) == number and read.damaged_lines == 0
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]]
    assert set(Counter(line["hash"] for line in lines if "hash" in line).values()) == {
        1
    }  # recorded once, asked no more
    assert twice <= kills * 4
