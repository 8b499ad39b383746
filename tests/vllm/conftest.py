"""Engines that tests share: each takes most of a minute to start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing

import pytest

from megatron_native.alignment.backends.backend import Request
from megatron_native.alignment.backends.vllm_engine import VllmBackend, VllmSettings
from megatron_native.alignment.backends.worker import Worker
from tests.real_models import smollm2

CONTEXT = 1024
SETTINGS = {
    "dtype": "float32", "max_model_len": CONTEXT, "max_num_seqs": 4, "compile": False, "kv_cache_bytes": 1 << 29,
}  # fmt: skip
"""float32, so that what else is in the batch does not change a greedy answer."""
QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about rain.",
    "What is two plus two?",
    "Repeat after me: the cat sat on the mat, the cat sat on the mat.",
    "ما عاصمة المملكة العربية السعودية؟",
    "Translate to French: good morning.",
    "Who wrote Hamlet?",
    "اكتب جملة قصيرة عن البحر.",
    "List the days of the week.",
]


def question(number: int, max_tokens: int = 12, system: str = "You answer briefly.") -> Request:
    """A chat with one of the questions; the number goes into it, so that all differ."""
    text = f"{QUESTIONS[number % len(QUESTIONS)]} ({number})"
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return Request(f"chat {number}", messages, max_tokens, size=len(text))


@pytest.fixture(scope="session")
def worker() -> Worker:
    return Worker(smollm2())


Engine = Callable[..., AbstractContextManager[VllmBackend]]


@pytest.fixture(scope="session")
def engine_of(worker: Worker) -> Engine:
    def make(**settings: object) -> AbstractContextManager[VllmBackend]:
        return closing(VllmBackend(worker, settings=VllmSettings(**(SETTINGS | settings))))

    return make


@pytest.fixture(scope="session")
def engine(engine_of: Engine) -> Iterator[VllmBackend]:
    with engine_of() as backend:
        yield backend
