"""A server of `/v1/chat/completions` on loopback that fails as real ones do, by a seeded schedule, and keeps a ledger.

    with FaultyServer(faults={"429": 0.1, "half": 0.1}, seed=3) as server:
        ... server.url ... server.ledger.paid ...

    python -m tests.faulty_server --port 0 --faults 429=0.1,half=0.1 --seed 3     # prints its URL

Its answers are a function of the messages (`sensible_answer`), so whoever rewrites through it gets real rewrites. An
answer is paid when its last byte was written to a client that was still there. `GET /ledger` gives the ledger as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_native.alignment.edits import edits_between, render_edits

FAULTS = (
    "429", "500", "503", "garbage", "half", "empty", "no_choices", "closed", "slow", "hang", "no_usage",
    "400", "401", "404", "filtered",
)  # fmt: skip
"""`slow` and `no_usage` answer well, late or without usage; `closed` closes the connection in place of an answer;
`half` ends in the middle of the JSON; `hang` never answers; `400` is what a prompt that is too long gets; `filtered` is
an answer that the content filter has ended."""
ANSWERED = {"", "slow", "no_usage", "filtered"}
_PASSAGE = re.compile(r"<passage ([0-9a-f]{8})>\n(.*)\n</passage \1>", re.DOTALL)
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests",
            500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip

Schedule = Callable[[dict[str, Any], int], str]
"""(request's body, attempts of the same request before this one) → a fault, or "" for none."""


def edited(passage: str) -> str:
    """What the server makes of a passage: Arabic comma and question mark for Latin ones, one space for many."""
    return re.sub(r" {2,}", " ", passage.replace(",", "،").replace("?", "؟"))


def sensible_answer(messages: list[dict[str, str]]) -> str:
    """The passage of the last message (or all of it), edited; as edits where the system message asks for such."""
    content = messages[-1]["content"]
    found = _PASSAGE.search(content)
    passage = found[2] if found else content
    if messages[0]["role"] == "system" and '{"find"' in messages[0]["content"]:
        return render_edits(edits_between(passage, edited(passage)))
    return edited(passage)


def request_digest(body: Mapping[str, Any]) -> str:
    """Tells requests apart by their whole body."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]


def seeded_schedule(faults: Mapping[str, float], seed: int, most_in_a_row: int = 3) -> Schedule:
    """Faults with given shares, drawn by request and attempt, so that the order of arrival changes nothing.

    After `most_in_a_row` attempts a request is answered.
    """
    assert sum(faults.values()) <= 1 and set(faults) <= set(FAULTS), faults

    def schedule(body: dict[str, Any], attempt: int) -> str:
        if attempt >= most_in_a_row:
            return ""
        draw = random.Random(f"{seed} {request_digest(body)} {attempt}").random()
        for fault, share in faults.items():
            if draw < share:
                return fault
            draw -= share
        return ""

    return schedule


@dataclass
class Ledger:
    """What the server has seen.

    Attributes:
        attempts: of each request, by digest.
        paid: answers delivered whole, by digest.
        events: (digest, fault or "", seconds since the start) of each request as it came.
        most_at_once: requests in work at the same time at most.
        prompt_tokens, output_tokens: of paid answers.
    """

    attempts: Counter[str] = field(default_factory=Counter)
    paid: Counter[str] = field(default_factory=Counter)
    events: list[tuple[str, str, float]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


class FaultyServer:
    """The server, in a thread of its own.

    Args:
        faults: shares by kind, for a seeded schedule.
        seed: of the schedule.
        schedule: in place of shares and seed.
        port: 0 takes a free one; `url` has it.
        latency: seconds before every answer.
        slow_seconds: before a slow one.
        retry_after: of a 429 or 503; None sends none.
        api_key: wanted as Bearer token; None wants none. A wrong one is repeated in the refusal, as some servers do.
        model: the one that is served.
        most_in_a_row: faults of one request in a row at most.
        structured: what is done with a `response_format`: "kept" to, "ignored", or "refused".
        answer: what is said to messages.
    """

    def __init__(
        self,
        faults: Mapping[str, float] | None = None,
        seed: int = 0,
        schedule: Schedule | None = None,
        port: int = 0,
        latency: float = 0.0,
        slow_seconds: float = 0.3,
        retry_after: float | None = 0.05,
        api_key: str | None = None,
        model: str = "editor",
        most_in_a_row: int = 3,
        structured: str = "ignored",
        answer: Callable[[list[dict[str, str]]], str] = sensible_answer,
    ) -> None:
        self.structured, self.answer = structured, answer
        self.ledger = Ledger()
        self.schedule = schedule or seeded_schedule(faults or {}, seed, most_in_a_row)
        self.port, self.latency, self.slow_seconds = port, latency, slow_seconds
        self.retry_after, self.api_key, self.model = retry_after, api_key, model
        self._seen_prefixes: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()
        self._started = time.monotonic()

    @property
    def url(self) -> str:
        """The base URL for a client."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        self.revive()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def now(self) -> float:
        """Seconds since the server was made, as in the ledger's events."""
        return time.monotonic() - self._started

    def die(self) -> None:
        """Close the port and every connection: from now on connections are refused."""
        asyncio.run_coroutine_threadsafe(self._die(), self._loop).result()

    def revive(self) -> None:
        """Listen again, on the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _die(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._one_request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request of a connection; whether another may follow."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        key = headers.get("authorization", "").removeprefix("Bearer ")
        if path.endswith("/ledger"):
            await self._send(writer, 200, asdict(self.ledger))
        elif self.api_key is not None and key != self.api_key:
            await self._send(writer, 401, _error(401, f"Incorrect API key provided: {key}"))
        elif method == "GET" and path.endswith("/models"):
            await self._send(writer, 200, {"object": "list", "data": [{"id": self.model, "object": "model"}]})
        elif method == "POST" and path.endswith("/chat/completions"):
            return await self._complete(json.loads(content), reader, writer)
        else:
            await self._send(writer, 404, _error(404, f"no such path: {path}"))
        return True

    async def _complete(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        digest, ledger = request_digest(body), self.ledger
        attempt = ledger.attempts[digest]
        ledger.attempts[digest] += 1
        fault = self.schedule(body, attempt)
        ledger.events.append((digest, fault, self.now()))
        ledger.at_once += 1
        ledger.most_at_once = max(ledger.most_at_once, ledger.at_once)
        try:
            wait = {"hang": 3600.0, "slow": self.latency + self.slow_seconds}.get(fault, self.latency)
            if await _client_left_within(reader, wait):
                return False
            return await self._answer(fault, digest, body, writer)
        finally:
            ledger.at_once -= 1

    async def _answer(self, fault: str, digest: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        if body["model"] != self.model:
            fault = "404"
        if fault == "closed":
            return False
        if self.structured == "refused" and "response_format" in body:
            await self._send(writer, 400, _error(400, "response_format of type json_schema is not supported"))
            return True
        if fault in ("429", "500", "503", "400", "401", "404"):
            status = int(fault)
            more = (
                {"Retry-After": f"{self.retry_after:g}"}
                if status in (429, 503) and self.retry_after is not None
                else {}
            )
            await self._send(writer, status, _error(status, _MESSAGES[fault]), more)
            return True
        completion = self._completion(body, fault)
        whole = json.dumps(completion, ensure_ascii=False).encode()
        broken = {
            "garbage": b"\xff\xfe<html>502 Bad Gateway</html>\x00", "half": whole[: len(whole) // 2], "empty": b"",
            "no_choices": json.dumps({**completion, "choices": []}).encode(),
        }  # fmt: skip
        await self._send(writer, 200, broken.get(fault, whole))
        if fault not in broken:
            self.ledger.paid[digest] += 1
            usage = completion.get("usage", {})
            self.ledger.prompt_tokens += usage.get("prompt_tokens", 0)
            self.ledger.output_tokens += usage.get("completion_tokens", 0)
        return True

    def _completion(self, body: dict[str, Any], fault: str) -> dict[str, Any]:
        """Tokens are words; the first message is cached once it was seen."""
        messages = body["messages"]
        said = self.answer(messages)
        if self.structured == "kept" and "response_format" in body:
            said = json.dumps({"rewritten": said}, ensure_ascii=False)
        words = re.findall(r"\S+\s*", said)
        most = body.get("max_tokens") or body.get("max_completion_tokens") or len(words)
        finish = "content_filter" if fault == "filtered" else "stop" if len(words) <= most else "length"
        prompt = sum(len(message["content"].split()) for message in messages)
        first = messages[0]["content"]
        cached = len(first.split()) if len(messages) > 1 and first in self._seen_prefixes else 0
        self._seen_prefixes.add(first)
        completion = {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": f"{self.model}-0001",
            "system_fingerprint": "fp_loopback",
            "choices": [{
                "index": 0, "finish_reason": finish,
                "message": {"role": "assistant", "content": "".join(words[:most])},
            }],
            "usage": {
                "prompt_tokens": prompt, "completion_tokens": min(len(words), most),
                "total_tokens": prompt + min(len(words), most), "prompt_tokens_details": {"cached_tokens": cached},
            },
        }  # fmt: skip
        if fault == "no_usage":
            del completion["usage"]
        return completion

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, body: Any, more: Mapping[str, str] | None = None
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(more or {})}
        lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + content)
        await writer.drain()


_MESSAGES = {
    "429": "Rate limit reached", "500": "The server had an error", "503": "The engine is overloaded",
    "400": "This model's maximum context length is 100 tokens", "401": "Invalid key", "404": "The model does not exist",
}  # fmt: skip


def _error(status: int, message: str) -> dict[str, Any]:
    code = "context_length_exceeded" if status == 400 else str(status)
    return {"error": {"message": message, "type": "error", "param": None, "code": code}}


async def _client_left_within(reader: asyncio.StreamReader, seconds: float) -> bool:
    """Wait; whether the client closed the connection meanwhile (a client that waits for an answer sends nothing)."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return not await reader.read(1)
    return reader.at_eof()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", default="", help="kind=share,kind=share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--slow-seconds", type=float, default=0.3)
    parser.add_argument("--retry-after", type=float, default=0.05)
    parser.add_argument("--model", default="editor")
    arguments = parser.parse_args()
    pairs = [pair.partition("=") for pair in arguments.faults.split(",") if pair]
    server = FaultyServer(
        {kind: float(share) for kind, _, share in pairs}, arguments.seed, port=arguments.port, model=arguments.model,
        latency=arguments.latency, slow_seconds=arguments.slow_seconds, retry_after=arguments.retry_after,
    )  # fmt: skip
    with server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
