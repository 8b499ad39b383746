"""From what a user asked for to a backend: described by plain values, so that it can be made in another process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_native.alignment.backends.answer_journal import AnswerJournal
from megatron_native.alignment.backends.backend import Backend, Sampling
from megatron_native.alignment.backends.budget import Budget
from megatron_native.alignment.backends.worker import Worker
from megatron_native.errors import UserError


@dataclass(frozen=True)
class BackendChoice:
    """A backend that is not made yet.

    Attributes:
        engine: `transformers`, `openai` or `vllm`.
        worker: the worker's folder; of no use for `openai`.
        model: the model's name at the server; for `openai` alone.
        endpoints: base URLs of servers; for `openai` alone.
        sampling: how tokens are chosen.
        options: the backend's own settings by name.
        budget: what requests to servers may cost; for `openai` alone.
        journal: folder where paid answers are kept until they are in the output; for `openai` alone.
    """

    engine: str
    worker: Path | None = None
    model: str = ""
    endpoints: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget | None = None
    journal: Path | None = None

    def __post_init__(self) -> None:
        if self.engine == "openai":
            if not self.endpoints or not self.model:
                raise UserError(
                    "--engine openai needs --endpoint URL (http://host:8000/v1) and --model NAME, the name under which the "
                    "server knows the worker."
                )
        elif self.worker is None:
            raise UserError(f"--engine {self.engine} needs --worker FOLDER, the Hugging Face folder of the worker.")

    def identity(self) -> dict[str, Any]:
        """What tells this worker from others; the worker's files are read for it."""
        named: dict[str, Any] = {"worker": self.model, "worker_hash": None}
        if self.worker is not None:
            named = Worker(self.worker).identity()
        if extra := self.options.get("extra"):  # fields of every request, which may change the answers
            named["extra"] = extra
        return named

    def fertility(self) -> float:
        """Tokens of the worker's tokenizer for each of LLaMA-3's; 1 where the tokenizer is not here."""
        return 1.0 if self.worker is None else Worker(self.worker).fertility

    @contextmanager
    def running(self, place: str = "0") -> Iterator[Backend]:
        """The backend, its model loaded; closed at the end.

        Args:
            place: tells the engines of a fleet apart, each of which keeps a journal of its own and reads what the others'
                hold when it begins.

        Raises:
            UserError: a package, a model or an option is wrong.
        """
        with ExitStack() as stack:
            journal = None
            if self.journal is not None:
                own = self.journal / f"paid-{place}.jsonl"
                others = [path for path in sorted(self.journal.glob("paid-*.jsonl")) if path != own]
                journal = stack.enter_context(AnswerJournal(own, others))
            try:
                backend = self._make(journal)
            except TypeError as error:
                if "unexpected keyword argument" not in str(error):
                    raise
                name = str(error).rpartition("argument ")[2]
                raise UserError(
                    f"--option: {self.engine} has no setting {name}; docs/backends.md lists those it has."
                ) from None
            stack.callback(backend.close)
            yield backend

    def _make(self, journal: AnswerJournal | None) -> Backend:
        if self.engine == "openai":
            from megatron_native.alignment.backends.openai_server import OpenAIBackend
            from megatron_native.alignment.backends.server_settings import ServerSettings

            worker = None if self.worker is None else Worker(self.worker)
            settings = ServerSettings(**self.options)
            return OpenAIBackend(
                self.endpoints, self.model, self.sampling, settings, budget=self.budget, journal=journal, worker=worker
            )
        assert self.worker is not None
        worker = Worker(self.worker)
        if self.engine == "transformers":
            from megatron_native.alignment.backends.local_transformers import TransformersBackend

            return TransformersBackend(worker, self.sampling, **self.options)
        from megatron_native.alignment.backends.vllm_engine import VllmBackend, VllmSettings

        return VllmBackend(worker, self.sampling, VllmSettings(**self.options))


def endpoints_of(given: Sequence[str]) -> tuple[str, ...]:
    """Base URLs as a user gives them: URLs, `@FILE` with one a line, or `@FOLDER` of such files, which servers write.

    Raises:
        UserError: a file is not there or names none, or an address is no URL.
    """
    found: list[str] = []
    for text in given:
        if not text.startswith("@"):
            found.append(text)
            continue
        place = Path(text[1:])
        files = sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else [place]
        try:
            lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise UserError(f"--endpoint {text}: {error.strerror or error}; servers write their URLs there.") from None
        urls = [line for line in lines if line]
        if not urls:
            raise UserError(f"--endpoint {text}: no server has written its URL there yet; start the fleet first.")
        found += urls
    for url in found:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"--endpoint {url}: give the base URL of the server, such as http://host:8000/v1.")
    return tuple(dict.fromkeys(found))


def options_of(given: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` settings, values read as YAML.

    Raises:
        UserError: one has no `=`.
    """
    import yaml

    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--option {text}: write KEY=VALUE, such as max_num_seqs=256.")
        options[key] = yaml.safe_load(value)
    return options
