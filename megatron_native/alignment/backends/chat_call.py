"""One attempt of one request at one endpoint, and what became of it: an answer, or whose fault it was that there is none.

Nothing that a server says is trusted: bodies are read with care, and the key is struck out of whatever is quoted. No
exception of the `openai` package leaves this module, since they carry the request and with it the key.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from megatron_native.alignment.backends.answer_journal import PaidAnswer
from megatron_native.alignment.backends.backend import Finish
from megatron_native.alignment.backends.server_settings import ServerSettings

Fate = Literal["answered", "rejected", "limited", "unreachable", "failed", "fatal"]
"""`answered`: with text or without; `rejected`: this request can't be answered; `limited`: come back later;
`unreachable`: no connection; `failed`: anything that may go better next time; `fatal`: no request will go better."""

_QUOTED_CHARACTERS = 300
_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length"}
_WITHOUT_ANSWER = {"content_filter", "tool_calls", "function_call"}
_NO_BETTER_NEXT_TIME = {400, 413, 422}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attempt.

    Attributes:
        fate: whose turn it is now.
        answer: where answered.
        error: what happened, without the key.
        retry_after: seconds that the server asked to wait, or None.
        may_cost: whether the server may charge for an attempt that gave no answer.
        reported: the model and the fingerprint that the server names in an answer.
    """

    fate: Fate
    answer: PaidAnswer | None = None
    error: str = ""
    retry_after: float | None = None
    may_cost: bool = False
    reported: tuple[str, str] = ("", "")


class ChatClient:
    """A connection to one endpoint. Made and used in the event loop's thread.

    Args:
        url: checked base URL.
        settings: times, key variable.
    """

    def __init__(self, url: str, settings: ServerSettings) -> None:
        import openai

        self.url = url
        self._settings = settings
        self._client = openai.AsyncOpenAI(
            base_url=url, api_key=settings.api_key(), max_retries=0,
            timeout=openai.Timeout(settings.request_seconds, connect=settings.connect_seconds),
        )  # fmt: skip

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, body: dict[str, Any], worst: tuple[int, int]) -> Outcome:
        """Send one request once.

        Args:
            body: model, messages and parameters.
            worst: prompt and output tokens at most, for an answer without usage.
        """
        import openai

        named = {name: body[name] for name in ("model", "messages")}
        further = {name: value for name, value in body.items() if name not in named}
        try:
            async with asyncio.timeout(self._settings.request_seconds):
                raw = await self._client.chat.completions.with_raw_response.create(**named, extra_body=further)
            return self._read_body(raw.http_response.content, worst)
        except openai.APIStatusError as error:
            return self._of_status(error)
        except (openai.APITimeoutError, TimeoutError) as error:
            if _cause(error) == "ConnectTimeout":
                return Outcome("unreachable", error=f"no connection within {self._settings.connect_seconds:g} s")
            return Outcome("failed", error=f"no answer within {self._settings.request_seconds:g} s", may_cost=True)
        except openai.APIConnectionError as error:
            if _cause(error) == "ConnectError":
                return Outcome("unreachable", error=f"no connection ({self._clean(str(error.__cause__))})")
            return Outcome("failed", error=f"the connection broke ({_cause(error)})", may_cost=True)
        except openai.OpenAIError as error:
            return Outcome("failed", error=f"{type(error).__name__}: {self._clean(str(error))}", may_cost=True)

    async def is_reachable(self) -> str:
        """Ask for the list of models; empty where the server answers anything but a server's error, else what happened."""
        import openai

        try:
            async with asyncio.timeout(self._settings.probe_seconds):
                await self._client.models.with_raw_response.list(timeout=self._settings.probe_seconds)
        except openai.APIStatusError as error:
            if error.status_code >= 500:
                return f"HTTP {error.status_code} to a probe"
        except TimeoutError:
            return f"no answer to a probe within {self._settings.probe_seconds:g} s"
        except openai.OpenAIError as error:
            detail = str(error.__cause__ or error)
            return f"no answer to a probe ({self._clean(detail)})"
        return ""

    def _read_body(self, content: bytes, worst: tuple[int, int]) -> Outcome:
        try:
            body = orjson.loads(content)
            choice = body["choices"][0]
            message, finish = choice["message"], choice["finish_reason"]
            text = message.get("content")
            if not isinstance(text, str | None) or finish not in {*_FINISHES, *_WITHOUT_ANSWER}:
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            what = "an empty body" if not content.strip() else f"{len(content)} bytes that are no chat completion"
            return Outcome("failed", error=f"the server answered with {what}", may_cost=True)
        problem = ""
        if finish in _WITHOUT_ANSWER:
            problem = f"the server ended the answer with {finish!r}"
        elif message.get("refusal"):
            problem = f"the model refused: {self._clean(str(message['refusal']))}"
        elif text is None and finish == "stop":
            problem = "the answer has no text"
        usage = _usage(body.get("usage"))
        tokens = usage or (worst[0], 0, worst[1])
        reported = (str(body.get("model") or ""), str(body.get("system_fingerprint") or ""))
        paid = PaidAnswer(
            text,
            "error" if problem else _FINISHES[finish],
            *tokens,
            problem,
            counted=usage is not None,
            served=reported,
        )
        return Outcome("answered", paid, reported=reported)

    def _of_status(self, error: Any) -> Outcome:
        status: int = error.status_code
        details = error.body if isinstance(error.body, dict) else {}
        code = str(details.get("code") or "")
        message = f"HTTP {status}: {self._clean(str(details.get('message') or error.message))}"
        variable = self._settings.api_key_variable
        if status in (401, 403):  # what the server says may hold the key, whole or in part
            if not variable:
                return Outcome(
                    "fatal", error=f"HTTP {status}: it wants a key; name the variable that holds one for it."
                )
            return Outcome("fatal", error=f"HTTP {status}: the key is not accepted; put a valid one into {variable}.")
        if status == 402 or code == "insufficient_quota":
            return Outcome("fatal", error=f"{message}; the account has no quota left.")
        if status == 404:
            return Outcome(
                "fatal", error=f"{message}; check the URL (it ends in /v1 on most servers) and the model's name."
            )
        if code in ("unsupported_parameter", "unsupported_value"):
            return Outcome("fatal", error=f"{message}; change max_tokens_name, the sampling or extra.")
        if status in _NO_BETTER_NEXT_TIME:
            return Outcome("rejected", error=message)
        waiting = _retry_after(error.response.headers)
        return Outcome("limited" if status == 429 else "failed", error=message, retry_after=waiting)

    def _clean(self, text: str) -> str:
        """One short line without the key."""
        key = self._settings.api_key()
        shown = " ".join(text.replace(key, "[key]").split() if key != "none" else text.split())
        return shown if len(shown) <= _QUOTED_CHARACTERS else shown[:_QUOTED_CHARACTERS] + "…"


def _usage(usage: Any) -> tuple[int, int, int] | None:
    """Prompt, cached and output tokens, or None where the server does not give them."""
    try:
        prompt, output = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return (prompt, min(max(cached, 0), prompt), output) if prompt >= 0 and output >= 0 else None


def _retry_after(headers: Any) -> float | None:
    """Seconds, from Retry-After (seconds or a date) or retry-after-ms."""
    try:
        if "retry-after-ms" in headers:
            return max(float(headers["retry-after-ms"]) / 1000, 0.0)
        value = headers.get("retry-after")
        if value is None:
            return None
        if value.strip().replace(".", "", 1).isdigit():
            return float(value)
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


def _cause(error: BaseException) -> str:
    return type(error.__cause__).__name__ if error.__cause__ is not None else ""
