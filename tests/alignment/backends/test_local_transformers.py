"""The transformers backend on tiny models: a greedy loop written by hand gives the same tokens, alone or in a batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_native.alignment.backends.backend import Answer, Request, Sampling
from megatron_native.alignment.backends.local_transformers import TransformersBackend
from megatron_native.alignment.backends.worker import Worker
from megatron_native.errors import UserError
from tests.tiny_models import TEXTS, make_tiny_model

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose own generation settings, if they were obeyed, would change its greedy answers.

    Besides the tokenizer's end it has another, as chat models do: a token that the model makes of its own accord.
    """
    from transformers import AutoModelForCausalLM

    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama2", seed=3)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    made = greedy(
        AutoModelForCausalLM.from_pretrained(folder), Worker(folder).chat_ids(requests_of(3)[0].messages), 5, set()
    )
    settings = {
        "eos_token_id": [0, made[-1]],
        "do_sample": True,
        "temperature": 2.0,
        "repetition_penalty": 3.0,
        "top_k": 5,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def requests_of(*lengths: int, max_tokens: int = 12) -> list[Request]:
    words = " ".join(TEXTS).split()
    texts = [" ".join((words[number:] + words)[:length]) for number, length in enumerate(lengths)]
    return [Request(f"p{n}", [{"role": "user", "content": text}], max_tokens) for n, text in enumerate(texts)]


@torch.inference_mode()
def greedy(model: Any, ids: list[int], limit: int, ends: set[int]) -> list[int]:
    """Whole forward passes without cache or padding: the likeliest token until an end."""
    made: list[int] = []
    while len(made) < limit and not (made and made[-1] in ends):
        made.append(int(model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax()))
    return made


def by_key(answers: Iterator[Answer]) -> dict[str, Answer]:
    listed = list(answers)
    assert len({answer.key for answer in listed}) == len(listed)
    return {answer.key: answer for answer in listed}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_are_those_of_a_greedy_loop_by_hand(folder: Path, model: Any, batch_size: int) -> None:
    worker = Worker(folder)
    requests = requests_of(3, 20, 7, 1, 12, 30, 5, 9, 16, 2, 25)
    requests[4] = Request("p4", requests[4].messages, max_tokens=3)  # less than others of its batch
    answers = by_key(TransformersBackend(worker, batch_size=batch_size).answers(requests))
    assert len(answers) == len(requests)
    ends = set(json.loads((folder / "generation_config.json").read_text())["eos_token_id"])
    assert {answer.finish for answer in answers.values()} == {"stop", "length"}
    for request in requests:
        text = f"<|im_start|>user\n{request.messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        ids = worker.tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = greedy(model, ids, request.max_tokens, ends)
        stopped = expected[-1] in ends
        answer = answers[request.key]
        text = worker.tokenizer.decode(expected[:-1] if stopped else expected, skip_special_tokens=True)
        assert answer.text == text
        assert answer.finish == ("stop" if stopped else "length")
        assert (answer.prompt_tokens, answer.output_tokens, answer.error) == (len(ids), len(expected), "")


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9, seed=5)])
def test_at_batch_size_one_an_answer_depends_on_its_request_alone(folder: Path, sampling: Sampling) -> None:
    backend = TransformersBackend(Worker(folder), sampling)
    requests = requests_of(3, 20, 7, 1, 12)
    together = by_key(backend.answers(requests))
    backwards = by_key(backend.answers(reversed(requests)))
    alone = {request.key: next(backend.answers([request])) for request in requests}
    assert together == backwards == alone


def test_drawn_answers_differ_by_seed_and_leave_the_callers_random_numbers(folder: Path) -> None:
    [request] = requests_of(6)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    texts = set()
    for seed in range(3):
        backend = TransformersBackend(Worker(folder), Sampling(temperature=1.5, seed=seed))
        [first], [again] = backend.answers([request]), backend.answers([request])
        assert first == again
        texts.add(first.text)
    assert len(texts) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_prompt_that_fills_the_context_is_an_error_and_one_that_nearly_does_is_cut(folder: Path) -> None:
    worker = Worker(folder)
    [request] = requests_of(1)
    while len(worker.chat_ids(request.messages)) < 508:
        request.messages[0]["content"] += "؟"
    tokens = len(worker.chat_ids(request.messages))
    assert 508 <= tokens < 512 == worker.context_length
    too_long = Request("long", [{"role": "user", "content": request.messages[0]["content"] + " كلمة طويلة"}], 5)
    answers = by_key(TransformersBackend(worker, batch_size=2).answers([too_long, request]))
    long = answers["long"]
    assert (long.text, long.finish, long.output_tokens) == (None, "error", 0)
    assert f"{long.prompt_tokens} tokens" in long.error and "context is 512" in long.error
    assert answers["p0"].finish in ("length", "stop") and answers["p0"].output_tokens <= 512 - tokens


def test_requests_are_drawn_a_window_at_a_time(folder: Path) -> None:
    drawn = 0

    def stream() -> Iterator[Request]:
        nonlocal drawn
        for request in requests_of(*[3] * 40, max_tokens=1):
            drawn += 1
            yield request

    for batch_size, window in ((1, 1), (2, 16)):
        drawn = 0
        next(TransformersBackend(Worker(folder), batch_size=batch_size).answers(stream()))
        assert drawn == window


def test_identity_says_what_answered(folder: Path) -> None:
    import transformers

    worker = Worker(folder)
    assert TransformersBackend(worker, batch_size=2, dtype="bfloat16").identity() == {
        "backend": "transformers", "backend_version": transformers.__version__, "torch": torch.__version__,
        "worker": "llama", "worker_hash": worker.hash, "device": "cpu", "dtype": "bfloat16", "batch_size": 2,
    }  # fmt: skip
    assert TransformersBackend(worker).identity()["dtype"] == "float32"


def test_workers_that_cannot_be_loaded_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match="can't be loaded"):
        TransformersBackend(Worker(tmp_path))
    with pytest.raises(UserError, match="batch size 0"):
        TransformersBackend(Worker(folder), batch_size=0)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            TransformersBackend(Worker(folder), device="cuda")


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    list(TransformersBackend(Worker(folder), batch_size=2).answers(requests_of(3, 5, 8)))
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")
    assert not [str(warning.message) for warning in recwarn]
