"""The ladder on the terminal."""

from __future__ import annotations

import textwrap

from megatron_native.training.qualify.ladder import RUNGS
from megatron_native.training.qualify.verdict import RungResult

_MARKS = {"passed": "passed", "failed": "FAILED", "not run": "not run here"}
_WIDTH = 110


def rung_lines(result: RungResult) -> list[str]:
    """One rung: verdict, title, figures with their limits, message."""
    title = next(rung.title for rung in RUNGS if rung.name == result.rung)
    seconds = "" if result.verdict == "not run" else f" ({result.seconds:.1f} s)"
    lines = [f"{_MARKS[result.verdict]:<13} {result.rung:<14} {title}{seconds}"]
    lines += [f"{'':<13} {'' if measure.holds else '✗ '}{measure}" for measure in result.measures]
    lines += textwrap.wrap(result.message, _WIDTH, initial_indent=" " * 14, subsequent_indent=" " * 14)
    return lines


def summary(results: list[RungResult]) -> str:
    """How many passed, failed, did not run."""
    count = {verdict: sum(result.verdict == verdict for result in results) for verdict in _MARKS}
    return f"{count['passed']} rungs passed, {count['failed']} failed, {count['not run']} not run here"
