"""What a rung of the ladder found: figures with their limits, and the verdict that follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from megatron_native.manifest import json_value

Verdict = Literal["passed", "failed", "not run"]


@dataclass(frozen=True)
class Measure:
    """One figure and how large (or, `at_least`, how small) it may be."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the figure keeps its limit; NaN keeps none."""
        if math.isnan(self.value):
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.name} {self.value:.3g} ({'at least' if self.at_least else 'at most'} {self.limit:g})"


@dataclass(frozen=True)
class RungResult:
    """One rung: its verdict, and what it rests on."""

    rung: str
    verdict: Verdict
    measures: tuple[Measure, ...] = ()
    message: str = ""
    """Why it did not run, how it failed, or under which conditions it passed."""
    world_size: int = 1
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; figures that are no numbers are written as text."""
        measures = [{**asdict(one), "holds": one.holds} for one in self.measures]
        fields: dict[str, Any] = json_value({**asdict(self), "measures": measures})
        return fields


def judged(rung: str, measures: Sequence[Measure], message: str = "") -> RungResult:
    """Passed where there are figures and every one keeps its limit."""
    passed = bool(measures) and all(measure.holds for measure in measures)
    return RungResult(rung, "passed" if passed else "failed", tuple(measures), message)


def not_run(rung: str, reason: str) -> RungResult:
    """A rung that this machine, or this number of processes, can't be put on."""
    return RungResult(rung, "not run", message=reason)


def of_world(result: RungResult, world_size: int, seconds: float) -> RungResult:
    """The result with where and how long it was measured."""
    return replace(result, world_size=world_size, seconds=round(seconds, 2))
