"""The settings of an annotation: which passages are chosen, what the expert is asked, and what is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from megatron_native.alignment.rewriting.settings import RewriteSettings
from megatron_native.errors import UserError

Rule = Literal["random", "stratified", "high-perplexity", "low-perplexity"]
RULES = get_args(Rule)
Allocation = Literal["proportional", "equal"]
Structured = Literal["auto", "on", "off"]

SAMPLE = 10_000
CANDIDATES_EACH = 10
LENGTH_BANDS = (64, 128, 192)
LEAST_TOKENS = 16
TRIES = 2
ANSWER_RATIO = 2.0


@dataclass(frozen=True)
class SelectionSettings:
    """Which passages are annotated.

    Attributes:
        rule: `random`: uniform without replacement; `stratified`: so within each source and length band;
            `high-perplexity`, `low-perplexity`: the extremes among random candidates.
        sample: passages to choose.
        seed: another seed is another sample.
        allocation: of `stratified`: places of a stratum as its share of passages, or the same for each.
        length_bands: LLaMA-3 tokens at which bands of length end; the last band has no end.
        least_tokens: shorter passages are passed over.
        perplexity_model: Hugging Face folder of a causal model.
        candidates: passages that the model scores; 0: ten for each of the sample.
        perplexity_context: tokens that the model sees at once, at most.

    Raises:
        UserError: a value is out of range, or a setting is missing or of no use to the rule.
    """

    rule: Rule = "random"
    sample: int = SAMPLE
    seed: int = 0
    allocation: Allocation = "proportional"
    length_bands: Sequence[int] = LENGTH_BANDS
    least_tokens: int = LEAST_TOKENS
    perplexity_model: Path | None = None
    candidates: int = 0
    perplexity_context: int = 2048

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UserError(f"--select {self.rule} is not known; it is one of {', '.join(RULES)}.")
        if self.allocation not in get_args(Allocation):
            raise UserError(f"--allocation {self.allocation}: it is one of {', '.join(get_args(Allocation))}.")
        if self.sample < 1:
            raise UserError(f"--sample {self.sample}: it must be 1 or more.")
        if self.least_tokens < 1:
            raise UserError(f"--least-tokens {self.least_tokens}: it must be 1 or more.")
        if any(second <= first for first, second in zip((0, *self.length_bands), self.length_bands)):
            raise UserError(f"--length-bands {list(self.length_bands)}: give growing numbers above 0, such as 64 128.")
        if self.by_perplexity and self.perplexity_model is None:
            raise UserError(f"--select {self.rule} needs --perplexity-model FOLDER, a causal Hugging Face model.")
        if not self.by_perplexity and (self.perplexity_model is not None or self.candidates):
            raise UserError(
                f"--perplexity-model and --candidates are of no use to --select {self.rule}; leave them out, or select "
                "by high-perplexity or low-perplexity."
            )
        if self.candidates and self.candidates < self.sample:
            raise UserError(
                f"--candidates {self.candidates} is less than --sample {self.sample}: give as many at least."
            )

    @property
    def by_perplexity(self) -> bool:
        """Whether a model scores candidates."""
        return self.rule.endswith("perplexity")

    @property
    def drawn(self) -> int:
        """Passages that are drawn from the corpus: the sample itself, or the candidates for it."""
        return (self.candidates or CANDIDATES_EACH * self.sample) if self.by_perplexity else self.sample

    def band(self, tokens: int) -> str:
        """The name of the length band of a passage of so many tokens, such as `64-127`."""
        first = 0
        for end in self.length_bands:
            if tokens < end:
                return f"{first}-{end - 1}"
            first = end
        return f"{first}+"

    def parameters(self) -> dict[str, Any]:
        """For the manifest."""
        values: dict[str, Any] = {
            "rule": self.rule, "sample": self.sample, "seed": self.seed, "least_tokens": self.least_tokens,
        }  # fmt: skip
        if self.rule == "stratified":
            values |= {"allocation": self.allocation, "length_bands": list(self.length_bands)}
        if self.perplexity_model is not None:
            from megatron_native.alignment.backends.worker import Worker

            values |= {
                "candidates": self.drawn, "perplexity_model": self.perplexity_model.resolve().name,
                "perplexity_model_hash": Worker(self.perplexity_model).hash, "context": self.perplexity_context,
            }  # fmt: skip
        return values


@dataclass(frozen=True)
class AnnotateSettings:
    """What decides the output of annotate.

    Attributes:
        selection: which passages.
        asking: what the expert is asked about a passage, how it samples, the rules before it and the gates after it.
            Of `RewriteSettings` those for a whole passage as the answer; chunks and parts of output are of no use.
        model: the expert's name at the server.
        extra: further fields of every request, which may change answers.
        structured: whether answers are asked for as JSON by a schema; `auto` finds out whether the server can.
        tries: how often a passage is asked at most, where an answer is cut off or can't be read.
    """

    selection: SelectionSettings
    asking: RewriteSettings
    model: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    structured: Structured = "auto"
    tries: int = TRIES

    def __post_init__(self) -> None:
        if self.structured not in get_args(Structured):
            raise UserError(f"--structured {self.structured}: it is one of {', '.join(get_args(Structured))}.")
        if self.tries < 1:
            raise UserError(f"--tries {self.tries}: it must be 1 or more.")
        if not self.model:
            raise UserError("--model NAME is missing: the name under which the server knows the expert.")
        if "response_format" in self.extra:
            raise UserError("--option extra: response_format is set by --structured; leave it out there.")
        if self.asking.form != "full" or self.asking.first_look is not None:
            raise ValueError("annotation asks for whole passages and takes no first look")

    @cached_property
    def lineage(self) -> dict[str, Any]:
        """What every seed carries of how it was asked for."""
        return {
            "conduct": self.asking.code.name, "conduct_hash": self.asking.code.hash,
            "prompt_hash": self.asking.prompt_hash, "model": self.model,
            "sampling": self.asking.sampling.as_parameters(),
        }  # fmt: skip

    def parameters(self) -> dict[str, Any]:
        """For the manifest: everything that decides the output."""
        import msgspec

        from megatron_native.alignment.rewriting.parts_of_conduct import checks_of, rules_of

        asking = self.asking
        reading = msgspec.to_builtins(asking.reading)
        reading.pop("metadata")
        rules, gates = rules_of(asking), checks_of(asking)
        return {
            **reading, "part_bytes": asking.part_bytes, "selection": self.selection.parameters(),
            "model": self.model, "extra": dict(self.extra), "structured": self.structured, "tries": self.tries,
            "conduct": {"name": asking.code.name, "hash": asking.code.hash}, "prompt_hash": asking.prompt_hash,
            "language": asking.language, "examples": asking.examples, "passage_tokens": asking.passage_tokens,
            "context_tokens": asking.context_tokens, "answer_ratio": asking.answer_ratio,
            "sampling": asking.sampling.as_parameters(),
            "rules": rules and rules.parameters, "gates": gates and gates.parameters,
        }  # fmt: skip
