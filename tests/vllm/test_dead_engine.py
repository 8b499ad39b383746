"""What happens when the process of vLLM's engine dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest

from megatron_native.alignment.backends.backend import BackendDownError, Request
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
