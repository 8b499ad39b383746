"""Which endpoint gets the next request, and when: least loaded first, within rates, pauses and the budget.

An endpoint is *live*, *aside* (it gets nothing and is probed) or on *trial* (a probe was answered: it gets one request,
and is live again once that is answered). Everything here runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_native.alignment.backends.backend import UnreachableError
from megatron_native.alignment.backends.budget import Account
from megatron_native.alignment.backends.chat_call import ChatClient, Outcome
from megatron_native.alignment.backends.server_settings import ServerSettings
from megatron_native.errors import UserError

_MINUTE = 60.0
_LONGEST_TICK = 1.0


class StoppedError(Exception):
    """No more requests are sent; `Fleet.stopped` says why."""


@dataclass(eq=False)
class Endpoint:
    """One server and how it has been doing.

    Attributes:
        in_flight: attempts sent and not over.
        failures, limits: in a row, since the last answer.
        bad_since: the first failure or 429 since the last answer, by the loop's clock.
        next_send: not before, by the loop's clock: the pace of rate limits.
        paused_until: not before: what a server asked for.
        probes: made since the last answer.
    """

    client: ChatClient
    state: Literal["live", "aside", "trial"] = "live"
    in_flight: int = 0
    failures: int = 0
    limits: int = 0
    bad_since: float | None = None
    last_error: str = ""
    next_send: float = 0.0
    paused_until: float = 0.0
    probes: int = 0
    answered: int = 0

    def ready_at(self) -> float:
        """When the next request may be sent, as far as time is concerned."""
        return max(self.next_send, self.paused_until)


@dataclass(eq=False)
class Ticket:
    """A request that waits for a place at an endpoint.

    Attributes:
        worst: prompt and output tokens at most.
        avoid: the endpoint that failed it last; taken only where no other is free.
    """

    worst: tuple[int, int]
    avoid: Endpoint | None = None
    place: asyncio.Future[Endpoint] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Fleet:
    """The endpoints of a backend.

    Args:
        urls: checked base URLs.
        settings: limits and times.
        account: the budget.
        on_stop: called once when `stopped` is set.
    """

    def __init__(
        self, urls: Sequence[str], settings: ServerSettings, account: Account, on_stop: Callable[[], None]
    ) -> None:
        self.endpoints = [Endpoint(ChatClient(url, settings)) for url in urls]
        self.stopped: Exception | None = None
        self._settings, self._account, self._on_stop = settings, account, on_stop
        self._waiting: deque[Ticket] = deque()
        self._jitter = random.Random()
        self._halt = asyncio.Event()
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._probes: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Requests are about to come; an endpoint's time of silence counts from here."""
        self.stopped = None
        self._halt.clear()
        self._began = asyncio.get_running_loop().time()
        self._watch = asyncio.create_task(self._watch_for_the_end())

    def pause(self) -> None:
        """No requests for now."""
        if self._watch is not None:
            self._watch.cancel()

    async def close(self) -> None:
        """Stop probing and close the connections."""
        self.pause()
        if self._timer is not None:
            self._timer.cancel()
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        for endpoint in self.endpoints:
            await endpoint.client.close()

    async def ask(self, body: dict[str, Any], ticket: Ticket, keep: Callable[[Outcome], Awaitable[None]]) -> Outcome:
        """Wait for a place, send the request once, and book what came of it.

        Args:
            body: the request.
            ticket: its claim to a place.
            keep: puts what came of it on disk. The place is held until then, so that a kill loses no more than was in flight.

        Raises:
            StoppedError: nothing is sent any more.
        """
        if self.stopped is not None:
            raise StoppedError
        self._waiting.append(ticket)
        self._dispatch()
        try:
            endpoint = await ticket.place
        except asyncio.CancelledError:
            if ticket.place.done() and not ticket.place.cancelled() and ticket.place.exception() is None:
                self._give_back(ticket.place.result(), ticket)
            elif ticket in self._waiting:
                self._waiting.remove(ticket)
            raise
        outcome: Outcome | None = None
        try:
            outcome = await endpoint.client.ask(body, ticket.worst)
            await keep(outcome)
        finally:  # an attempt that was cancelled may cost, too
            self._give_back(endpoint, ticket)
            if outcome is None or outcome.may_cost:
                self._account.assume(ticket.worst)
            if outcome is not None:
                self._book(endpoint, ticket, outcome)
        ticket.avoid = endpoint
        self._dispatch()
        return outcome

    async def rest(self, failures: int) -> None:
        """Wait before the next try after so many failures; no longer than until the fleet stops."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._halt.wait(), self._backoff(failures))

    def _backoff(self, failures: int) -> float:
        """Exponential, with full jitter."""
        longest = min(
            self._settings.backoff_seconds * 2.0 ** min(failures - 1, 30), self._settings.longest_backoff_seconds
        )
        return self._jitter.uniform(0.0, longest)

    def stop(self, reason: Exception) -> None:
        """Send nothing more. What is in flight is waited for; the first reason counts."""
        if self.stopped is not None:
            return
        self.stopped = reason
        self._halt.set()
        while self._waiting:
            ticket = self._waiting.popleft()
            if not ticket.place.done():
                ticket.place.set_exception(StoppedError())
        self._on_stop()

    def _dispatch(self) -> None:
        """Give places to those who wait, in their order."""
        now = asyncio.get_running_loop().time()
        while self._waiting and self.stopped is None:
            ticket = self._waiting[0]
            if ticket.place.done():  # cancelled
                self._waiting.popleft()
                continue
            if not self._account.fits(ticket.worst):
                if self._account.in_flight == 0:
                    self.stop(self._account.spent_error())
                return  # what is in flight may turn out cheaper than its worst case
            endpoint = self._choose(ticket, now)
            if endpoint is None:
                return self._wake_later(now)
            self._waiting.popleft()
            self._account.reserve(ticket.worst)
            endpoint.in_flight += 1
            self._pace(endpoint, now, sum(ticket.worst))
            ticket.place.set_result(endpoint)

    def _choose(self, ticket: Ticket, now: float) -> Endpoint | None:
        free = [endpoint for endpoint in self.endpoints if self._has_place(endpoint) and endpoint.ready_at() <= now]
        if not free:
            return None
        return min(free, key=lambda endpoint: (endpoint is ticket.avoid, endpoint.in_flight, endpoint.answered))

    def _has_place(self, endpoint: Endpoint) -> bool:
        most = {"live": self._settings.concurrency, "trial": 1, "aside": 0}[endpoint.state]
        return endpoint.in_flight < most

    def _wake_later(self, now: float) -> None:
        times = [endpoint.ready_at() for endpoint in self.endpoints if self._has_place(endpoint)]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if times:
            self._timer = asyncio.get_running_loop().call_at(max(min(times), now + 0.001), self._dispatch)

    def _pace(self, endpoint: Endpoint, now: float, tokens: int) -> None:
        """After a request the endpoint rests for the share of a minute that the request used up."""
        limits = ((1, self._settings.requests_a_minute), (tokens, self._settings.tokens_a_minute))
        rest = max((_MINUTE * amount / limit for amount, limit in limits if limit), default=0.0)
        endpoint.next_send = max(now, endpoint.next_send) + rest

    def _give_back(self, endpoint: Endpoint, ticket: Ticket) -> None:
        endpoint.in_flight -= 1
        self._account.release(ticket.worst)

    def _book(self, endpoint: Endpoint, ticket: Ticket, outcome: Outcome) -> None:
        now = asyncio.get_running_loop().time()
        spending = self._account.spending
        if outcome.answer is not None:
            spending.answers += 1
            paid = outcome.answer
            if paid.counted:
                self._account.book(paid.prompt_tokens, paid.cached_tokens, paid.output_tokens)
                self._credit(endpoint, sum(ticket.worst) - paid.prompt_tokens - paid.output_tokens)
            else:
                spending.answers_without_usage += 1
                self._account.assume(ticket.worst)
        else:
            spending.failed_attempts += 1
        if outcome.fate in ("answered", "rejected"):
            self._is_well(endpoint)
        elif outcome.fate == "fatal":
            self.stop(UserError(f"endpoint {endpoint.client.url}: {outcome.error}"))
        else:
            self._is_unwell(endpoint, outcome, now)

    def _credit(self, endpoint: Endpoint, unused: int) -> None:
        """Tokens that a request did not use, given back to the pace, but never below that of the requests alone."""
        if self._settings.tokens_a_minute and unused > 0:
            least = _MINUTE / self._settings.requests_a_minute if self._settings.requests_a_minute else 0.0
            floor = min(endpoint.next_send, asyncio.get_running_loop().time() + least)
            endpoint.next_send = max(endpoint.next_send - _MINUTE * unused / self._settings.tokens_a_minute, floor)

    def _is_well(self, endpoint: Endpoint) -> None:
        endpoint.state = "live"
        endpoint.failures = endpoint.limits = endpoint.probes = 0
        endpoint.bad_since = None
        endpoint.answered += 1

    def _is_unwell(self, endpoint: Endpoint, outcome: Outcome, now: float) -> None:
        endpoint.last_error = outcome.error
        if endpoint.bad_since is None:
            endpoint.bad_since = now
        if outcome.fate == "limited":
            wait = 0.0
            if now >= endpoint.paused_until:  # else it was sent before the pause, and says nothing new
                endpoint.limits += 1
                wait = self._backoff(endpoint.limits)
            bad_for = now - max(endpoint.bad_since, self._began)
            hopeless = (
                endpoint.limits >= self._settings.failures_to_put_aside and bad_for > self._settings.give_up_seconds
            )
        else:
            endpoint.failures += 1
            hopeless = outcome.fate == "unreachable" or endpoint.failures >= self._settings.failures_to_put_aside
            wait = 0.0
        if outcome.retry_after is not None:
            wait = min(outcome.retry_after, self._settings.longest_retry_after_seconds)
        endpoint.paused_until = max(endpoint.paused_until, now + wait)
        if endpoint.state != "aside" and (hopeless or (endpoint.state == "trial" and outcome.fate != "limited")):
            self._put_aside(endpoint)

    def _put_aside(self, endpoint: Endpoint) -> None:
        endpoint.state = "aside"
        probe = asyncio.create_task(self._probe(endpoint))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _probe(self, endpoint: Endpoint) -> None:
        while endpoint.state == "aside":
            endpoint.probes += 1
            await asyncio.sleep(self._settings.backoff_seconds * 0.1 + self._backoff(endpoint.probes))
            problem = await endpoint.client.is_reachable()
            if problem:
                endpoint.last_error = problem
            elif endpoint.state == "aside":  # an old attempt may have been answered meanwhile
                endpoint.state = "trial"
                self._dispatch()

    async def _watch_for_the_end(self) -> None:
        tick = min(_LONGEST_TICK, max(self._settings.give_up_seconds / 10, 0.01))
        while self.stopped is None:
            await asyncio.sleep(tick)
            now = asyncio.get_running_loop().time()
            aside = [endpoint for endpoint in self.endpoints if endpoint.state == "aside" and not endpoint.in_flight]
            if len(aside) < len(self.endpoints):
                continue
            silent = min(now - max(endpoint.bad_since or 0.0, self._began) for endpoint in aside)
            if silent > self._settings.give_up_seconds:
                reasons = "; ".join(f"{endpoint.client.url}: {endpoint.last_error}" for endpoint in aside)
                self.stop(
                    UnreachableError(
                        f"no endpoint has answered for {silent:.0f} s ({reasons}). Look whether the servers run and the "
                        "URLs are right; then start again, nothing that was answered is lost."
                    )
                )
