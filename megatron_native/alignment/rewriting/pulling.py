"""One engine at work: it leases chunks, asks its backend, judges the answers, and writes what came of a chunk whole.

Any number of engines work in one folder. What an engine had begun when it died is begun again by another; a chunk whose
engines died twice is done at the end, one passage at a time, with a journal that says which passage was being worked on:
one that brought an engine down `tries` times is quarantined, its text stays, and the rest of the corpus goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from megatron_native.alignment.backends.backend import Answer, Backend, BackendDownError, Request, UnreachableError
from megatron_native.alignment.rewriting.chunks import (
    ChunkHeader,
    PassageOutcome,
    WaitingPassage,
    answered,
    answers_path,
    read_chunk,
    write_answers,
)
from megatron_native.alignment.rewriting.joining import join_if_complete, joined_path
from megatron_native.alignment.rewriting.judging import outcome_of, quarantined
from megatron_native.alignment.rewriting.leases import Lease, Leases
from megatron_native.alignment.rewriting.settings import RewriteSettings

if TYPE_CHECKING:
    from megatron_native.alignment.gates.judging import Gates

CAREFUL_FROM = 2
"""A chunk is done one passage at a time once so many engines ended while they worked on it."""
JOURNALS = "journals"


@dataclass(frozen=True)
class Job:
    """What the engines of a rewriting share.

    Attributes:
        output: the stage folder.
        work: the folder of what is between preparing and joining.
        settings: of the rewriting.
        parts: what `prepare_part` gave of every part that is prepared.
        fertility: tokens that the worker's tokenizer makes for each of LLaMA-3's.
    """

    output: Path
    work: Path
    settings: RewriteSettings
    parts: list[dict[str, Any]]
    fertility: float = 1.0

    def passages(self) -> int:
        """Passages that wait, or waited, for a worker."""
        return sum(entry[2] for part in self.parts for entry in part["chunks"])

    def answered(self) -> int:
        """Passages of those that have their outcome."""
        total = 0
        for part in self.parts:
            sizes = [entry[2] for entry in part["chunks"]]
            if joined_path(self.work, part["name"]).exists():
                total += sum(sizes)
            else:
                total += sum(sizes[chunk] for chunk in answered(self.work, part["name"]))
        return total


@dataclass
class _OpenChunk:
    lease: Lease
    part: dict[str, Any]
    number: int
    passages: list[WaitingPassage]
    outcomes: dict[int, PassageOutcome] = field(default_factory=dict)
    tries: Counter[int] = field(default_factory=Counter)


class Puller:
    """One engine at work on a job.

    Args:
        job: what there is to do.
        backend: what answers.
        gates: what every rewrite has to pass; None: nothing is checked.
        leases: of the job's folder.
        first: the part to begin with, so that the engines of a fleet begin apart.
        report: hears of every passage that has its outcome.
        stopping: whether to leave: what is in flight is answered, unfinished chunks are given back.
    """

    def __init__(
        self,
        job: Job,
        backend: Backend,
        gates: Gates | None,
        leases: Leases,
        first: int = 0,
        report: Callable[[int], None] = lambda passages: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._job, self._backend, self._gates, self._leases = job, backend, gates, leases
        self._first, self._report, self._stopping = first, report, stopping
        self._open: dict[str, _OpenChunk] = {}
        self._again: deque[Request] = deque()
        self._careful: list[tuple[dict[str, Any], int]] = []
        self._identity: dict[str, Any] = json.loads(json.dumps(backend.identity()))  # plain values, as they are kept
        self._settled = time.monotonic()

    def pull(self) -> None:
        """Do every chunk that nobody else does.

        Raises:
            BackendDownError: the engine is gone; what it had begun is left to others.
        """
        self._settled = time.monotonic()
        try:
            while True:
                for answer in self._backend.answers(self._requests()):
                    self._take(answer)
                if not self._again or self._stopping():
                    break
            for part, number in self._careful:
                lease = None if self._stopping() else self._taken(part, number)
                if lease is not None:
                    self._one_by_one(lease, part, number)
        except UnreachableError:  # what is held is given back as if it had not been taken
            raise
        except BackendDownError:
            for chunk in self._open.values():
                self._leases.give_up(chunk.lease)
            raise

    def _chunks(self) -> Iterator[tuple[Lease, dict[str, Any], int]]:
        """Chunks that are free, each held from here on."""
        parts, work = self._job.parts, self._job.work
        for place in range(len(parts)):
            part = parts[(place + self._first) % len(parts)]
            name = part["name"]
            if joined_path(work, name).exists():
                continue
            done = answered(work, name)
            for number in range(len(part["chunks"])):
                if self._stopping():
                    return
                lease = None if number in done else self._taken(part, number)
                if lease is None:
                    continue
                if lease.attempt >= CAREFUL_FROM:
                    self._leases.give_back(lease)  # at the end, by whoever is free then
                    self._careful.append((part, number))
                else:
                    yield lease, part, number

    def _taken(self, part: dict[str, Any], number: int) -> Lease | None:
        """A chunk's lease, or None where it is done or another's."""
        work, name = self._job.work, part["name"]
        path = answers_path(work, name, number)
        if path.exists() or joined_path(work, name).exists():
            return None
        lease = self._leases.take(f"{name}-{number:05d}")
        if lease is not None and (path.exists() or joined_path(work, name).exists()):
            self._leases.finish(lease)
            return None
        return lease

    def _requests(self) -> Iterator[Request]:
        for lease, part, number in self._chunks():
            try:
                passages = read_chunk(self._job.work, part["name"], part["chunks"][number])
            except FileNotFoundError:  # joined meanwhile by one who thought us gone
                self._leases.finish(lease)
                continue
            chunk = self._open[lease.name] = _OpenChunk(lease, part, number, passages)
            for place in range(len(passages)):
                while self._again:
                    yield self._again.popleft()
                if self._stopping():
                    return
                yield self._request(chunk, place)
        while self._again:
            yield self._again.popleft()

    def _request(self, chunk: _OpenChunk, place: int) -> Request:
        passage, settings = chunk.passages[place], self._job.settings
        return Request(
            f"{chunk.lease.name}/{place}", settings.messages(passage.text, passage.before, passage.after),
            settings.answer_tokens(passage.tokens, self._job.fertility), passage.tokens,
        )  # fmt: skip

    def _take(self, answer: Answer) -> None:
        name, _, place = answer.key.rpartition("/")
        chunk = self._open[name]
        outcome = self._outcome(chunk, int(place), answer)
        if outcome is None:
            self._again.append(self._request(chunk, int(place)))
            return
        chunk.outcomes[int(place)] = outcome
        self._report(1)
        if len(chunk.outcomes) == len(chunk.passages):
            self._close(chunk)

    def _outcome(self, chunk: _OpenChunk, place: int, answer: Answer) -> PassageOutcome | None:
        """What became of a passage; None where it has to be asked again."""
        passage, settings = chunk.passages[place], self._job.settings
        chunk.tries[place] += 1
        tries = chunk.tries[place]
        if answer.finish != "error" and answer.text is not None:
            return outcome_of(passage, answer, settings.form, self._gates, tries)
        if tries < settings.tries:
            return None
        return quarantined(passage, answer.error or "no answer", tries, answer.text)

    def _close(self, chunk: _OpenChunk) -> None:
        now = time.monotonic()
        header = ChunkHeader((now - self._settled) * self._backend.accelerators, chunk.lease.attempt, self._identity)
        self._settled = now
        outcomes = [chunk.outcomes[place] for place in sorted(chunk.outcomes)]
        if not joined_path(self._job.work, chunk.part["name"]).exists():
            write_answers(answers_path(self._job.work, chunk.part["name"], chunk.number), header, outcomes)
        self._leases.finish(chunk.lease)
        self._open.pop(chunk.lease.name, None)
        join_if_complete(chunk.part, self._job.output, self._job.work, self._job.settings, self._leases)

    def _one_by_one(self, lease: Lease, part: dict[str, Any], number: int) -> None:
        """A chunk that engines ended over."""
        work, settings = self._job.work, self._job.settings
        chunk = _OpenChunk(lease, part, number, read_chunk(work, part["name"], part["chunks"][number]))
        self._open[lease.name] = chunk
        journal = work / JOURNALS / f"{lease.name}.log"
        begun, chunk.outcomes = _read_journal(journal)
        for place, passage in enumerate(chunk.passages):
            if place in chunk.outcomes:
                continue
            if begun[place] >= settings.tries:
                reason = f"the engine ended {begun[place]} times while it worked on this passage alone"
                chunk.outcomes[place] = quarantined(passage, reason, begun[place])
                self._report(1)
                continue
            if self._stopping():
                self._open.pop(lease.name)
                return
            _note(journal, {"begin": place})
            outcome = None
            while outcome is None:
                try:
                    (answer,) = self._backend.answers(iter([self._request(chunk, place)]))
                except UnreachableError:
                    _note(journal, {"not asked": place})
                    raise
                outcome = self._outcome(chunk, place, answer)
            _note(journal, {"end": place, "outcome": msgspec.to_builtins(outcome)})
            chunk.outcomes[place] = outcome
            self._report(1)
        self._close(chunk)


def _read_journal(journal: Path) -> tuple[Counter[int], dict[int, PassageOutcome]]:
    """How often each passage was begun and not ended, and the outcomes of those that ended."""
    begun: Counter[int] = Counter()
    outcomes: dict[int, PassageOutcome] = {}
    if journal.exists():
        for line in journal.read_bytes().split(b"\n")[:-1]:
            entry = orjson.loads(line)
            if "begin" in entry:
                begun[entry["begin"]] += 1
            elif "not asked" in entry:
                begun[entry["not asked"]] -= 1
            else:
                outcomes[entry["end"]] = msgspec.convert(entry["outcome"], PassageOutcome)
    return begun, outcomes


def _note(journal: Path, entry: dict[str, Any]) -> None:
    """Append a line that is on disk when this returns; one that a kill tore is begun anew."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    with open(journal, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                whole = journal.read_bytes()
                file.truncate(whole.rfind(b"\n") + 1)
        file.write(orjson.dumps(entry) + b"\n")
        file.flush()
        os.fsync(file.fileno())
