"""What a backend is: requests in, answers out as they come, and what the run has to know about what answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from megatron_native.alignment.prompts import Messages

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the worker chooses tokens. The defaults are greedy: a rewrite copies most of its input.

    Attributes:
        temperature: 0 is greedy.
        top_p: share of the probability that is sampled from; of no effect where greedy.
        seed: of every request, so that a request sampled again gives the same text where the backend can.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def as_parameters(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to ask.

    Attributes:
        key: tells requests of a run apart; the answer carries it.
        messages: a chat, as `prompts.render_rewriting` makes it.
        max_tokens: tokens of the answer at most.
        size: tokens of the passage, for sorting by length.
    """

    key: str
    messages: Messages
    max_tokens: int
    size: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one request.

    Attributes:
        key: the request's.
        text: the answer, or None where there is none; what had come of an unfinished answer is kept.
        finish: `stop`, `length` (cut at `max_tokens`), or `error`.
        prompt_tokens, cached_tokens, output_tokens: as the engine counted them; cached ones are among the prompt's.
        error: why there is no answer; the backend has then tried all it can.
    """

    key: str
    text: str | None
    finish: Finish
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str = ""


class BackendDownError(Exception):
    """The engine behind a backend is gone: nothing more will be answered, and the run's other engines go on without it.

    The message says what happened and what to do. Requests without an answer are asked again; one that is alone at work
    each time that engines go down is in the end held to be the cause.
    """


class UnreachableError(BackendDownError):
    """No server answers: what was asked has nothing to do with it, so no request is held to have brought it about."""


class Backend(Protocol):
    """Answers requests.

    Attributes:
        accelerators: GPUs (or, on a CPU, processes) this backend keeps busy; hours of them are what a run costs.
    """

    accelerators: int

    def identity(self) -> dict[str, Any]:
        """What answers, for the lineage of every output: the backend's name and version, the worker and its hash."""
        ...

    def answers(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """One answer for every request, in any order, as they come.

        Requests are drawn in the calling thread, and only while there is room for more: as many as keep the engine
        busy, so that what is drawn and unanswered is bounded. A request that alone fails gives an answer with an error.

        Raises:
            BackendDownError: the engine is gone.
        """
        ...

    def close(self) -> None:
        """Let go of the engine."""
        ...
