"""The `openai` backend: any server that speaks `/v1/chat/completions`, or a fleet of them.

The caller's thread draws requests and gives out answers; an event loop in a thread of its own sends them. An answer is
in the journal, where there is one, before the caller's thread sees it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib import metadata
from typing import Any

from megatron_native.alignment.backends.answer_journal import AnswerJournal, PaidAnswer, request_hash
from megatron_native.alignment.backends.backend import Answer, BackendDownError, Request, Sampling
from megatron_native.alignment.backends.budget import Account, Budget, Spending
from megatron_native.alignment.backends.chat_call import Outcome
from megatron_native.alignment.backends.fleet import Fleet, StoppedError, Ticket
from megatron_native.alignment.backends.server_settings import ServerSettings, checked_endpoints
from megatron_native.alignment.backends.worker import Worker

_DRAWN_FOR_EACH_PLACE = 2
"""One is in flight and one waits, so that a place is taken again without the caller's thread."""


class OpenAIBackend:
    """Answers requests by asking OpenAI-compatible servers.

    Args:
        endpoints: base URLs, `http://host:8000/v1`.
        model: the name that the servers know the model by.
        sampling: greedy by default.
        settings: concurrency, rates, retries, times.
        budget: stop when it is spent; the journal's earlier runs count.
        journal: where answers are kept, and taken from without asking. The caller closes it.
        worker: the folder that the servers serve, where it is at hand: then its hash is part of the identity, and its
            tokenizer bounds a prompt's tokens instead of its bytes.

    Attributes:
        accelerators: `settings.accelerators`.
        spending: tokens and answers so far.
        reported: (model, system_fingerprint) as servers named them in their answers → answers.

    Raises:
        UserError: the endpoints are no URLs.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        model: str,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        settings: ServerSettings = ServerSettings(),  # noqa: B008 - frozen
        *,
        budget: Budget | None = None,
        journal: AnswerJournal | None = None,
        worker: Worker | None = None,
    ) -> None:
        self.accelerators = settings.accelerators
        self.model, self.sampling, self.settings = model, sampling, settings
        self.reported: Counter[tuple[str, str]] = Counter()
        self._urls = checked_endpoints(endpoints)
        self._journal, self._worker = journal, worker
        self._account = Account(budget, None if worker is None else lambda messages: len(worker.chat_ids(messages)))
        if journal is not None:
            prompt, cached, output, assumed_prompt, assumed_output = journal.costs(model)
            self._account.book(prompt, cached, output)
            self._account.assume((assumed_prompt, assumed_output))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._recorder: ThreadPoolExecutor | None = None
        self._fleet: Fleet | None = None
        self._answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._being_asked: dict[str, asyncio.Future[PaidAnswer | None]] = {}
        self._busy = False

    @property
    def spending(self) -> Spending:
        """What has been spent so far; to be read, not changed."""
        return self._account.spending

    def identity(self) -> dict[str, Any]:
        """Name and version of the backend, the model's name, and the worker's hash where it is known.

        Endpoints are not part of it, since the same model may be served elsewhere tomorrow, nor is what servers report
        about themselves (`reported`), since that may change in the middle of a run.
        """
        identity = {"backend": "openai", "backend_version": metadata.version("openai"), "model": self.model}
        return identity if self._worker is None else identity | self._worker.identity()

    def answers(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """One answer for every request, as they come; see `Backend.answers`.

        Raises:
            BackendDownError: no endpoint has answered for `settings.give_up_seconds`.
            BudgetSpentError: another request could pass the budget. All answers that were paid have been given.
            UserError: the key or the model's name is wrong, or the journal can't be written. Answers as above.
        """
        if self._busy:
            raise RuntimeError("answers() is still being read elsewhere; one reader at a time")
        self._busy = True
        try:
            yield from self._answer_all(iter(requests))
        finally:
            self._busy = False

    def close(self) -> None:
        """Close connections and end the thread."""
        if self._loop is None or self._thread is None or self._fleet is None or self._recorder is None:
            return
        self._do(self._fleet.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._recorder.shutdown()
        self._loop = None

    def _answer_all(self, requests: Iterator[Request]) -> Iterator[Answer]:
        fleet = self._start()
        room = _DRAWN_FOR_EACH_PLACE * self.settings.concurrency * len(self._urls)
        unanswered, more, refused = 0, True, 0
        try:
            while True:
                while more and unanswered < room and not self._stopping.is_set():
                    request = next(requests, None)
                    if request is None:
                        more = False
                        continue
                    digest, at_hand = self._look_up(request)
                    if at_hand is not None:
                        yield at_hand
                        continue
                    unanswered += 1
                    self._in_loop(self._begin, request, digest)
                if not unanswered:
                    break
                answer = self._answers.get()
                unanswered -= 1
                if answer is None:
                    refused += 1
                else:
                    yield answer
        finally:
            self._do(self._end())
        if fleet.stopped is not None and (more or refused or not isinstance(fleet.stopped, BackendDownError)):
            raise fleet.stopped

    def _look_up(self, request: Request) -> tuple[str, Answer | None]:
        """A request's hash where there is a journal, and its answer where no server has to be asked."""
        try:
            for message in request.messages:
                message["content"].encode("utf-8")
        except UnicodeEncodeError as error:
            return "", Answer(request.key, None, "error", error=f"the text can't be sent as UTF-8: {error.reason}")
        if self._journal is None:
            return "", None
        digest = request_hash(self.model, self.sampling, request, self.settings.extra)
        paid = self._journal.find(digest)
        if paid is None:
            return digest, None
        self._in_loop(self._count_journal_answer)
        return digest, paid.answer(request.key)

    def _count_journal_answer(self) -> None:
        self.spending.journal_answers += 1

    def _begin(self, request: Request, digest: str) -> None:
        task = asyncio.create_task(self._answer(request, digest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: Request, digest: str) -> None:
        """Put the request's answer into the queue, or None where the run has stopped."""
        assert self._fleet is not None
        answer: Answer | None = None
        try:
            answer = await self._answer_once(request, digest)
        except StoppedError:
            pass
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a defect, or the journal's disk: the caller has to see it
            self._fleet.stop(error)
        self._answers.put(answer)

    async def _answer_once(self, request: Request, digest: str) -> Answer:
        """Equal requests at the same time are asked once, where there is a journal."""
        while digest and digest in self._being_asked:
            paid = await asyncio.shield(self._being_asked[digest])
            if paid is not None:
                self._count_journal_answer()
                return paid.answer(request.key)
        if not digest or self._journal is None:
            return await self._ask(request, digest, None)
        if (paid := self._journal.find(digest)) is not None:  # since the caller's thread looked
            self._count_journal_answer()
            return paid.answer(request.key)
        first = self._being_asked[digest] = asyncio.get_running_loop().create_future()
        try:
            return await self._ask(request, digest, first)
        finally:
            del self._being_asked[digest]
            if not first.done():
                first.set_result(None)

    async def _ask(self, request: Request, digest: str, others: asyncio.Future[PaidAnswer | None] | None) -> Answer:
        assert self._fleet is not None
        worst, body = self._account.worst(request.messages, request.max_tokens), self._body(request)
        avoid, tries = None, 0
        while True:
            ticket = Ticket(worst, avoid)
            outcome = await self._fleet.ask(body, ticket, partial(self._keep, digest, worst))
            if outcome.answer is not None:
                self.reported[outcome.reported] += 1
                if others is not None:
                    others.set_result(outcome.answer)
                return outcome.answer.answer(request.key)
            if outcome.fate == "rejected":
                return Answer(request.key, None, "error", error=outcome.error)
            avoid = ticket.avoid
            tries += outcome.fate == "failed"
            if tries >= self.settings.attempts:
                return Answer(request.key, None, "error", error=f"{outcome.error} (after {tries} attempts)")
            await self._fleet.rest(max(tries, 1))

    async def _keep(self, digest: str, worst: tuple[int, int], outcome: Outcome) -> None:
        """Put into the journal, where there is one, what an attempt has cost."""
        assert self._fleet is not None
        if self._journal is None:
            return
        if outcome.answer is not None:
            try:
                await self._record(self._journal.record, digest, self.model, outcome.answer)
            except Exception as error:  # it is paid: the caller gets it, and no more is sent
                self._fleet.stop(error)
        elif outcome.may_cost:
            await self._record(self._journal.record_assumed, self.model, worst)

    async def _record(self, write: Any, *arguments: Any) -> None:
        """On disk even where the caller leaves meanwhile."""
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._recorder, write, *arguments))

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = self.sampling
        body: dict[str, Any] = {
            "model": self.model, "messages": request.messages, self.settings.max_tokens_name: request.max_tokens,
            "temperature": sampling.temperature,
        }  # fmt: skip
        if sampling.temperature > 0:
            body |= {"top_p": sampling.top_p, "seed": sampling.seed}
        return body | dict(self.settings.extra)

    def _start(self) -> Fleet:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="openai-backend", daemon=True)
            self._recorder = ThreadPoolExecutor(1, thread_name_prefix="answer-journal")
            self._thread.start()
            self._fleet = self._do(self._make_fleet())
        assert self._fleet is not None
        self._stopping.clear()
        self._answers = queue.SimpleQueue()
        self._do(self._wake())
        return self._fleet

    async def _make_fleet(self) -> Fleet:
        return Fleet(self._urls, self.settings, self._account, self._stopping.set)

    async def _wake(self) -> None:
        assert self._fleet is not None
        self._fleet.begin()

    async def _end(self) -> None:
        """Nothing is asked any more: where the caller has left early, what is in flight is given up."""
        assert self._fleet is not None
        self._fleet.pause()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._record(_nothing)  # after whatever is still being written

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run in the event loop's thread and wait."""
        assert self._loop is not None
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result()

    def _in_loop(self, function: Any, *arguments: Any) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function, *arguments)


def _nothing() -> None:
    pass
