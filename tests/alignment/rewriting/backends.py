"""Backends for tests of what runs around one: real implementations of the protocol, without a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from megatron_native.alignment.backends.backend import Answer, BackendDownError, Request

_PASSAGE = re.compile(r"<passage ([0-9a-f]{8})>\n(.*)\n</passage \1>", re.DOTALL)


def passage_of(request: Request) -> str:
    """The passage that a request asks about."""
    found = _PASSAGE.search(request.messages[-1]["content"])
    assert found is not None
    return found[2]


class WritingBackend:
    """Answers with `write(passage)`; `in_flight` requests are drawn before the first answer comes, newest first.

    Args:
        write: passage → answer; None: an answer with an error; raising BackendDownError: the engine is gone.
        in_flight: requests that are drawn at once.
    """

    accelerators = 1

    def __init__(self, write: Callable[[str], str | None], in_flight: int = 8) -> None:
        self._write, self._in_flight = write, in_flight
        self.asked: Counter[str] = Counter()
        self.closed = False

    def identity(self) -> dict[str, Any]:
        return {"backend": "writing"}

    def answers(self, requests: Iterable[Request]) -> Iterator[Answer]:
        waiting: list[Request] = []
        source = iter(requests)
        while True:
            while len(waiting) < self._in_flight and (request := next(source, None)) is not None:
                waiting.append(request)
            if not waiting:
                return
            request = waiting.pop()
            passage = passage_of(request)
            self.asked[passage] += 1
            text = self._write(passage)
            if text is None:
                yield Answer(request.key, None, "error", error="planted")
            else:
                yield Answer(request.key, text, "stop", prompt_tokens=10, output_tokens=len(text))

    def close(self) -> None:
        self.closed = True


def down(passage: str) -> str | None:
    """An engine that is gone."""
    raise BackendDownError("the engine is gone")
