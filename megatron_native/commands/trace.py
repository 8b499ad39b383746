"""`megatron-native trace`: which documents a step read, and which steps and checkpoints a document is in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_native.data.trace import Trace

SUMMARY = "From a step of a run to its documents, or from a document to every step and checkpoint that saw it."
EXAMPLES = """\
  megatron-native trace --run runs/mine                                  what has been read of each dataset
  megatron-native trace --run runs/mine --step 1200                      the documents of a step
  megatron-native trace --run runs/mine --dataset news --document 4711   every step that saw a document, by number …
  megatron-native trace --run runs/mine --dataset news --document https://example.org/article/7   … or by id
  megatron-native trace --run runs/mine --step 1200 --lineage --json     with the manifests behind the datasets

Nothing is logged while training: answers are worked out from the run's ledger and the datasets."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder, or one of its checkpoints")
    parser.add_argument("--step", type=int, metavar="N", help="the documents that this step read")
    parser.add_argument("--document", metavar="N|ID", help="the steps that read this document, by its number from 0 or its id "
                        "(id:7 for an id that is a number); needs --dataset")
    parser.add_argument("--dataset", metavar="NAME", help="the dataset's name in the blend; only its documents")
    parser.add_argument("--moved", action="append", default=[], metavar="NAME=PREFIX", help="where a dataset lies now")
    parser.add_argument("--lineage", action="store_true", help="also the manifests behind the datasets")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Work out the answer and print it."""
    import json

    from megatron_native.data.trace import Trace, lineage
    from megatron_native.errors import UserError

    moved = {}
    for word in arguments.moved:
        name, separator, prefix = word.partition("=")
        if not separator:
            raise UserError(f"--moved {word}: write NAME=PREFIX.")
        moved[name] = Path(prefix)
    trace = Trace(arguments.run, moved)
    if arguments.step is not None and arguments.document is not None:
        raise UserError("--step and --document are two questions: ask one at a time.")
    answer: dict[str, Any]
    if arguments.step is not None:
        answer = _of_step(trace, arguments)
    elif arguments.document is not None:
        answer = _of_document(trace, arguments)
    else:
        answer = {"run": str(arguments.run), "steps": trace.last_step, "datasets": trace.consumption()}
    if arguments.lineage:
        answer["lineage"] = {name: lineage(prefix) for name, prefix in trace.prefixes.items()}
    print(json.dumps(answer, ensure_ascii=False, indent=2) if arguments.json else _table(answer))
    return 0


def _of_step(trace: Trace, arguments: argparse.Namespace) -> dict[str, Any]:
    pieces = [piece for piece in trace.step(arguments.step) if arguments.dataset in (None, piece.dataset)]
    segment = trace.ledger.segments[trace.ledger.segment_of(trace.ledger.samples_of(arguments.step).start)]
    return {
        "step": arguments.step, "phase": segment.phase, "learned": arguments.step not in trace.ledger.not_learned,
        "samples": len(trace.ledger.samples_of(arguments.step)),
        "pieces": [vars(piece) for piece in trace.with_ids(pieces)],
    }  # fmt: skip


def _of_document(trace: Trace, arguments: argparse.Namespace) -> dict[str, Any]:
    from megatron_native.data.trace import find_document
    from megatron_native.errors import UserError

    if arguments.dataset not in trace.prefixes:
        known = ", ".join(trace.prefixes)
        raise UserError(f"--document needs the --dataset that it is in: one of {known}.")
    word = arguments.document
    document = int(word) if word.isdigit() else find_document(trace.prefixes[arguments.dataset], word.removeprefix("id:"))
    sightings = trace.document(arguments.dataset, document)
    first = sightings[0].step if sightings else None
    return {
        "dataset": arguments.dataset, "document": document, "steps": [vars(sighting) for sighting in sightings],
        "checkpoints": trace.checkpoints_after(first) if first is not None else [],
    }  # fmt: skip


def _table(answer: dict[str, Any]) -> str:
    if "pieces" in answer:
        lines = [f"step {answer['step']} · phase {answer['phase']} · {answer['samples']} samples"
                 + ("" if answer["learned"] else " · its update was skipped"),
                 f"{'sample':>10} {'dataset':<16} {'document':>10} {'tokens':>17} {'epoch':>5}  id"]
        for piece in answer["pieces"]:
            tokens = f"{piece['start']:,}–{piece['stop'] - 1:,}"
            lines.append(f"{piece['sample']:>10} {piece['dataset']:<16} {piece['document']:>10} {tokens:>17} "
                         f"{piece['epoch']:>5}  {piece['id'] or ''}")
    elif "document" in answer:
        lines = [f"document {answer['document']} of {answer['dataset']}"]
        if not answer["steps"]:
            lines.append("no step of this run has read any of it")
        for seen in answer["steps"]:
            lines.append(f"  step {seen['step']:>8}   epoch {seen['epoch']}" + ("" if seen["learned"] else "   update skipped"))
        if answer["checkpoints"]:
            lines.append("checkpoints that have learned from it: " + ", ".join(answer["checkpoints"]))
    else:
        lines = [f"{answer['run']}: {answer['steps']} steps",
                 f"{'dataset':<16} {'sequences':>12} {'tokens':>16} {'documents':>12} {'epochs':>8}"]
        for name, read in answer["datasets"].items():
            lines.append(f"{name:<16} {read['sequences']:>12,} {read['tokens']:>16,} {read['documents']:>12,.0f} "
                         f"{read['epochs']:>8.3f}")
    for name, chain in answer.get("lineage", {}).items():
        stages = " ← ".join(f"{entry['stage']} ({entry['manifest']})" for entry in chain)
        lines.append(f"behind {name}: {stages or 'no manifest'}")
    return "\n".join(lines)
