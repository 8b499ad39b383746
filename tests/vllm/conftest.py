"""Engines that tests share: each takes most of a minute to start."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from megatron_native.alignment.backends.backend import Request
from megatron_native.alignment.backends.vllm_engine import VllmBackend, VllmSettings
from megatron_native.alignment.backends.worker import Worker
from tests.real_models import smollm2

CONTEXT = 1024
START_SECONDS = 400
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


@pytest.fixture(scope="session")
def server_address(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL, up to `/v1`, of a `vllm serve` that answers to the name `smollm2`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [
        *serve_command(), str(worker.folder), "--served-model-name", "smollm2",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", str(CONTEXT),
        "--max-num-seqs", "4", "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 29),
    ]  # fmt: skip
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1"}
    with open(log, "wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_up(f"http://127.0.0.1:{port}/health"):
            ended = server.poll() is not None or time.monotonic() > deadline
            assert not ended, f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def serve_command() -> list[str]:
    """`vllm serve`, or the module behind it: the CPU build's own `vllm` looks for a distribution `vllm` and fails."""
    if "vllm" in importlib.metadata.packages_distributions()["vllm"]:
        return [str(Path(sys.executable).parent / "vllm"), "serve"]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
