"""The settings of a rewriting: what decides its output, and so belongs into its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from megatron_native.alignment.backends.backend import Sampling
from megatron_native.alignment.conduct import Conduct, load_conduct
from megatron_native.alignment.prompts import Detail, Form, Messages, prompt_hash, render_rewriting
from megatron_native.documents.parts import PART_BYTES
from megatron_native.documents.records import ReadSettings
from megatron_native.errors import UserError

ENGINES = ("rules", "transformers", "openai", "vllm")
CHUNK_PASSAGES = 64
PASSAGE_TOKENS = 256
CONTEXT_TOKENS = 64
ANSWER_RATIO = 1.5
ANSWER_SLACK = 64
TRIES = 3


@dataclass(frozen=True)
class RewriteSettings:
    """What decides the output of rewrite.

    Attributes:
        engine: `rules`, `transformers`, `openai` or `vllm`.
        worker: what tells the worker from others: name and hash of its folder, or the model's name at a server.
        conduct: code of conduct, by name or YAML file.
        form: `full` (the worker writes the passage again) or `edits` (it names the spans to replace).
        language: of the prompt's own words.
        examples: examples of the code in the prompt.
        detail: `whole` (the prompt holds the code) or `brief` (for a worker that learned it).
        passage_tokens: tokens of a passage at most, as LLaMA-3 counts.
        context_tokens: tokens of the text before and after it that the worker reads.
        answer_ratio: tokens of an answer at most, for each token of its passage.
        sampling: how the worker chooses tokens.
        rules: overrides of the rules that run before the worker; None: no rules.
        first_look: overrides of the first look; None: every passage goes to the worker.
        gates: overrides of the gates; None: nothing is checked.
        tries: how often a passage is tried before it is quarantined.
        chunk_passages: passages of a chunk.
        output_format: `jsonl.zst` or `parquet`.
        part_bytes: text that one part takes; decides how the output is cut.
        reading: what of a record is its text and its id.
    """

    engine: str = "rules"
    worker: Mapping[str, Any] = field(default_factory=dict)
    conduct: str = "general"
    form: Form = "full"
    language: str = "ar"
    examples: int = 0
    detail: Detail = "whole"
    passage_tokens: int = PASSAGE_TOKENS
    context_tokens: int = CONTEXT_TOKENS
    answer_ratio: float = ANSWER_RATIO
    sampling: Sampling = field(default_factory=Sampling)
    rules: Mapping[str, Any] | None = field(default_factory=dict)
    first_look: Mapping[str, Any] | None = field(default_factory=dict)
    gates: Mapping[str, Any] | None = field(default_factory=dict)
    tries: int = TRIES
    chunk_passages: int = CHUNK_PASSAGES
    output_format: str = "jsonl.zst"
    part_bytes: int = PART_BYTES
    reading: ReadSettings = field(default_factory=ReadSettings)

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UserError(f"--engine {self.engine} is not known; it is one of {', '.join(ENGINES)}, or ray.")
        for name, value, least in (
            ("--passage-tokens", self.passage_tokens, 16), ("--context-tokens", self.context_tokens, 0),
            ("--tries", self.tries, 1), ("--chunk-passages", self.chunk_passages, 1), ("--answer-ratio", self.answer_ratio, 1),
        ):  # fmt: skip
            if value < least:
                raise UserError(f"{name} {value}: it must be {least} or more.")
        if self.engine == "rules" and self.rules is None:
            raise UserError("--engine rules with --no-rules would do nothing; leave one of them out.")
        load_conduct(self.conduct)  # a wrong name is told of before any work

    @cached_property
    def code(self) -> Conduct:
        """The code of conduct."""
        return load_conduct(self.conduct)

    @cached_property
    def prompt_hash(self) -> str:
        """sha256 of the rendered prompt."""
        return prompt_hash(self.code, self.form, self.language, self.examples, self.detail)  # type: ignore[arg-type]  # checked there

    def messages(self, text: str, before: str, after: str) -> Messages:
        """What the worker is asked about one passage."""
        prompt = (self.form, self.language, self.examples, self.detail)
        return render_rewriting(self.code, text, before, after, *prompt)  # type: ignore[arg-type]  # checked there

    def answer_tokens(self, tokens: int, fertility: float = 1.0) -> int:
        """Tokens that the answer on a passage of so many tokens may have.

        Args:
            tokens: of the passage, as LLaMA-3 counts.
            fertility: tokens that the worker's tokenizer makes for each of LLaMA-3's.
        """
        return int(tokens * self.answer_ratio * fertility) + ANSWER_SLACK

    def parameters(self) -> dict[str, Any]:
        """For the manifest: everything that decides the output, with the versions of rules, first look and gates."""
        import msgspec

        from megatron_native.alignment.rewriting.parts_of_conduct import checks_of, first_look_of, rules_of

        reading = msgspec.to_builtins(self.reading)
        reading.pop("metadata")
        rules, look, gates = rules_of(self), first_look_of(self), checks_of(self)
        values: dict[str, Any] = {
            **reading, "engine": self.engine, "output_format": self.output_format, "part_bytes": self.part_bytes,
            "rules": rules and rules.parameters, "gates": gates and gates.parameters,
        }  # fmt: skip
        if self.engine == "rules":
            return values
        return values | {
            "worker": dict(self.worker), "conduct": {"name": self.code.name, "hash": self.code.hash},
            "prompt_hash": self.prompt_hash, "form": self.form, "language": self.language, "examples": self.examples,
            **({"detail": self.detail} if self.detail != "whole" else {}),
            "passage_tokens": self.passage_tokens, "context_tokens": self.context_tokens, "answer_ratio": self.answer_ratio,
            "sampling": self.sampling.as_parameters(), "first_look": look and look.parameters, "tries": self.tries,
            "chunk_passages": self.chunk_passages,
        }  # fmt: skip
