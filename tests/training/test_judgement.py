"""What becomes of a step whose loss is no number, or far above those before it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from megatron_native.config.phases import resolve_phases
from megatron_native.config.run import FaultsSection, RunConfig
from megatron_native.training.course import StepPlan
from megatron_native.training.judgement import Judgement, Verdict
from megatron_native.training.step import StepResult

RUN = RunConfig.model_validate({
    "run_dir": Path("x"), "model": {"hf_config": "x"}, "data": {"blend": [{"prefix": "a"}]},
    "training": {"steps": 10, "global_batch_size": 1},
})  # fmt: skip
NAN = StepResult(math.nan, 5, math.nan)


def plan(step: int) -> StepPlan:
    return StepPlan(step, resolve_phases(RUN)[0], False, step - 1, 1, 1e-3)


def result(loss: float) -> StepResult:
    return StepResult(loss, 5, 1.0)


def never() -> StepResult:
    raise AssertionError("a step that is fine is not computed again")


def judged(losses: list[float], **settings: Any) -> tuple[Judgement, list[Verdict]]:
    judgement = Judgement(FaultsSection.model_validate(settings))
    return judgement, [judgement.judge(plan(step), result(loss), never) for step, loss in enumerate(losses, 1)]


def test_a_fault_that_does_not_come_twice_costs_nothing() -> None:
    verdict = Judgement(FaultsSection()).judge(plan(3), NAN, lambda: result(2.5))
    assert verdict.updates and not verdict.stops
    assert verdict.result.loss == 2.5
    assert verdict.incident == "recomputed"


def test_what_is_twice_no_number_is_skipped_until_the_budget_is_used_up() -> None:
    judgement = Judgement(FaultsSection(nonfinite_budget=2))
    verdicts = [judgement.judge(plan(step), NAN, lambda: NAN) for step in (1, 2, 3)]
    assert [verdict.updates for verdict in verdicts] == [False] * 3
    assert [verdict.stops for verdict in verdicts] == [False, False, True]
    assert not verdicts[0].result.updated
    assert "budget of 2 skips" in verdicts[2].message


def test_infinite_gradients_are_no_numbers_either() -> None:
    verdict = Judgement(FaultsSection(retry_nonfinite=False)).judge(plan(1), StepResult(2.0, 5, math.inf), never)
    assert not verdict.updates


STEADY = [2.0, 2.1, 1.9, 2.0]


@pytest.mark.parametrize(
    ("action", "updates", "back", "stops"),
    [("none", True, False, False), ("warn", True, False, False), ("skip", False, False, False),
     ("rollback", False, True, False), ("stop", False, False, True)],
)  # fmt: skip
def test_a_spike_is_dealt_with_as_configured(action: str, updates: bool, back: bool, stops: bool) -> None:
    _, verdicts = judged([*STEADY, 5.0], spike={"action": action, "window": 4})
    assert all(verdict.updates and verdict.incident is None for verdict in verdicts[:4])
    last = verdicts[4]
    assert (last.updates, last.rolls_back, last.stops) == (updates, back, stops)
    assert (last.incident is None) == (action == "none")


def test_the_budget_of_spikes_ends_in_a_stop() -> None:
    _, verdicts = judged([*STEADY, 5.0, 5.0, 5.0], spike={"action": "skip", "window": 4, "budget": 2})
    assert [verdict.stops for verdict in verdicts[4:]] == [False, False, True]


def test_skipped_losses_are_nothing_to_compare_with() -> None:
    _, verdicts = judged([*STEADY, 5.0, 5.0], spike={"action": "skip", "window": 4})
    assert [verdict.incident for verdict in verdicts[4:]] == ["loss_spike", "loss_spike"]


def test_judging_goes_on_alike_after_a_resume() -> None:
    settings = {"spike": {"action": "skip", "window": 4}}
    first, _ = judged([*STEADY, 5.0], **settings)
    second = Judgement(FaultsSection.model_validate(settings))
    second.restore(first.state())
    assert second.judge(plan(6), result(5.0), never).message == first.judge(plan(6), result(5.0), never).message
    assert second.state() == first.state()
