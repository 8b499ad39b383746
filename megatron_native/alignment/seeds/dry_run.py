"""What an annotation will take, before anything is asked or written."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from megatron_native.alignment.backends.budget import Budget
from megatron_native.alignment.passages import estimated_tokens
from megatron_native.alignment.rewriting.preparing import Tidier
from megatron_native.alignment.seeds.answers import messages_for
from megatron_native.alignment.seeds.candidates import Candidate, passages_of
from megatron_native.alignment.seeds.settings import AnnotateSettings
from megatron_native.documents.inputs import common_root, expand_inputs
from megatron_native.documents.parts import plan_parts
from megatron_native.documents.records import Refusal
from megatron_native.errors import UserError

LOOKED_AT_BYTES = 1 << 20
MOST_PARTS = 8
MOST_DOCUMENTS = 2000
_WHOLE = 1 - 1e-9
TOKENS_A_MESSAGE = 4
"""Of a chat template, about."""


def dry_run(inputs: Sequence[str], settings: AnnotateSettings, budget: Budget) -> dict[str, Any]:
    """Requests, tokens and money, from the first 2,000 documents at most of up to 8 random MiB of the input.

    Tokens are those of LLaMA-3, estimated; `expected` takes an answer to be as long as its passage, `at_most` takes every
    answer to reach its limit, and every question to be asked as often as `tries` allows, each time with twice the room.
    Passages chosen by length or perplexity may be longer or shorter than those looked at.

    Raises:
        UserError: there is no passage in what was looked at.
    """
    from megatron_native.documents.readers import read_part

    asking, selection = settings.asking, settings.selection
    files = expand_inputs(inputs)
    parts = plan_parts(files, common_root(inputs, files), asking.reading.text_unit, LOOKED_AT_BYTES)
    looked_at = random.Random(selection.seed).sample(parts, min(MOST_PARTS, len(parts)))
    tidier, passed_over = Tidier(asking), Counter[str]()
    found: list[Candidate] = []
    documents, size, share = 0, sum(part.bytes for part in parts), 0.0
    for part in looked_at:
        read, here, whole = 0, 0, True

        def on_read(count: int) -> None:
            nonlocal read
            read += count

        for record in read_part(part, asking.reading, on_read):
            if isinstance(record, Refusal):
                continue
            found += passages_of(tidier, record, selection, passed_over)
            here += 1
            if here >= MOST_DOCUMENTS // len(looked_at):
                whole = False  # of a part that can't be cut, such as a member of a zip
                break
        documents += here
        share += (part.bytes if whole else min(read, part.bytes)) / size if size else 0.0
    if not found:
        raise UserError(
            f"no passage of {documents:,} documents looked at may be annotated; is --text-key {asking.reading.text_key} "
            f"right, and --least-tokens {selection.least_tokens}?"
        )
    there = round(len(found) / min(share, 1.0)) if share else len(found)
    requests = min(selection.sample, there)
    prompt = answer = limit = 0
    for passage in found:
        messages = asking.messages(passage.text, passage.before, passage.after)
        asked = messages_for(messages, asking.language, settings.structured != "off")
        prompt += sum(estimated_tokens(message["content"]) + TOKENS_A_MESSAGE for message in asked)
        answer += passage.tokens
        limit += asking.answer_tokens(passage.tokens)
    scale = requests / len(found)
    expected: dict[str, Any] = {"prompt_tokens": round(scale * prompt), "output_tokens": round(scale * answer)}
    repeated = sum(1 << attempt for attempt in range(settings.tries))
    at_most: dict[str, Any] = {
        "prompt_tokens": round(scale * prompt * settings.tries), "output_tokens": round(scale * limit * repeated),
    }  # fmt: skip
    result: dict[str, Any] = {
        "documents_looked_at": documents, "share_looked_at": share, "passages_there": there,
        "passed_over": dict(passed_over), "requests": requests, "requests_at_most": requests * settings.tries,
        "expected": expected, "at_most": at_most,
    }  # fmt: skip
    if selection.by_perplexity:
        result["passages_to_score"] = min(selection.drawn, there)
    if budget.input_price or budget.output_price:
        for figures in (expected, at_most):
            figures["cost"] = budget.cost(figures["prompt_tokens"], 0, figures["output_tokens"])
    return result


def print_dry_run(result: dict[str, Any], sample: int, as_json: bool) -> int:
    """Print the estimate as a table or JSON."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    about = "" if result["share_looked_at"] > _WHOLE else "about "
    print(
        f"dry run: nothing was asked; {result['documents_looked_at']:,} documents looked at "
        f"({100 * result['share_looked_at']:.3g} % of the input), {about}{result['passages_there']:,} passages there"
    )
    if result["requests"] < sample:
        print(f"--sample {sample:,} is more than there is: {result['requests']:,} would be asked")
    if "passages_to_score" in result:
        print(f"passages to score under the perplexity model: {result['passages_to_score']:,}")
    table = Table(box=None, pad_edge=False)
    for name in ("", "expected", "at most"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("requests", f"{result['requests']:,}", f"{result['requests_at_most']:,}")
    for key, label in (("prompt_tokens", "prompt tokens"), ("output_tokens", "answer tokens"), ("cost", "cost")):
        if key in result["expected"]:
            table.add_row(label, *(_amount(key, result[kind][key]) for kind in ("expected", "at_most")))
    Console(width=110, highlight=False).print(table)
    return 0


def _amount(key: str, value: float) -> str:
    return f"{value:,.2f}" if key == "cost" else f"{value:,}"
