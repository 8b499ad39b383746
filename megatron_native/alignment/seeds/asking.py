"""Every chosen passage asked, until each has an answer or can't have one; answers are in a journal before they are used.

Whether the server offers structured output is found out with the first passages and kept, so that a run that goes on asks
in the same way. Where it goes on at a server that refuses the schema, the rest is asked without, and what was answered by
the schema stays an answer. A question whose answer was cut off is asked again with twice the room, one whose answer can't
be read with words that say so: either is another request, which the journal does not answer.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from megatron_native.alignment.backends.answer_journal import AnswerJournal, PaidAnswer, request_hash
from megatron_native.alignment.backends.backend import BackendDownError, Request
from megatron_native.alignment.backends.budget import Budget, BudgetSpentError
from megatron_native.alignment.backends.openai_server import OpenAIBackend
from megatron_native.alignment.backends.server_settings import ServerSettings
from megatron_native.alignment.seeds.answers import RESPONSE_FORMAT, is_structured, messages_for, passage_in
from megatron_native.alignment.seeds.choosing import Chosen
from megatron_native.alignment.seeds.settings import AnnotateSettings
from megatron_native.errors import RunStoppedError, UserError
from megatron_native.manifest import write_json
from megatron_native.progress import Progress

_PROBES = 3
"""Passages that may be asked to find out whether the server offers structured output."""
_REJECTED_IN_A_ROW = 20
"""Passages next to each other in the sample; when none of so many gets any answer, the question is at fault, not they."""
_STRUCTURED = "structured.json"
_NEVER_SENT = "the text can't be sent"
_ABOUT_THE_SCHEMA = ("response_format", "json_schema", "schema", "structured")


@dataclass(frozen=True)
class Expert:
    """Where the expert is and what asking may cost; nothing of it changes the output.

    Attributes:
        endpoints: base URLs of OpenAI-compatible servers.
        options: `ServerSettings` by name.
        budget: what may be spent, with the prices.
        journal: file of paid answers that outlives the run; None: in the output folder until the stage is finished.
    """

    endpoints: Sequence[str]
    options: dict[str, Any] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    journal: Path | None = None

    def settings(self, structured: bool = False) -> ServerSettings:
        """How the server is asked.

        Raises:
            UserError: there is no such option, or its value is out of range.
        """
        known = {one.name for one in fields(ServerSettings)}
        if unknown := sorted(set(self.options) - known):
            raise UserError(f"--option {', '.join(unknown)}: there is no such setting; known are {', '.join(known)}.")
        settings = ServerSettings(**self.options)
        if structured:
            settings = replace(settings, extra=dict(settings.extra) | {"response_format": RESPONSE_FORMAT})
        return settings


class Answered(msgspec.Struct, omit_defaults=True):
    """A passage and what the expert answered in the end.

    Attributes:
        chosen: the passage.
        text: the answer, its form taken off; None where there is none that can be read.
        raw: the answer as it came, where that is another text.
        finish: `stop`, `length`, or `error`.
        error: why there is none.
        paid: whether a server answered at all.
        tries: how often it was asked.
        structured: whether the last answer was asked for by the schema.
        prompt_tokens, output_tokens: of all tries, as the server counted them; None where it did not for one of them.
        served: model and fingerprint that the server named with the last answer.
    """

    chosen: Chosen
    text: str | None = None
    raw: str | None = None
    finish: str = "stop"
    error: str = ""
    paid: bool = True
    tries: int = 1
    structured: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    served: tuple[str, str] = ("", "")


@dataclass
class _Asked:
    """Where a passage stands.

    Attributes:
        digests: of the requests that were answered, in their order.
        unread, cut: answers so far that could not be read, or were cut off.
        failed: requests without any answer.
        error: of the last of those.
        structured: whether the last answer was asked for by the schema.
        over: whether it is not asked again.
    """

    digests: list[str] = field(default_factory=list)
    unread: int = 0
    cut: int = 0
    failed: int = 0
    error: str = ""
    structured: bool = False
    over: bool = False

    @property
    def tries(self) -> int:
        return len(self.digests) + self.failed

    @property
    def rejected(self) -> bool:
        """Whether servers were asked and none gave it an answer."""
        return self.over and not self.digests and not self.error.startswith(_NEVER_SENT)


class Asking:
    """The passages of an annotation on their way to the expert.

    Args:
        chosen: the sample.
        settings: what is asked.
        expert: who is asked.
        work: folder for what has to outlive a kill.
        bar: hears of passages that are through.
        stopping: whether to leave: what is in flight is answered and kept.
    """

    def __init__(
        self,
        chosen: Sequence[Chosen],
        settings: AnnotateSettings,
        expert: Expert,
        work: Path,
        bar: Progress,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._chosen, self._settings, self._expert, self._work = chosen, settings, expert, work
        self._bar, self._stopping = bar, stopping
        self._asked = [_Asked() for _ in chosen]
        self._again: deque[int] = deque()
        self.structured = False
        self._schema_given_up = False  # by this run or one before it, after answers by the schema
        self._rejected = ""  # what the server said, where it takes no passage

    def ask(self, journal: AnswerJournal) -> bool:
        """Ask every passage; whether all are through (False: `stopping` asked to leave).

        Raises:
            RunStoppedError: the budget has no room for another request.
            UserError: the server can't be used or rejects all it is asked, or no endpoint answers.
        """
        try:
            self.structured = self._finds_structure(journal)
            self._ask_in_one_form(journal)
            if self.structured and self._schema_given_up:
                self._go_on_without_schema()
                self._ask_in_one_form(journal)
        except BudgetSpentError as error:
            raise RunStoppedError(f"{error} {self._standing()}") from None
        except BackendDownError as error:
            raise UserError(f"{error} {self._standing()} Mend that and run the same command again.") from None
        if self._rejected:
            raise UserError(
                f"no passage is taken any more: {self._rejected} {self._standing()} Mend what is asked (--option, --model, "
                "--structured, the server) and run the same command again."
            )
        return all(one.over for one in self._asked)

    def _ask_in_one_form(self, journal: AnswerJournal) -> None:
        """Ask until all are through, or a reason to leave turns up; what is in flight then is answered."""
        with self._backend(journal, self.structured) as backend:
            while True:
                try:
                    for answer in backend.answers(self._requests(journal)):
                        self._take(int(answer.key), answer.error, self.structured, journal)
                except UserError as error:
                    if not self._speaks_of_schema(str(error)):
                        raise
                    self._schema_given_up = True
                if not self._again or self._leaving():
                    break

    def _go_on_without_schema(self) -> None:
        write_json(self._work / _STRUCTURED, {"structured": False, "given_up": True})
        self.structured = False
        self._again = deque(place for place, one in enumerate(self._asked) if one.tries and not one.over)

    def _leaving(self) -> bool:
        return self._stopping() or bool(self._rejected) or (self.structured and self._schema_given_up)

    def _speaks_of_schema(self, error: str) -> bool:
        """Whether the schema, which was found to be known, is what a server refuses."""
        return self.structured and self._settings.structured == "auto" and _names_the_schema(error)

    def answered(self, journal: AnswerJournal) -> Iterator[Answered]:
        """What came of every passage, in the sample's order; after `ask`."""
        for chosen, asked in zip(self._chosen, self._asked, strict=True):
            yield self._answered(chosen, asked, journal)

    @property
    def tries(self) -> int:
        """Questions put so far, those that a journal answered among them."""
        return sum(one.tries for one in self._asked)

    def usage(self, journal: AnswerJournal) -> tuple[int, int, int, int, int]:
        """Tokens of the answers that were used: prompt, cached, output as counted; prompt and output as assumed."""
        counts = [0] * 5
        for digest in {digest for asked in self._asked for digest in asked.digests}:
            paid = journal.find(digest)
            assert paid is not None
            if paid.counted:
                own = [paid.prompt_tokens, paid.cached_tokens, paid.output_tokens, 0, 0]
            else:
                own = [0, 0, 0, paid.prompt_tokens, paid.output_tokens]
            counts = [sum(pair) for pair in zip(counts, own, strict=True)]
        prompt, cached, output, assumed_prompt, assumed_output = counts
        return prompt, cached, output, assumed_prompt, assumed_output

    def _standing(self) -> str:
        through = sum(one.over and bool(one.digests) for one in self._asked)
        return f"{through:,} of {len(self._asked):,} passages are answered, and kept."

    @contextmanager
    def _backend(self, journal: AnswerJournal, structured: bool) -> Iterator[OpenAIBackend]:
        settings, expert = self._settings, self._expert
        backend = OpenAIBackend(
            expert.endpoints, settings.model, settings.asking.sampling, expert.settings(structured),
            budget=expert.budget, journal=journal,
        )  # fmt: skip
        try:
            yield backend
        finally:
            backend.close()

    def _requests(self, journal: AnswerJournal) -> Iterator[Request]:
        for place in range(len(self._chosen)):
            yield from self._requests_again(journal)
            if self._leaving():
                return
            if not self._asked[place].tries:
                yield from self._asked_for(place, journal)
        yield from self._requests_again(journal)

    def _requests_again(self, journal: AnswerJournal) -> Iterator[Request]:
        while self._again and not self._leaving():
            yield from self._asked_for(self._again.popleft(), journal)

    def _asked_for(self, place: int, journal: AnswerJournal) -> Iterator[Request]:
        """A passage's request; none where the journal has its answer by a schema that was given up since."""
        if self._schema_given_up and journal.find(self._digest(place, True)) is not None:
            self._take(place, "", True, journal)
        else:
            yield self._request(place, self.structured)

    def _request(self, place: int, structured: bool) -> Request:
        passage, asked, asking = self._chosen[place].candidate, self._asked[place], self._settings.asking
        messages = asking.messages(passage.text, passage.before, passage.after)
        most = asking.answer_tokens(passage.tokens) << asked.cut
        return Request(
            str(place), messages_for(messages, asking.language, structured, asked.unread), most, passage.tokens
        )

    def _digest(self, place: int, structured: bool) -> str:
        extra = self._expert.settings(structured).extra
        return request_hash(
            self._settings.model, self._settings.asking.sampling, self._request(place, structured), extra
        )

    def _take(self, place: int, error: str, structured: bool, journal: AnswerJournal) -> None:
        """What came of a passage's request.

        Args:
            place: of the passage.
            error: why there is no answer, where the journal has none.
            structured: the form of the request.
            journal: where its answer is.
        """
        asked = self._asked[place]
        digest = self._digest(place, structured)
        paid = journal.find(digest)
        again = False
        if paid is None and _is_hopeless(error) and self._speaks_of_schema(error):
            self._schema_given_up = True  # and the passage has not been asked
            return
        if paid is None:
            asked.failed += 1
            asked.error = error or "no answer"
            again = not _is_hopeless(asked.error)
        else:
            asked.digests.append(digest)
            asked.error, asked.structured = paid.error, structured
            if paid.finish == "length":
                asked.cut += 1
                again = True
            elif paid.finish == "stop" and self._read(place, paid) is None:
                asked.unread += 1
                again = True
        if again and asked.tries < self._settings.tries:
            self._again.append(place)
            return
        asked.over = True
        self._bar.advance(1)
        if asked.rejected and self._rejected_around(place) >= min(_REJECTED_IN_A_ROW, len(self._asked)):
            self._rejected = asked.error

    def _rejected_around(self, place: int) -> int:
        """Rejected passages in a row, this one among them.

        The row is the sample's, so that a run that has nothing left but the few that no server takes can end.
        """
        count = 1
        for neighbours in (range(place + 1, len(self._asked)), range(place - 1, -1, -1)):
            for other in neighbours:
                if count == _REJECTED_IN_A_ROW or not self._asked[other].rejected:
                    break
                count += 1
        return count

    def _read(self, place: int, paid: PaidAnswer) -> str | None:
        return passage_in(paid.text or "", self._chosen[place].candidate.text, self._asked[place].structured)

    def _answered(self, chosen: Chosen, asked: _Asked, journal: AnswerJournal) -> Answered:
        if not asked.digests:
            return Answered(chosen, finish="error", error=asked.error, paid=False, tries=asked.tries)
        all_paid = [paid for digest in asked.digests if (paid := journal.find(digest)) is not None]
        last = all_paid[-1]
        text = None if last.text is None else passage_in(last.text, chosen.candidate.text, asked.structured)
        counted = all(paid.counted for paid in all_paid)
        error = last.error or ("" if text is not None or last.finish == "length" else "the answer can't be read")
        return Answered(
            chosen, text, None if last.text == text else last.text, last.finish, error, True, asked.tries, asked.structured,
            sum(paid.prompt_tokens for paid in all_paid) if counted else None,
            sum(paid.output_tokens for paid in all_paid) if counted else None, last.served,
        )  # fmt: skip

    def _finds_structure(self, journal: AnswerJournal) -> bool:
        """Whether structured output is asked for, as the settings say, or as the server was found to do."""
        if self._settings.structured != "auto":
            return self._settings.structured == "on"
        kept = self._work / _STRUCTURED
        if not kept.exists():
            write_json(kept, {"structured": self._server_keeps_to_schemas(journal)})
        found = json.loads(kept.read_text(encoding="utf-8"))
        self._schema_given_up = bool(found.get("given_up"))
        return bool(found["structured"])

    def _server_keeps_to_schemas(self, journal: AnswerJournal) -> bool:
        """Ask a first passage by the schema. What is answered well counts as the passage's answer, and is paid once."""
        for place in range(min(_PROBES, len(self._chosen))):
            request = self._request(place, True)
            try:
                with self._backend(journal, True) as backend:
                    answer = next(iter(list(backend.answers([request]))), None)
            except UserError as error:
                if _names_the_schema(str(error)):
                    return False
                raise
            if answer is None or answer.text is None:
                if answer is not None and _names_the_schema(answer.error):
                    return False
                continue  # the passage may be at fault: too long, filtered
            if answer.finish == "stop":
                return is_structured(answer.text)
        return False


def _is_hopeless(error: str) -> bool:
    """Whether a request without an answer was refused for what it is, and not for want of luck."""
    return error.startswith(("HTTP 400", "HTTP 413", "HTTP 422", _NEVER_SENT))


def _names_the_schema(error: str) -> bool:
    return any(word in error for word in _ABOUT_THE_SCHEMA)
