"""`vllm serve` on loopback gives what the engine in the process gives, asked directly and through the openai backend."""

from __future__ import annotations

from megatron_native.alignment.backends.openai_server import OpenAIBackend
from megatron_native.alignment.backends.vllm_engine import VllmBackend
from megatron_native.alignment.backends.worker import Worker
from tests.vllm.conftest import question


def test_served_answers_are_the_engines(server_address: str, engine: VllmBackend) -> None:
    import openai

    requests = [question(number, max_tokens=10) for number in range(6)]
    in_process = {answer.key: answer for answer in engine.answers(requests)}
    client = openai.OpenAI(base_url=server_address, api_key="none")
    for request in requests:
        served = client.chat.completions.create(
            model="smollm2", messages=request.messages, max_tokens=request.max_tokens, temperature=0.0
        )
        answer = in_process[request.key]
        choice = served.choices[0]
        assert (choice.message.content, choice.finish_reason) == (answer.text, answer.finish)
        assert (served.usage.prompt_tokens, served.usage.completion_tokens) == (
            answer.prompt_tokens,
            answer.output_tokens,
        )


def test_the_openai_backend_gives_the_engines_answers(server_address: str, engine: VllmBackend, worker: Worker) -> None:
    requests = [question(number, max_tokens=10) for number in range(12)]
    backend = OpenAIBackend([server_address], "smollm2", worker=worker)
    try:
        served = {answer.key: answer for answer in backend.answers(requests)}
    finally:
        backend.close()
    assert len(served) == len(requests)
    for answer in engine.answers(requests):
        other = served[answer.key]
        assert (other.text, other.finish, other.error) == (answer.text, answer.finish, "")
        assert (other.prompt_tokens, other.output_tokens) == (answer.prompt_tokens, answer.output_tokens)
