"""What a rewriting will cost, from a sample, before it is spent.

A seeded sample of documents goes through rules, cutting and first look; a sample of the passages that would wait for the
worker is really asked, judged by the gates, and timed. What that gives is scaled to the bytes of the input; intervals
come from drawing the sample's documents again (bootstrap), so they hold the sample's chance and not what a faster
machine, a fuller batch or another part of the corpus would change.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_native.alignment.backends.backend import BackendDownError, Request
from megatron_native.alignment.backends.budget import BudgetSpentError
from megatron_native.alignment.backends.choice import BackendChoice
from megatron_native.alignment.rewriting.chunks import ACCEPTED, CLEAN, FROZEN, QUARANTINED, WaitingPassage
from megatron_native.alignment.rewriting.cost import Prices
from megatron_native.alignment.rewriting.judging import outcome_of
from megatron_native.alignment.rewriting.parts_of_conduct import checks_of
from megatron_native.alignment.rewriting.preparing import WAITING, Tidier
from megatron_native.alignment.rewriting.settings import RewriteSettings
from megatron_native.documents.inputs import common_root, expand_inputs
from megatron_native.documents.parts import plan_parts
from megatron_native.documents.records import Refusal, utf8_bytes
from megatron_native.errors import UserError

SAMPLED_PARTS = 16
SAMPLED_DOCUMENTS = 2000
_RESAMPLES = 400


@dataclass
class _Sampled:
    """What the rules and the first look made of one document."""

    size: int
    tokens: Counter[str]
    passages: Counter[str]


def estimate(
    inputs: Sequence[str],
    settings: RewriteSettings,
    choice: BackendChoice | None,
    sample: int,
    prices: Prices | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Passages, tokens, accelerator-hours and money for the whole input.

    Args:
        inputs: files, folders or globs of documents.
        settings: of the rewriting.
        choice: what answers; None with `rules`, which costs no accelerator.
        sample: passages to ask.
        prices: what is paid.
        seed: of the sample.

    Raises:
        UserError: there is nothing to estimate, the engine is gone, or the budget doesn't reach.
    """
    if settings.engine == "rules" or choice is None:
        raise UserError(
            "--estimate is for rewriting with a worker; rules alone run at some MB/s a core: just run them."
        )
    if sample < 1:
        raise UserError(f"--sample {sample}: it must be 1 or more.")
    documents, waiting, size, share = _sampled(inputs, settings, seed)
    if not documents:
        raise UserError("there is no document to estimate from in the input.")
    try:
        measured = _measured(waiting, settings, choice, sample, seed) if waiting else None
    except BackendDownError as error:
        raise UserError(f"the sample could not be asked: {error}") from None
    except BudgetSpentError as error:
        raise UserError(
            f"the sample could not be asked to its end: {error} Or ask fewer passages (--sample)."
        ) from None
    scale = size / max(1, round(size * share))
    result = _scaled(documents, measured, scale, prices or Prices(), seed)
    return {
        "input_bytes": size, "sampled_share": share, "sampled_documents": len(documents),
        "measured": measured, "estimate": result, "worker": dict(settings.worker), "engine": settings.engine,
    }  # fmt: skip


def _sampled(
    inputs: Sequence[str], settings: RewriteSettings, seed: int
) -> tuple[list[_Sampled], list[WaitingPassage], int, float]:
    """Documents from the beginnings of random parts, their waiting passages, bytes of the input, and the share read."""
    from megatron_native.documents.readers import read_part

    files = expand_inputs(inputs)
    parts = plan_parts(files, common_root(inputs, files), settings.reading.text_unit, 1 << 20)
    size = sum(part.bytes for part in parts)
    chosen = random.Random(seed).sample(parts, min(SAMPLED_PARTS, len(parts)))
    tidier = Tidier(settings)
    found: list[_Sampled] = []
    waiting: list[WaitingPassage] = []
    share_read = 0.0
    for part in chosen:
        here = 0
        whole = True
        read = 0

        def on_read(count: int) -> None:
            nonlocal read
            read += count

        for record in read_part(part, settings.reading, on_read):
            if isinstance(record, Refusal):
                continue
            found.append(_look(record.text, record.id, len(found), tidier, waiting))
            here += 1
            if here >= SAMPLED_DOCUMENTS // len(chosen):
                whole = False
                break
        share_read += part.bytes if whole else min(read, part.bytes)
    return found, waiting, size, share_read / size if size else 0.0


def _look(
    text: str, document_id: str, number: int, tidier: Tidier, waiting: list[WaitingPassage]
) -> _Sampled:
    tidier.tokens, tidier.passages = Counter(), Counter()
    tidied, _ = tidier.tidy(text)
    for place, (passage, state) in enumerate(tidier.cut(tidied, document_id)):
        if state == WAITING:
            waiting.append(WaitingPassage.of(passage, number, place))
    return _Sampled(utf8_bytes(text), tidier.tokens, tidier.passages)


