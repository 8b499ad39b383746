"""Verdicts on the terminal: one pair with all its judgements, or the account of a run by gate."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_native.alignment.gates.judging import Verdict
from megatron_native.corpus.account_table import print_account
from megatron_native.corpus.stage import StageResult

_WIDTH = 110


def print_verdict(origin: str, rewritten: str, verdict: Verdict, as_json: bool) -> None:
    """Every gate's judgement of one pair; texts and reasons on lines of their own, so that Arabic reads from the right."""
    if as_json:
        print(json.dumps({"origin": origin, "rewritten": rewritten, **verdict.as_json()}, ensure_ascii=False, indent=2))
        return
    print(f"origin:\n{origin}\n\nrewritten:\n{rewritten}\n")
    table = Table(box=None, pad_edge=False)
    for column in ("gate", "score", "verdict"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for judgement in verdict.judgements:
        table.add_row(judgement.gate, f"{judgement.score:g}", "passed" if judgement.passed else "REFUSED")
    Console(width=_console_width(), highlight=False, markup=False).print(table)
    for judgement in verdict.judgements:
        if judgement.reason:
            print(f"\n{judgement.gate}:\n  {judgement.reason}")
    print(f"\n{'The pair passes.' if verdict.passed else 'The pair is refused.'}")


def print_gate_account(result: StageResult, as_json: bool) -> int:
    """The account of a run and, of each gate, what it refused; the exit code."""
    code = print_account(result, as_json)
    if as_json or not result.manifest:
        return code
    counts: Mapping[str, Mapping[str, int]] = result.manifest["gates"]
    judged = max(1, result.manifest["counts"]["read"] - sum(result.manifest["counts"]["quarantined"].values()))
    table = Table(box=None, pad_edge=False)
    for column in ("gate", "refused", "share", "alone"):
        table.add_column(column, justify="left" if column == "gate" else "right")
    for gate, found in sorted(counts.items(), key=lambda item: -item[1]["refused"]):
        share = f"{100 * found['refused'] / judged:.2f} %"
        table.add_row(gate, f"{found['refused']:,}", share, f"{found['alone']:,}")
    print("\nby gate (a pair may be refused by several; 'alone': by no other gate)")
    Console(width=_console_width(), highlight=False).print(table)
    return code


def print_settings(settings: Mapping[str, Mapping[str, Any]], as_json: bool) -> None:
    """The settings in force."""
    if as_json:
        print(json.dumps(settings, ensure_ascii=False, indent=2))
        return
    width = max(map(len, settings))
    for gate, values in settings.items():
        others = ", ".join(f"{key}={value}" for key, value in values.items() if key != "enabled")
        print(f"{gate:<{width}}  {'on ' if values['enabled'] else 'off'}  {others}", file=sys.stdout)


def _console_width() -> int:
    return _WIDTH
