"""Answers that were paid for, on disk before anybody has seen them, so that none is paid twice.

A file of JSON lines that only grows. A line is an answer under the hash of everything that it depends on, or what a
failed attempt may have cost. A last line that a kill has cut short is cut off when the journal is opened.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from megatron_native.alignment.backends.backend import Answer, Finish, Request, Sampling
from megatron_native.errors import UserError
from megatron_native.manifest import parameters_hash

_HEADER = b'{"format":"megatron-native/answers/1"}\n'


def request_hash(model: str, sampling: Sampling, request: Request, extra: Mapping[str, Any]) -> str:
    """sha256 of all that an answer depends on: model, sampling, messages, `max_tokens` and further parameters; not of the
    request's key, and not of the server.
    """
    return parameters_hash({
        "model": model, "sampling": sampling.as_parameters(), "messages": request.messages,
        "max_tokens": request.max_tokens, "extra": dict(extra),
    })  # fmt: skip


@dataclass(frozen=True, slots=True)
class PaidAnswer:
    """An answer as a server gave it, without the key of who asked.

    Attributes:
        counted: whether the server gave its usage; else the tokens are the worst case.
        served: model and fingerprint as the server named them; empty where it did not.
    """

    text: str | None
    finish: Finish
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    error: str = ""
    counted: bool = True
    served: tuple[str, str] = ("", "")

    def answer(self, key: str) -> Answer:
        """As the answer to a request; tokens that nobody counted are 0."""
        tokens = (self.prompt_tokens, self.cached_tokens, self.output_tokens) if self.counted else (0, 0, 0)
        return Answer(key, self.text, self.finish, *tokens, error=self.error)


class AnswerJournal:
    """The journal of one job. One process at a time has it open; other processes need their own.

    Only the hashes are held in memory, some 200 bytes an answer; texts are read back from the file.

    Args:
        path: the file; made with its folder. Delete it to pay again.
        others: journals of the same job's other processes, read as they are now: what they paid for costs nothing here,
            and counts in `costs`.

    Attributes:
        damaged_lines: lines in the middle that can't be read (a fault of the disk); their answers are asked for again.

    Raises:
        UserError: another process has it open, it is no journal, or it can't be written.
    """

    def __init__(self, path: Path, others: Iterable[Path] = ()) -> None:
        self.path = Path(path)
        self.damaged_lines = 0
        self._places: dict[bytes, tuple[int, int]] = {}
        self._elsewhere: dict[bytes, tuple[Path, int, int]] = {}
        self._costs: dict[str, list[int]] = {}
        self._pending: list[tuple[bytes | None, bytes]] = []
        self._adding, self._writing = threading.Lock(), threading.Lock()
        self._refused = ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"{path}: the journal of answers can't be written ({error.strerror}).") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = self._read()
            for other in others:
                self._read_other(other)
        except BlockingIOError:
            os.close(self._file)
            raise UserError(
                f"{path}: another process has this journal of answers open; wait for it, or give this run its own."
            ) from None
        except BaseException:
            os.close(self._file)
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> AnswerJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; what was recorded is on disk already."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def find(self, digest: str) -> PaidAnswer | None:
        """The answer under a hash, or None."""
        key = bytes.fromhex(digest)
        if (place := self._places.get(key)) is not None:
            raw = os.pread(self._file, place[1], place[0])
        elif (elsewhere := self._elsewhere.get(key)) is not None:
            with open(elsewhere[0], "rb") as file:
                file.seek(elsewhere[1])
                raw = file.read(elsewhere[2])
        else:
            return None
        fields = orjson.loads(raw)["answer"]
        return PaidAnswer(**fields | {"served": tuple(fields.get("served", ("", "")))})

    def costs(self, model: str) -> tuple[int, int, int, int, int]:
        """A model's tokens, of all runs: prompt, cached and output as counted; prompt and output as assumed."""
        with self._adding:
            prompt, cached, output, assumed_prompt, assumed_output = self._costs.get(model, [0] * 5)
        return prompt, cached, output, assumed_prompt, assumed_output

    def record(self, digest: str, model: str, answer: PaidAnswer) -> None:
        """Put an answer on disk (`fsync`). Several threads may call; what they bring together is written at once.

        Raises:
            UserError: the disk refuses; nothing of the answer is in the file then.
        """
        answer_fields = {name: getattr(answer, name) for name in PaidAnswer.__slots__}
        self._append(digest, {"hash": digest, "model": model, "answer": answer_fields})

    def record_assumed(self, model: str, worst: tuple[int, int]) -> None:
        """Put on disk what a failed attempt may have cost: prompt and output tokens.

        Raises:
            UserError: the disk refuses.
        """
        self._append(None, {"model": model, "assumed": list(worst)})

    def _append(self, digest: str | None, line: dict[str, Any]) -> None:
        mine = (bytes.fromhex(digest) if digest else None, orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        with self._adding:
            self._pending.append(mine)
            self._count(line)
        with self._writing:
            with self._adding:
                batch, self._pending = self._pending, []
            if batch and not self._refused:  # else another thread has written it, or failed to
                try:
                    self._write(b"".join(content for _, content in batch))
                except OSError as error:
                    self._refused = str(error.strerror)
            if self._refused:
                raise UserError(
                    f"{self.path}: the journal of answers can't be written ({self._refused}), and without it answers "
                    "would be paid twice; make room and start again."
                )
            place = self._size - sum(len(content) for _, content in batch)
            for key, content in batch:
                if key is not None:
                    self._places[key] = (place, len(content))
                place += len(content)

    def _write(self, content: bytes) -> None:
        done = 0
        try:
            while done < len(content):
                done += os.pwrite(self._file, content[done:], self._size + done)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(content)

    def _read(self) -> int:
        """Take in what is there; where the next line goes."""
        place = 0
        with open(self._file, "rb", closefd=False) as file:
            header = file.readline()
            if header != _HEADER:
                if not _HEADER.startswith(header):
                    raise UserError(f"{self.path} is not a journal of answers; give another path.")
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, _HEADER, 0)
                os.fsync(self._file)
                return len(_HEADER)
            place = len(header)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._take_in(line, place)
                place += len(line)
        os.ftruncate(self._file, place)
        return place

    def _read_other(self, path: Path) -> None:
        with open(path, "rb") as file:
            header = file.readline()
            if header != _HEADER:
                return
            place = len(header)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if (key := self._key(line)) is not None:
                    self._elsewhere[key] = (path, place, len(line))
                place += len(line)

    def _take_in(self, line: bytes, place: int) -> None:
        if (key := self._key(line)) is not None:
            self._places[key] = (place, len(line))

    def _key(self, line: bytes) -> bytes | None:
        """The hash of a line's answer, None where it has none; what it cost is counted."""
        key = None
        try:
            entry = orjson.loads(line)
            if "assumed" not in entry:
                PaidAnswer(**entry["answer"])
                key = bytes.fromhex(entry["hash"])
            self._count(entry)
        except (ValueError, KeyError, TypeError):
            self.damaged_lines += 1
            return None
        return key

    def _count(self, entry: dict[str, Any]) -> None:
        if "assumed" in entry:
            tokens = [0, 0, 0, *entry["assumed"]]
        else:
            answer = entry["answer"]
            prompt, cached, output = answer["prompt_tokens"], answer["cached_tokens"], answer["output_tokens"]
            tokens = [prompt, cached, output, 0, 0] if answer["counted"] else [0, 0, 0, prompt, output]
        costs = self._costs.setdefault(entry["model"], [0] * 5)
        costs[:] = [sum(pair) for pair in zip(costs, tokens, strict=True)]