def _measured(
    waiting: list[WaitingPassage], settings: RewriteSettings, choice: BackendChoice, sample: int, seed: int
) -> dict[str, Any]:
    """What asking a sample of the waiting passages took and gave."""
    chosen = random.Random(seed).sample(waiting, min(sample, len(waiting)))
    gates, fertility = checks_of(settings), choice.fertility()
    requests = [
        Request(
            str(place), settings.messages(passage.text, passage.before, passage.after),
            settings.answer_tokens(passage.tokens, fertility), passage.tokens,
        )
        for place, passage in enumerate(chosen)
    ]  # fmt: skip
    states: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    engine: Counter[str] = Counter()
    with choice.running() as backend:
        started = time.monotonic()
        for answer in backend.answers(iter(requests)):
            passage = chosen[int(answer.key)]
            if answer.text is None or answer.finish == "error":
                state = QUARANTINED
            else:
                state = outcome_of(passage, answer, settings.form, gates, 1).state
            states[state] += 1
            tokens[state] += passage.tokens
            engine.update(prompt=answer.prompt_tokens, cached=answer.cached_tokens, output=answer.output_tokens)
        seconds = time.monotonic() - started
        return {
            "passages": len(chosen), "tokens": sum(tokens.values()), "states": dict(states), "state_tokens": dict(tokens),
            "engine_tokens": dict(engine), "seconds": seconds, "accelerators": backend.accelerators,
            "engine": backend.identity(),
        }  # fmt: skip


def _scaled(
    documents: list[_Sampled], measured: dict[str, Any] | None, scale: float, prices: Prices, seed: int
) -> dict[str, Any]:
    def of(drawn: list[_Sampled]) -> dict[str, float]:
        tokens: Counter[str] = Counter()
        passages: Counter[str] = Counter()
        for document in drawn:
            tokens.update(document.tokens)
            passages.update(document.passages)
        return _figures(tokens, passages, measured, scale, prices)

    random_draw = random.Random(seed)
    middle = of(documents)
    drawn = [of(random_draw.choices(documents, k=len(documents))) for _ in range(_RESAMPLES)]
    result: dict[str, Any] = {}
    for key, value in middle.items():
        values = sorted(figures[key] for figures in drawn)
        result[key] = [value, values[int(0.025 * _RESAMPLES)], values[int(0.975 * _RESAMPLES)]]
    return result


def _figures(
    tokens: Counter[str], passages: Counter[str], measured: dict[str, Any] | None, scale: float, prices: Prices
) -> dict[str, float]:
    figures: dict[str, float] = {
        "passages": scale * sum(passages.values()), "passages_for_worker": scale * passages["waiting"],
        "tokens": scale * sum(tokens.values()), "tokens_clean": scale * tokens[CLEAN],
        "tokens_frozen": scale * tokens[FROZEN], "tokens_for_worker": scale * tokens["waiting"],
    }  # fmt: skip
    if measured is None or not measured["tokens"]:
        return figures
    ratio = figures["tokens_for_worker"] / measured["tokens"]
    hours = ratio * measured["seconds"] * measured["accelerators"] / 3600
    accepted_share = sum(measured["state_tokens"].get(state, 0) for state in ACCEPTED) / measured["tokens"]
    accepted = figures["tokens_clean"] + accepted_share * figures["tokens_for_worker"]
    prompt, written = (ratio * measured["engine_tokens"].get(key, 0) for key in ("prompt", "output"))
    figures |= {
        "prompt_tokens": prompt, "written_tokens": written, "accepted_tokens": accepted,
    }  # fmt: skip
    if measured["accelerators"]:
        figures["accelerator_hours"] = hours
        figures["accelerator_hours_per_billion_accepted_tokens"] = hours / accepted * 1e9 if accepted else float("inf")
    if any(asdict(prices).values()):
        figures["cost"] = prices.of(hours, prompt, written)
    return figures


_ROWS = (
    ("passages", "passages"), ("passages_for_worker", "  for the worker"), ("tokens", "tokens (LLaMA-3)"),
    ("tokens_clean", "  clean at first look"), ("tokens_frozen", "  frozen"), ("tokens_for_worker", "  for the worker"),
    ("prompt_tokens", "prompt tokens"), ("written_tokens", "tokens written"), ("accepted_tokens", "accepted tokens"),
    ("accelerator_hours", "accelerator-hours"),
    ("accelerator_hours_per_billion_accepted_tokens", "accelerator-hours per billion accepted tokens"), ("cost", "cost"),
)  # fmt: skip


def print_estimate(result: dict[str, Any], as_json: bool) -> int:
    """Print an estimate as a table or JSON."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    measured = result["measured"]
    print(
        f"estimate for {result['input_bytes'] / 1e6:,.1f} MB from {result['sampled_documents']:,} documents "
        f"({100 * result['sampled_share']:.3g} % of the input)"
    )
    if measured:
        states = ", ".join(f"{count} {state}" for state, count in sorted(measured["states"].items()))
        print(f"asked {measured['passages']} passages in {measured['seconds']:.1f} s: {states}")
    else:
        print("no passage of the sample needs the worker")
    table = Table(box=None, pad_edge=False)
    table.add_column("for the whole input")
    table.add_column("estimate", justify="right")
    table.add_column("95 % of the sample's chance", justify="right")
    for key, label in _ROWS:
        if key in result["estimate"]:
            value, low, high = result["estimate"][key]
            table.add_row(label, _amount(value), f"{_amount(low)} to {_amount(high)}")
    Console(width=110, highlight=False).print(table)
    return 0


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"
