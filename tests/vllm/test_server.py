"""`vllm serve` on loopback gives what the engine in the process gives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_native.alignment.backends.vllm_engine import VllmBackend
from megatron_native.alignment.backends.worker import Worker
from tests.vllm.conftest import CONTEXT, question

START_SECONDS = 400


@pytest.fixture(scope="module")
def address(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [
        str(Path(sys.executable).parent / "vllm"), "serve", str(worker.folder), "--served-model-name", "smollm2",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", str(CONTEXT),
        "--max-num-seqs", "4", "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 29),
    ]  # fmt: skip
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1"}
    with open(log, "wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"http://127.0.0.1:{port}/health"):
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


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_served_answers_are_the_engines(address: str, engine: VllmBackend) -> None:
    import openai

    requests = [question(number, max_tokens=10) for number in range(6)]
    in_process = {answer.key: answer for answer in engine.answers(requests)}
    client = openai.OpenAI(base_url=address, api_key="none")
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
