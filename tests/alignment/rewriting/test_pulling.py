import json
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from megatron_native.alignment.backends.backend import BackendDownError, UnreachableError
from megatron_native.alignment.gates.judging import build_gates
from megatron_native.alignment.rewriting.chunks import read_chunk
from megatron_native.alignment.rewriting.joining import joined_path
from megatron_native.alignment.rewriting.pulling import Job
from tests.alignment.rewriting.backends import WritingBackend, down
from tests.alignment.rewriting.jobs import decisions, finish, prepared_job, pull, rewritten_texts, settings_of, text_of


def marked(passage: str) -> str:
    return passage.replace("المدينة", "البلدة")


def waiting(job: Job) -> list[str]:
    """Texts of all passages that wait for the worker."""
    return [
        passage.text
        for part in job.parts
        for entry in part["chunks"]
        for passage in read_chunk(job.work, part["name"], entry)
    ]


def expected_texts(count: int = 6) -> dict[str, str]:
    return {f"d{number}": text_of(number).replace("المدينة", "البلدة") for number in range(count)}


def test_every_passage_is_asked_once_and_documents_keep_their_layout(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, settings_of())
    passages = waiting(job)
    assert len(passages) > 12
    backend = WritingBackend(marked)
    pull(job, backend)
    finish(job)
    assert backend.asked == Counter(passages)
    assert rewritten_texts(job.output) == expected_texts()
    states = Counter(decision["state"] for decision in decisions(job.output))
    assert states == {
        "rewritten": sum("المدينة" in text for text in passages),
        "unchanged": sum("المدينة" not in text for text in passages),
    }


def test_chunks_hold_passages_of_like_length_longest_first(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, settings_of(), count=12)
    (part,) = job.parts
    sizes = [[one.tokens for one in read_chunk(job.work, part["name"], entry)] for entry in part["chunks"]]
    assert [size for chunk in sizes for size in chunk] == sorted(
        (size for chunk in sizes for size in chunk), reverse=True
    )
    assert {len(chunk) for chunk in sizes[:-1]} == {4}


def test_an_error_is_tried_again_and_then_quarantined(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, settings_of(tries=3))
    passages = waiting(job)
    once, always = passages[1], passages[5]
    failures = Counter({once: 1, always: 99})

    def write(passage: str) -> str | None:
        failures[passage] -= 1
        return None if failures[passage] >= 0 else marked(passage)

    backend = WritingBackend(write)
    pull(job, backend)
    finish(job)
    assert backend.asked[once] == 2
    assert backend.asked[always] == 3
    by_origin = {decision["origin"]: decision for decision in decisions(job.output)}
    assert by_origin[once]["tries"] == 2
    assert by_origin[always]["state"] == "quarantined"
    assert by_origin[always]["reason"] == "planted"
    assert by_origin[always]["rewritten"] is None
    texts = rewritten_texts(job.output)
    assert sum(always in text for text in texts.values()) == 1
    assert sum(marked(text) == text for text in texts.values()) >= len(texts) - 1


def test_an_answer_that_was_cut_off_leaves_the_passage_as_it_is(tmp_path: Path) -> None:
    from megatron_native.alignment.backends.backend import Answer

    class Cut(WritingBackend):
        def answers(self, requests):  # type: ignore[no-untyped-def]
            for request in requests:
                yield Answer(request.key, "تقع", "length")

    job = prepared_job(tmp_path, settings_of(), count=1)
    pull(job, Cut(marked))
    finish(job)
    assert rewritten_texts(job.output) == {"d0": text_of(0)}
    for decision in decisions(job.output):
        assert decision["state"] == "refused"
        assert decision["reason"] == "cut off: the answer reached its limit of tokens"
        assert decision["answer"] == "تقع"


def test_what_a_gate_refuses_leaves_the_passage_as_it_is(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, settings_of())
    refused = waiting(job)[3]
    answer = "عذرًا، لا يمكنني المساعدة في هذا الطلب."
    backend = WritingBackend(lambda passage: answer if passage == refused else marked(passage))
    pull(job, backend, build_gates({}))
    finish(job)
    by_origin = {decision["origin"]: decision for decision in decisions(job.output)}
    assert by_origin[refused]["state"] == "refused"
    assert "refusal" in by_origin[refused]["refused"]
    assert by_origin[refused]["answer"] == answer
    assert by_origin[refused]["rewritten"] is None
    assert not by_origin[refused]["gates"]["refusal"][1]
    assert sum(refused in text for text in rewritten_texts(job.output).values()) == 1
    assert not any(answer in text for text in rewritten_texts(job.output).values())


def test_the_edit_form_replaces_spans(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, settings_of(form="edits"))

    def write(passage: str) -> str:
        if passage.count("المدينة على") != 1:
            return "[]" if "السوق" not in passage else "عذرًا"
        return json.dumps({"find": "المدينة على", "replace": "البلدة على"}, ensure_ascii=False)

    pull(job, WritingBackend(write))
    finish(job)
    for number, text in enumerate(rewritten_texts(job.output).values()):
        assert text == text_of(number).replace("المدينة على", "البلدة على")


def test_an_answer_without_edits_is_refused(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, settings_of(form="edits"), count=1)
    pull(job, WritingBackend(lambda passage: "لا أستطيع ذلك."))
    finish(job)
    assert {decision["reason"] for decision in decisions(job.output)} == {"edits not understood: no edits"}
    assert rewritten_texts(job.output) == {"d0": text_of(0)}


