"""vLLM's real engine behind the interface of backends."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator

import pytest

from megatron_native.alignment.backends.backend import Request, Sampling
from megatron_native.alignment.backends.vllm_engine import VllmBackend, VllmSettings
from megatron_native.alignment.backends.worker import Worker
from megatron_native.errors import UserError
from tests.vllm.conftest import CONTEXT, Engine, question


def alone(backend: VllmBackend, request: Request) -> tuple[str, int, int]:
    """Text, and tokens of prompt and answer, by vLLM's own chat call with nothing else in the batch."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0.0, max_tokens=request.max_tokens)
    (output,) = backend.llm.chat(request.messages, parameters, use_tqdm=False)
    return output.outputs[0].text, len(output.prompt_token_ids), len(output.outputs[0].token_ids)


def test_each_request_is_answered_once_and_as_if_it_were_asked_alone(engine: VllmBackend) -> None:
    requests = [question(number, max_tokens=4 + number) for number in range(30)]
    answers = list(engine.answers(requests))
    assert sorted(answer.key for answer in answers) == sorted(request.key for request in requests)
    by_key = {answer.key: answer for answer in answers}
    for request in requests:
        answer = by_key[request.key]
        assert (answer.text, answer.prompt_tokens, answer.output_tokens) == alone(engine, request)
        assert answer.finish == ("length" if answer.output_tokens == request.max_tokens else "stop")
        assert answer.error == ""
    assert {answer.finish for answer in answers} == {"stop", "length"}


def test_what_is_drawn_and_unanswered_is_bounded_and_keeps_the_engine_full(engine: VllmBackend) -> None:
    drawn = answered = 0
    seen = []

    def requests() -> Iterator[Request]:
        nonlocal drawn
        for number in range(40):
            drawn += 1
            seen.append(drawn - answered)
            yield question(number, max_tokens=3)

    for _ in engine.answers(requests()):
        answered += 1
    assert answered == drawn == 40
    assert engine.room == 8
    assert max(seen) == 8 and set(seen[8:]) <= set(range(5, 9))


def test_a_prompt_longer_than_the_context_is_an_error_and_the_others_go_on(engine: VllmBackend) -> None:
    requests = [question(number) for number in range(6)]
    requests.insert(2, Request("long", [{"role": "user", "content": "word " * CONTEXT}], 8))
    answers = {answer.key: answer for answer in engine.answers(requests)}
    assert len(answers) == 7
    assert answers["long"].text is None and answers["long"].finish == "error"
    assert str(CONTEXT) in answers["long"].error
    assert all(answer.finish != "error" for key, answer in answers.items() if key != "long")


def test_an_answer_ends_where_the_context_does(engine: VllmBackend, worker: Worker) -> None:
    messages = [{"role": "user", "content": "one two three four five six seven eight nine ten " * 99}]
    prompt = len(worker.chat_ids(messages))
    assert CONTEXT - 50 < prompt < CONTEXT
    (answer,) = engine.answers([Request("nearly full", messages, 500)])
    assert answer.finish == "length" and answer.output_tokens == CONTEXT - prompt


def test_half_a_character_is_an_error_of_that_request(engine: VllmBackend) -> None:
    broken = Request("broken", [{"role": "user", "content": "half \ud83d of a sign"}], 4)
    answers = {answer.key: answer for answer in engine.answers([broken, question(1)])}
    assert answers["broken"].finish == "error" and answers["broken"].error
    assert answers["chat 1"].finish != "error"


def test_the_shared_beginning_is_computed_once_and_counted_as_cached(engine: VllmBackend, worker: Worker) -> None:
    system = "You are careful with facts, names, dates and numbers, and you change nothing else. " * 20
    shared = len(worker.chat_ids([{"role": "system", "content": system}])) - 10
    first, *others = (
        answer for number in range(4) for answer in engine.answers([question(number, max_tokens=2, system=system)])
    )
    assert first.cached_tokens == 0
    block = engine.llm.llm_engine.vllm_config.cache_config.block_size
    for answer in others:
        assert answer.cached_tokens == shared // block * block > 0
        assert answer.prompt_tokens > answer.cached_tokens


def test_answers_nobody_waits_for_are_given_up(engine: VllmBackend) -> None:
    left = engine.answers(question(number, max_tokens=200 if number else 1) for number in range(100))
    next(left)
    left.close()
    assert engine.llm.llm_engine.get_num_unfinished_requests() == 0
    assert [answer.key for answer in engine.answers([question(7)])] == ["chat 7"]


def test_seeded_sampling_gives_the_same_answer_again_and_another_seed_another(engine: VllmBackend) -> None:
    texts = []
    for seed in (1, 1, 2):
        engine.sampling = Sampling(temperature=1.0, top_p=0.95, seed=seed)
        texts.append({answer.key: answer.text for answer in engine.answers(question(n, 20) for n in range(6))})
    engine.sampling = Sampling()
    assert texts[0] == texts[1] != texts[2]


def test_identity_names_what_answered(engine: VllmBackend, worker: Worker) -> None:
    identity = engine.identity()
    assert json.loads(json.dumps(identity)) == identity
    versions = [importlib.metadata.version(d) for d in importlib.metadata.packages_distributions()["vllm"]]
    assert identity["version"] in versions
    assert identity == {
        "backend": "vllm", "version": identity["version"], "worker": "smollm2-135m-instruct", "worker_hash": worker.hash,
        "dtype": "float32", "quantization": None, "speculation": None,
    }  # fmt: skip
    assert engine.accelerators == 1


def test_looking_ahead_in_the_prompt_changes_no_greedy_answer(engine: VllmBackend, engine_of: Engine) -> None:
    copied = "The quick brown fox jumps over the lazy dog while seven wizards watch the river. "
    requests = [question(number, max_tokens=24) for number in range(10)]
    requests += [
        Request(f"copy {n}", [{"role": "user", "content": f"Repeat {n} times: {copied * 3}"}], 48) for n in (2, 3)
    ]
    plain = {answer.key: answer for answer in engine.answers(requests)}
    with engine_of(speculation=4, statistics=True) as speculating:
        answers = {answer.key: answer for answer in speculating.answers(requests)}
        proposed, accepted = speculating.acceptance()
        assert speculating.identity()["speculation"] == {
            "method": "ngram", "speculation": 4, "lookup_min": 2, "lookup_max": 4,
        }  # fmt: skip
    assert {key: answer.text for key, answer in answers.items()} == {key: answer.text for key, answer in plain.items()}
    assert {key: a.output_tokens for key, a in answers.items()} == {key: a.output_tokens for key, a in plain.items()}
    assert 0 < accepted <= proposed


def test_settings_that_can_not_be_are_refused_with_the_reason(worker: Worker) -> None:
    with pytest.raises(UserError, match=r"did not start with .*smollm2.* 1000000"):
        VllmBackend(worker, settings=VllmSettings(max_model_len=1_000_000))
