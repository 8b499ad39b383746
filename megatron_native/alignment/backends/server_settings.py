"""How an OpenAI-compatible server, or a fleet of them, is asked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from megatron_native.errors import UserError

_MOST_CONNECTIONS = 1000
"""What the `openai` package opens to one server."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of the `openai` backend; times in seconds.

    Attributes:
        concurrency: requests in flight at one endpoint at most.
        requests_a_minute, tokens_a_minute: sent to one endpoint at most; 0 is no limit. Tokens are prompt and answer: the
            worst case when a request is sent, corrected when its usage is known. Within one request's tokens.
        request_seconds: one attempt at most, from sending to the last byte.
        connect_seconds: for a connection at most.
        attempts: of one request at most. Refused connections and 429 are no attempts: the request is not at fault.
        backoff_seconds, longest_backoff_seconds: before attempt n + 1 a random time between 0 and
            backoff_seconds · 2ⁿ⁻¹ passes, and no more than the longest; also between probes of an endpoint.
        longest_retry_after_seconds: of a server's Retry-After, no more than this is waited.
        failures_to_put_aside: failures of an endpoint in a row after which it gets no requests until it answers a probe.
        give_up_seconds: when no endpoint has answered for this long, the backend is down.
        probe_seconds: a probe (GET /models) at most.
        api_key_variable: the environment variable that holds the key; where it is not set, or "", a placeholder is sent.
        max_tokens_name: what the server calls the limit of an answer (hosted reasoning models: max_completion_tokens).
        extra: further fields of every request, such as {"chat_template_kwargs": {"enable_thinking": False}}.
        accelerators: GPUs behind all endpoints together; 0 where they are somebody else's.

    Raises:
        UserError: a value is out of range.
    """

    concurrency: int = 64
    requests_a_minute: int = 0
    tokens_a_minute: int = 0
    request_seconds: float = 600.0
    connect_seconds: float = 10.0
    attempts: int = 5
    backoff_seconds: float = 1.0
    longest_backoff_seconds: float = 60.0
    longest_retry_after_seconds: float = 600.0
    failures_to_put_aside: int = 8
    give_up_seconds: float = 300.0
    probe_seconds: float = 10.0
    api_key_variable: str = "OPENAI_API_KEY"
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra: Mapping[str, Any] = field(default_factory=dict)
    accelerators: int = 0

    def __post_init__(self) -> None:
        least = {"concurrency": 1, "attempts": 1, "failures_to_put_aside": 1, "requests_a_minute": 0,
                 "tokens_a_minute": 0, "accelerators": 0, "give_up_seconds": 0, "backoff_seconds": 0,
                 "longest_backoff_seconds": 0, "longest_retry_after_seconds": 0}  # fmt: skip
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise UserError(f"{name} = {getattr(self, name)}: give {lowest} or more.")
        for name in ("request_seconds", "connect_seconds", "probe_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} = {getattr(self, name)}: give more than 0 seconds.")
        if self.concurrency > _MOST_CONNECTIONS:
            raise UserError(f"concurrency = {self.concurrency}: one endpoint takes {_MOST_CONNECTIONS} at most.")
        if ours := sorted(
            {"model", "messages", "max_tokens", "max_completion_tokens", "stream", "n"} & set(self.extra)
        ):
            raise UserError(f"extra = {dict(self.extra)}: {', '.join(ours)} can't be set here; leave it out.")

    def api_key(self) -> str:
        """The key from the environment, or a placeholder."""
        return os.environ.get(self.api_key_variable, "").strip() or "none"


def is_one_of(endpoint: str, others: Sequence[str]) -> bool:
    """Whether an endpoint is at the same server as another: scheme, host and port; the path may be another."""
    servers = [
        urlsplit(url)[:2] for url in checked_endpoints([endpoint]) + (checked_endpoints(others) if others else [])
    ]
    return servers[0] in servers[1:]


def checked_endpoints(endpoints: Sequence[str]) -> list[str]:
    """Base URLs without a slash at the end; `/v1` is added where there is no path.

    Raises:
        UserError: none given, one twice, one that is no http URL, or that carries a key. No message repeats a key.
    """
    checked: list[str] = []
    for number, endpoint in enumerate(endpoints, 1):
        try:
            parts = urlsplit(endpoint)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https"):
            raise UserError(f"endpoint {number} is no URL of a server; give one such as http://host:8000/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(
                f"endpoint {number} (host {host}) carries a user, a password or a query; give the URL alone, and the key "
                "in the environment."
            )
        name = f"[{host}]" if ":" in host else host
        url = f"{parts.scheme}://{name}{f':{port}' if port else ''}{parts.path.rstrip('/') or '/v1'}"
        if url in checked:
            raise UserError(f"endpoint {url} is named twice; name each server once.")
        checked.append(url)
    if not checked:
        raise UserError("no endpoint: name at least one server, such as http://host:8000/v1.")
    return checked