@pytest.mark.parametrize(("letter", "fault"), [("\\ud800", "lone surrogate"), ("\\u0000", "NUL character")])
def test_an_answer_that_no_document_can_hold_is_refused(tmp_path: Path, letter: str, fault: str) -> None:
    """JSON can escape what UTF-8 can't write; readers refuse a document with a NUL, so it would be lost."""
    job = prepared_job(tmp_path, settings_of(form="edits"), count=2)
    answer = f'{{"find": "المدينة على", "replace": "المدينة{letter}على"}}'
    pull(job, WritingBackend(lambda passage: answer if passage.count("المدينة على") == 1 else "[]"))
    finish(job)
    refused = [decision for decision in decisions(job.output) if decision["state"] == "refused"]
    assert refused
    assert {decision["reason"] for decision in refused} == {f"unfit for a document: {fault}"}
    assert rewritten_texts(job.output) == {"d0": text_of(0), "d1": text_of(1)}


def test_what_an_engine_had_begun_when_it_died_another_does(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, settings_of())
    first = WritingBackend(marked, in_flight=6)
    count = 0

    def dies(passage: str) -> str | None:
        nonlocal count
        count += 1
        return marked(passage) if count <= 9 else down(passage)

    first._write = dies
    with pytest.raises(BackendDownError):
        pull(job, first)
    unfinished = job.passages() - job.answered()
    assert 0 < unfinished < job.passages()
    second = WritingBackend(marked)
    pull(job, second)
    finish(job)
    assert sum(second.asked.values()) == unfinished
    assert rewritten_texts(job.output) == expected_texts()


def test_a_passage_that_brings_engines_down_is_quarantined_and_nothing_else_is(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, settings_of(tries=2))
    poison = waiting(job)[7]
    backend = WritingBackend(lambda passage: down(passage) if passage == poison else marked(passage))
    deaths = 0
    while job.answered() < job.passages():
        try:
            pull(job, backend)
        except BackendDownError:
            deaths += 1
        assert deaths < 10
    finish(job)
    assert deaths == 4  # two with the whole chunk, then `tries` times alone
    by_origin = {decision["origin"]: decision for decision in decisions(job.output)}
    (decision,) = [decision for decision in by_origin.values() if decision["state"] == "quarantined"]
    assert decision["origin"] == poison
    assert decision["reason"] == "the engine ended 2 times while it worked on this passage alone"
    for text in rewritten_texts(job.output).values():
        assert marked(text).replace(marked(poison), poison) == text


def test_servers_that_are_away_are_no_passages_fault(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, settings_of(tries=2), count=1)

    def away(passage: str) -> str | None:
        raise UnreachableError("no endpoint has answered")

    for _ in range(6):
        with pytest.raises(UnreachableError):
            pull(job, WritingBackend(away))
    for _ in range(2):  # engines that died before: now the chunk is done one passage at a time
        with pytest.raises(BackendDownError):
            pull(job, WritingBackend(down))
    for _ in range(6):
        with pytest.raises(UnreachableError):
            pull(job, WritingBackend(away))
    pull(job, WritingBackend(marked))
    finish(job)
    assert rewritten_texts(job.output) == expected_texts(1)


def test_one_by_one_goes_on_after_the_last_passage_that_ended(tmp_path: Path) -> None:
    """An engine that is killed again and again for another reason must not come to blame a passage."""
    job = prepared_job(tmp_path, settings_of(tries=2, chunk_passages=8), count=2)
    allowed = 0

    def write(passage: str) -> str | None:
        nonlocal allowed
        allowed -= 1
        return marked(passage) if allowed >= 0 else down(passage)

    rounds = 0
    while job.answered() < job.passages():
        allowed = 1
        rounds += 1
        with suppress(BackendDownError):
            pull(job, WritingBackend(write, in_flight=2))
        assert rounds < 60
    finish(job)
    assert {decision["state"] for decision in decisions(job.output)} <= {"rewritten", "unchanged"}


def test_an_engine_that_is_asked_to_stop_gives_back_what_it_has_not_finished(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, settings_of())
    reported = 0

    def report(passages: int) -> None:
        nonlocal reported
        reported += passages

    first = WritingBackend(marked, in_flight=2)
    pull(job, first, report=report, stopping=lambda: reported >= 6)
    unfinished = job.passages() - job.answered()
    assert 0 < unfinished <= job.passages() - 4
    assert list((job.work / "leases").iterdir()) == []
    second = WritingBackend(marked)
    pull(job, second)
    finish(job)
    assert sum(second.asked.values()) == unfinished
    assert rewritten_texts(job.output) == expected_texts()


def test_engines_side_by_side_ask_each_passage_once(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, settings_of(), count=30)
    passages = Counter(waiting(job))
    backends = [WritingBackend(marked) for _ in range(3)]
    threads = [threading.Thread(target=pull, args=(job, backend)) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish(job)
    asked = sum((backend.asked for backend in backends), Counter())
    assert asked == passages
    assert rewritten_texts(job.output) == expected_texts(30)


def test_a_part_is_joined_as_soon_as_it_is_answered(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, settings_of(part_bytes=4000), count=12)
    assert len(job.parts) > 2
    pull(job, WritingBackend(marked))
    assert all(joined_path(job.work, part["name"]).exists() for part in job.parts if part["chunks"])
    assert not any((job.work / "answers").glob("*/*.jsonl"))
    assert rewritten_texts(job.output) == expected_texts(12)


def test_costs_add_up_to_the_time_at_work(tmp_path: Path) -> None:
    import time

    job = prepared_job(tmp_path, settings_of())

    def slow(passage: str) -> str:
        time.sleep(0.01)
        return marked(passage)

    begun = time.monotonic()
    pull(job, WritingBackend(slow))
    took = time.monotonic() - begun
    finish(job)
    seconds = sum(
        json.loads(joined_path(job.work, part["name"]).read_text())["accelerator_seconds"] for part in job.parts
    )
    assert 0.01 * job.passages() <= seconds <= took
