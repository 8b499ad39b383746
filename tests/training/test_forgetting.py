"""The rules on held-out sets: what sets one off, what it says, how often it acts, and that a resume forgets none of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from megatron_native.config.run import HeldoutRule
from megatron_native.errors import UserError
from megatron_native.training.forgetting import ForgettingMonitor, Verdict, reweight

WARN = HeldoutRule(set="en", max_increase=0.02)
STOP = HeldoutRule(set="en", max_increase=0.10, action="stop")
REPLAY = HeldoutRule(set="law", max_increase=0.05, action="reweight", reweight={"en": 2.0, "ar": 0.5}, max_times=2)


def actions(verdicts: list[Verdict]) -> list[tuple[str, str]]:
    return [(verdict.set, verdict.action) for verdict in verdicts]


def test_rules_are_judged_against_the_first_evaluation() -> None:
    monitor = ForgettingMonitor([WARN, STOP, REPLAY])
    assert monitor.judge(0, {"en": 1.0, "law": 2.0, "ar": 3.0}) == []
    assert monitor.baseline == {"en": 1.0, "law": 2.0, "ar": 3.0}
    assert monitor.judge(10, {"en": 1.0199, "law": 2.0, "ar": 9.0}) == [], "no rule is broken, ar has none"
    assert monitor.judge(20, {"en": 0.5, "law": 1.0, "ar": 3.0}) == [], "better is never a fault"
    (verdict,) = monitor.judge(30, {"en": 1.03, "law": 2.0, "ar": 3.0})
    assert (verdict.step, verdict.set, verdict.action, verdict.baseline, verdict.score) == (30, "en", "warn", 1.0, 1.03)
    assert verdict.increase == pytest.approx(0.03)
    for part in ("step 30", "'en'", "1.0300 bits per byte", "+3.00%", "1.0000", "+2.00%"):
        assert part in verdict.message
    assert actions(monitor.judge(40, {"en": 1.2, "law": 2.0, "ar": 3.0})) == [("en", "warn"), ("en", "stop")]
    assert monitor.baseline["en"] == 1.0, "the baseline never moves"


def test_an_increase_of_exactly_the_allowed_one_is_allowed() -> None:
    rule = HeldoutRule(set="en", max_increase=0.25)
    monitor = ForgettingMonitor([rule])
    monitor.judge(0, {"en": 4.0})
    assert monitor.judge(1, {"en": 5.0}) == []
    assert actions(monitor.judge(2, {"en": 5.0000001})) == [("en", "warn")]


def test_a_reweight_rule_acts_max_times_and_then_warns() -> None:
    monitor = ForgettingMonitor([REPLAY])
    monitor.judge(0, {"law": 2.0})
    first, second, third, fourth = (monitor.judge(step, {"law": 2.2})[0] for step in (1, 2, 3, 4))
    assert [verdict.action for verdict in (first, second, third, fourth)] == ["reweight", "reweight", "warn", "warn"]
    assert first.factors == {"en": 2.0, "ar": 0.5}
    assert third.factors == {}
    assert "en × 2, ar × 0.5 (1 of 2)" in first.message
    assert "2 of 2 times" in third.message


def test_a_resumed_monitor_goes_on_where_the_old_one_was() -> None:
    monitor = ForgettingMonitor([WARN, REPLAY])
    monitor.judge(0, {"en": 1.0, "law": 2.0})
    monitor.judge(10, {"en": 1.0, "law": 2.2})
    state = json.loads(json.dumps(monitor.state()))
    resumed = ForgettingMonitor([REPLAY, WARN])  # the order of the rules is nobody's business
    resumed.restore(state)
    scores = {"en": 1.5, "law": 2.2}
    for step in (20, 30):
        assert sorted(actions(resumed.judge(step, scores))) == sorted(actions(monitor.judge(step, scores)))
    assert actions(resumed.judge(40, scores)) == [("law", "warn"), ("en", "warn")], "it had acted once before"
    assert resumed.state() == monitor.state()


def test_a_resume_may_raise_how_often_a_rule_acts_and_a_changed_rule_starts_anew() -> None:
    monitor = ForgettingMonitor([REPLAY])
    monitor.judge(0, {"law": 2.0})
    monitor.judge(1, {"law": 2.2})
    monitor.judge(2, {"law": 2.2})
    more = ForgettingMonitor([REPLAY.model_copy(update={"max_times": 3})])
    more.restore(monitor.state())
    assert [more.judge(step, {"law": 2.2})[0].action for step in (3, 4)] == ["reweight", "warn"]
    other = ForgettingMonitor([REPLAY.model_copy(update={"reweight": {"en": 3.0}})])
    other.restore(monitor.state())
    assert [other.judge(step, {"law": 2.2})[0].action for step in (3, 4, 5)] == ["reweight", "reweight", "warn"]


def test_a_set_added_later_gets_its_baseline_when_it_is_first_measured() -> None:
    monitor = ForgettingMonitor([WARN])
    assert monitor.judge(0, {"ar": 1.0}) == []
    assert monitor.judge(10, {"en": 1.0}) == []
    assert actions(monitor.judge(20, {"en": 1.1})) == [("en", "warn")]


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_sets_every_rule_off(score: float) -> None:
    monitor = ForgettingMonitor([WARN, STOP])
    monitor.judge(0, {"en": 1.0})
    assert actions(monitor.judge(1, {"en": score})) == [("en", "warn"), ("en", "stop")]


@pytest.mark.parametrize("score", [math.nan, math.inf, 0.0, -1.0])
def test_a_baseline_that_is_no_positive_number_is_refused(score: float) -> None:
    with pytest.raises(UserError, match=r"'en' gives .* bits per byte") as error:
        ForgettingMonitor([WARN]).judge(0, {"en": score})
    assert "evaluation.rules" in str(error.value)


def test_reweight_multiplies_weights_and_leaves_the_rest() -> None:
    blend = {"ar": 0.75, "en": 0.25, "code": 0.0}
    assert reweight(blend, {"en": 2.0, "ar": 0.0}) == {"ar": 0.0, "en": 0.5, "code": 0.0}
    assert blend == {"ar": 0.75, "en": 0.25, "code": 0.0}


def test_reweight_refuses_unknown_datasets_and_an_empty_blend() -> None:
    with pytest.raises(UserError, match=r"'fr', which the blend does not have \(ar, en\)"):
        reweight({"ar": 1.0, "en": 1.0}, {"fr": 2.0})
    with pytest.raises(UserError, match="leaves every dataset at weight 0"):
        reweight({"ar": 1.0, "en": 0.0}, {"ar": 0.0})


def test_the_rules_need_no_torch() -> None:
    code = "import sys, megatron_native.training.forgetting; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
