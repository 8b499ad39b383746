"""`megatron-native train-first-look`: a classifier that tells passages to rewrite from those that may stay."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_native.alignment.first_look_classifier import Example, Row

SUMMARY = """Train the classifier of the first look on seed pairs: passages and what the expert made of them. It learns which
passages the expert changed; those it is sure about pass through the worker unchanged."""
EXAMPLES = """\
  megatron-native train-first-look --seeds pairs.jsonl --output first_look.npz
  megatron-native train-first-look --seeds rewrite_seed_data.json --output first_look.npz --miss-rate 0.01

The table says, for pairs that were held out, which share of passages each threshold skips and which share of needed rewrites
it misses. docs/rules.md says more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--seeds", required=True, nargs="+", metavar="FILE", help="records with origin and rewritten")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.npz", help="the classifier")
    parser.add_argument(
        "--min-change", type=float, default=0.02, metavar="SHARE",
        help="share of words changed from which a rewrite was needed (0.02)",
    )  # fmt: skip
    parser.add_argument(
        "--miss-rate", type=float, default=0.02, metavar="SHARE", help="needed rewrites that may be missed (0.02)"
    )
    parser.add_argument(
        "--held-out", type=float, default=0.3, metavar="SHARE",
        help="pairs kept apart: half choose the threshold, half are reported (0.3)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=6, help="passes over the pairs (6)")
    parser.add_argument("--seed", type=int, default=1234, help="of the split and the order (1234)")
    parser.add_argument("--json", action="store_true", help="the table as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Train, write, print the table."""
    import json

    from megatron_native.alignment.first_look_classifier import TrainingSettings, train

    settings = TrainingSettings(
        min_change=arguments.min_change, miss_rate=arguments.miss_rate, held_out=arguments.held_out,
        epochs=arguments.epochs, seed=arguments.seed,
    )  # fmt: skip
    settings.check()
    trained = train(list(_examples(arguments.seeds, settings.min_change)), settings)
    trained.classifier.save(arguments.output)
    if arguments.json:
        print(json.dumps(trained.classifier.metadata, ensure_ascii=False, indent=2))
        return 0
    print(f"{trained.pairs} held-out pairs, {trained.needed} of them needed a rewrite")
    print("threshold  skipped  missed  (95 % interval)")
    for row in trained.rows:
        print(_line(row))
    print(f"chosen for a miss rate of {settings.miss_rate:.1%}, on pairs of its own:")
    print(_line(trained.chosen))
    return 0


def _line(row: Row) -> str:
    return (
        f"{row.threshold:9.3f}  {row.skipped:7.1%}  {row.missed:6.2%}  ({row.missed_low:.2%} to {row.missed_high:.2%})"
    )


def _examples(seeds: list[str], min_change: float) -> Iterator[Example]:
    """The pairs, each origin as the rules leave it: the first look comes after them."""
    from megatron_native.alignment.first_look_classifier import Example, changed_share
    from megatron_native.alignment.rules import build_rules
    from megatron_native.documents.inputs import expand_inputs
    from megatron_native.documents.readers import read_documents
    from megatron_native.documents.records import Refusal
    from megatron_native.errors import UserError

    rules = build_rules()
    for path in expand_inputs(seeds):
        for record in read_documents(path, text_key="rewritten"):
            if isinstance(record, Refusal):
                raise UserError(f"{path}, offset {record.offset}: {record.reason} {record.detail}: give whole pairs.")
            origin = record.metadata.get("origin")
            if not isinstance(origin, str):
                raise UserError(
                    f"{path}, offset {record.offset}: no text under 'origin': give pairs of origin, rewritten."
                )
            # Without the rules' edits: a rewriting tidies whole documents, so its passages come to the look with none.
            text = rules.apply(origin).text
            yield Example(text, {}, changed_share(text, record.text) >= min_change)
