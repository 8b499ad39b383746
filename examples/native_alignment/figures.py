"""The experiment's figures: how close the rewrites are to the clean text, and what models learned from each version."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from texts import by_id, stage_texts

from megatron_native.alignment.character_errors import character_error_rate
from megatron_native.alignment.rewriting.export import decisions_of

COMPARED = 20_000
"""Passages whose characters are compared, at most."""
_T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t at 97.5 % by degrees of freedom."""


def figures(work: Path, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that the table shows, from what the steps wrote below `work`."""
    clean = by_id(work / "texts/corpus/clean.jsonl")
    versions = {
        "corrupted": by_id(work / "texts/corpus/corrupted.jsonl"), "after the rules": stage_texts(work / "rules"),
    }  # fmt: skip
    result: dict[str, Any] = {"passages": len(clean)}
    if (work / "rewritten").is_dir():
        versions["after the worker and the gates"] = stage_texts(work / "rewritten")
        result["worker"] = _of_worker(work, clean)
    compared = sorted(clean)[:COMPARED]
    result["character_error_rate"] = {
        name: character_error_rate((clean[key], texts[key]) for key in compared) for name, texts in versions.items()
    }
    runs = {arm: [_bits(work / "runs" / f"{arm}-{seed}") for seed in seeds] for arm in arms}
    result["seeds"] = list(seeds)
    result["tokens"] = _consumed(work / "runs" / f"{arms[0]}-{seeds[0]}")
    result["before"] = runs[arms[0]][0][0]
    result["bits_per_byte"] = {arm: [after for _, after in pairs] for arm, pairs in runs.items()}
    result["arms"] = {arm: _interval(values) for arm, values in result["bits_per_byte"].items()}
    first = arms[0]
    result["against"] = first
    result["differences"] = {
        arm: _interval([a - b for a, b in zip(result["bits_per_byte"][arm], result["bits_per_byte"][first])])
        for arm in arms[1:]
    }
    return result


def _of_worker(work: Path, clean: dict[str, str]) -> dict[str, Any]:
    """What the worker itself wrote, before the gates, and what the gates kept from the corpus."""
    states: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    before: list[tuple[str, str]] = []
    after: list[tuple[str, str]] = []
    spoiled = spoiled_kept = 0
    for decision in decisions_of(work / "rewritten"):
        states[decision["state"]] += 1
        refused.update(decision.get("refused") or [])
        if len(before) == COMPARED:
            continue
        reference = clean[decision["id"].partition("#")[0]]
        origin = decision["origin"]
        written = decision.get("rewritten") or decision.get("answer") or origin
        before.append((reference, origin))
        after.append((reference, written))
        if character_error_rate([after[-1]]) > character_error_rate([before[-1]]):
            spoiled += 1
            spoiled_kept += decision["state"] == "rewritten"
    return {
        "states": dict(states), "refused_by": dict(refused), "answers": len(after), "spoiled": spoiled,
        "spoiled_and_kept": spoiled_kept,
        "character_error_rate": {
            "what it was given": character_error_rate(before), "what it wrote": character_error_rate(after),
        },
    }  # fmt: skip


def _records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _bits(run: Path) -> tuple[float, float]:
    """Bits per byte of the held-out text before the first step and after the last."""
    found = [record["heldout"]["clean"]["bits_per_byte"] for record in _records(run) if "heldout" in record]
    return found[0], found[-1]


def _consumed(run: Path) -> int:
    return max(record["consumed_tokens"] for record in _records(run) if "consumed_tokens" in record)


def _interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, and the half width of its 95 % interval by Student's t; one value has none."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "half_width": None}
    return {"mean": mean, "half_width": _T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))}


def lines_of(result: dict[str, Any]) -> list[str]:
    """The figures as Markdown."""
    rate = result["character_error_rate"]
    found = ["| version of the corpus | character error rate |", "|---|---|"]
    found += [f"| {name} | {value:.2%} |" for name, value in rate.items()]
    if "worker" in result:
        worker = result["worker"]
        states = ", ".join(f"{count} {state}" for state, count in sorted(worker["states"].items()))
        own = worker["character_error_rate"]
        refused = ", ".join(f"{gate} {count}" for gate, count in Counter(worker["refused_by"]).most_common())
        found += [
            "",
            f"Passages of the worker: {states}. What it was given is {own['what it was given']:.2%} from the clean text, "
            f"what it wrote {own['what it wrote']:.2%}. It took {worker['spoiled']} of {worker['answers']} further away; the "
            f"gates let {worker['spoiled_and_kept']} of these pass. Refused by: {refused or 'no gate'}.",
        ]
    found += [
        "",
        f"Bits per byte of held-out clean text: {result['before']:.4f} before; after {result['tokens']:,} tokens, "
        f"mean of {len(result['seeds'])} seeds with its 95 % interval (Student's t), and the difference from "
        f"`{result['against']}` seed by seed:",
        "",
        "| continued on | bits per byte | difference |",
        "|---|---|---|",
    ]
    for arm, values in result["arms"].items():
        difference = result["differences"].get(arm)
        shown = "" if difference is None else f"{difference['mean']:+.4f}{_plus_minus(difference)}"
        found.append(f"| {arm} | {values['mean']:.4f}{_plus_minus(values)} | {shown} |")
    return found


def _plus_minus(interval: dict[str, Any]) -> str:
    return "" if interval["half_width"] is None else f" ± {interval['half_width']:.4f}"


def print_figures(result: dict[str, Any]) -> None:
    """Print the figures."""
    print("\n".join(lines_of(result)))


def save_figures(result: dict[str, Any], path: Path) -> None:
    """Write them as `path`.md and `path`.json."""
    path.with_suffix(".json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    title = "# Native alignment in miniature\n\nMade by `examples/native_alignment/run.py`.\n"
    path.with_suffix(".md").write_text("\n".join([title, *lines_of(result)]) + "\n", encoding="utf-8")
