"""What happens when the process of vLLM's engine dies, or the one that started it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_native.alignment.backends.backend import BackendDownError, Request
from megatron_native.alignment.backends.worker import Worker
from tests.vllm.conftest import Engine, question


def test_a_killed_engine_is_noticed_within_seconds_and_stays_down(engine_of: Engine) -> None:
    others = set(multiprocessing.active_children())
    with engine_of() as backend:
        (core,) = set(multiprocessing.active_children()) - others
        answers = backend.answers(question(number, max_tokens=900 if number else 1) for number in range(6))
        assert next(answers).key == "chat 0"
        assert core.pid is not None
        os.kill(core.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(BackendDownError, match=f"{core.pid} exited with -9"):
            list(answers)
        assert time.monotonic() - start < 30

        drawn = []

        def requests() -> Iterator[Request]:
            drawn.append(1)
            yield question(1)

        with pytest.raises(BackendDownError):
            list(backend.answers(requests()))
        assert not drawn


STARTED = """
import multiprocessing, sys, time
from pathlib import Path
from megatron_native.alignment.backends.vllm_engine import VllmBackend, VllmSettings
from megatron_native.alignment.backends.worker import Worker
from tests.vllm.conftest import SETTINGS, question

if __name__ == "__main__":
    backend = VllmBackend(Worker(Path(sys.argv[1])), settings=VllmSettings(**SETTINGS))
    answers = backend.answers(question(number, max_tokens=900 if number else 1) for number in range(6))
    next(answers)
    print("engine", *(process.pid for process in multiprocessing.active_children()), flush=True)
    next(answers)
    time.sleep(600)
"""


def test_the_engine_of_a_killed_process_ends_too(worker: Worker, tmp_path: Path) -> None:
    script = tmp_path / "started.py"
    script.write_text(STARTED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, str(script), str(worker.folder)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert started.stdout is not None
    (line,) = itertools.islice((line for line in started.stdout if line.startswith("engine ")), 1)
    core = os.pidfd_open(int(line.split()[1]))
    started.kill()
    started.wait()
    ended, _, _ = select.select([core], [], [], 60)
    assert ended, "the engine's process is still there"
