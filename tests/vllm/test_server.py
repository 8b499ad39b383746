"""`vllm serve` on loopback gives what the engine in the process gives."""

from __future__ import annotations

from megatron_native.alignment.backends.vllm_engine import VllmBackend
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
