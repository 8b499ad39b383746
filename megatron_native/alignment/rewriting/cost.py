"""What a rewriting cost, for what it gave: accelerator-hours per billion accepted tokens, and the figures behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_native.alignment.rewriting.chunks import ACCEPTED, QUARANTINED, REFUSED, REWRITTEN, STATES, UNCHANGED

_MANY, _FEW = 0.05, 0.5
"""Shares of answers from which, and under which, a warning is given."""


def figures_of(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a whole rewriting from those of its parts, for manifest and table.

    `accepted_tokens` are those of passages that were rewritten, found right by the worker, or clean at first look;
    refused, quarantined and frozen ones are not among them. Tokens are LLaMA-3's, of the passages as they came to the
    worker. `accelerator_hours` is the time that engines were at work on finished chunks, times their accelerators:
    loading a model, and chunks that were broken off and begun again, are not in it.
    """
    passages: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    engine_tokens: Counter[str] = Counter()
    seconds, engines = 0.0, []
    for part in parts:
        passages.update(part["passages"])
        tokens.update(part["tokens"])
        refused.update(part["refused"])
        engine_tokens.update(part["engine_tokens"])
        seconds += part["accelerator_seconds"]
        engines += [engine for engine in part["engines"] if engine not in engines]
    accepted = sum(tokens[state] for state in ACCEPTED)
    hours = seconds / 3600
    return {
        "passages": {state: passages[state] for state in STATES}, "tokens": {state: tokens[state] for state in STATES},
        "refused_by": dict(refused.most_common()), "engine_tokens": dict(engine_tokens), "engines": engines,
        "accepted_tokens": accepted, "accelerator_hours": round(hours, 6),
        "accelerator_hours_per_billion_accepted_tokens": round(hours / accepted * 1e9, 2) if accepted and hours else None,
    }  # fmt: skip


@dataclass(frozen=True)
class Prices:
    """What is paid, in any currency; 0 where nothing is.

    Attributes:
        hour: an accelerator for an hour.
        prompt, written: a million tokens.
    """

    hour: float = 0.0
    prompt: float = 0.0
    written: float = 0.0

    def of(self, hours: float, prompt: float, written: float) -> float:
        """The price of so many accelerator-hours and tokens."""
        return hours * self.hour + (prompt * self.prompt + written * self.written) / 1e6


def warnings_of(figures: Mapping[str, Any]) -> list[str]:
    """What is no error and yet seldom meant: many answers cut off, or hardly one accepted."""
    asked = sum(figures["passages"][state] for state in (REWRITTEN, UNCHANGED, REFUSED, QUARANTINED))
    warnings = []
    if (cut := figures["refused_by"].get("cut off", 0)) > _MANY * asked:
        warnings.append(
            f"{cut:,} of {asked:,} answers reached their limit of tokens and were refused: raise --answer-ratio, or give "
            "--worker, so that the limit follows the worker's own tokenizer."
        )
    accepted = figures["passages"][REWRITTEN] + figures["passages"][UNCHANGED]
    if asked and accepted < _FEW * asked:
        warnings.append(
            f"only {accepted:,} of {asked:,} answers were accepted; the reasons are in the table and in _decisions/. Is this "
            "model trained to rewrite?"
        )
    return warnings


def rows_of(figures: Mapping[str, Any], prices: Prices | None = None) -> list[tuple[str, str]]:
    """The figures as rows of a table."""
    total = sum(figures["passages"].values())
    all_tokens = sum(figures["tokens"].values())
    rows = [("passages", f"{total:,} of {all_tokens:,} tokens")]
    for state in STATES:
        count, tokens = figures["passages"][state], figures["tokens"][state]
        if count:
            rows.append((f"  {state}", f"{count:,} ({100 * count / total:.1f} %), {tokens:,} tokens"))
    rows += [(f"    refused by {gate}", f"{count:,}") for gate, count in figures["refused_by"].items()]
    engine = figures["engine_tokens"]
    if engine.get("output"):
        rows.append(("prompt tokens, of them cached", f"{engine['prompt']:,}, {engine['cached']:,}"))
        rows.append(("tokens written", f"{engine['output']:,}"))
    if figures["accelerator_hours"]:
        seconds = figures["accelerator_hours"] * 3600
        rows.append(("accelerator-hours", f"{figures['accelerator_hours']:,.4f}"))
        rows.append(("accepted tokens per accelerator-second", f"{figures['accepted_tokens'] / seconds:,.1f}"))
        merit = figures["accelerator_hours_per_billion_accepted_tokens"]
        if merit is not None:
            rows.append(("accelerator-hours per billion accepted tokens", f"{merit:,.1f}"))
    cost = (prices or Prices()).of(figures["accelerator_hours"], engine.get("prompt", 0), engine.get("output", 0))
    if cost:
        rows.append(("cost of all answers that came", f"{cost:,.4g}"))
    return rows
