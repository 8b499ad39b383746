"""Has the model forgotten? Held-out bits per byte against where the run began, by the rules of the configuration.

A set is whatever the configuration calls one, a language or a domain alike. Nothing here needs torch: scores go in,
verdicts come out, and what the monitor remembers between them is a JSON object that travels in the checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_native.config.run import HeldoutRule
from megatron_native.errors import UserError


@dataclass(frozen=True)
class Verdict:
    """A rule that was set off at an evaluation, and what is to be done."""

    step: int
    set: str
    """Name of the held-out set."""
    baseline: float
    """Bits per byte at the first evaluation."""
    score: float
    """Bits per byte now."""
    increase: float
    """Relative: score / baseline - 1; inf for a score that is not finite."""
    action: Literal["warn", "stop", "reweight"]
    """What the rule says; `warn` for a `reweight` rule that has acted its `max_times`."""
    message: str
    """A line for the console."""
    factors: dict[str, float] = field(default_factory=dict)
    """With `reweight`: dataset name → factor of its weight (see `reweight`)."""


class ForgettingMonitor:
    """Judges every evaluation of a run by its rules.

    Each rule is judged on its own, so a set may have one that warns early and one that stops late. A `reweight` rule acts
    at every evaluation that sets it off, up to `max_times` in the whole run.
    """

    def __init__(self, rules: Sequence[HeldoutRule]) -> None:
        self.rules = list(rules)
        self.baseline: dict[str, float] = {}
        """Bits per byte of each set at its first evaluation."""
        self._acted = {_key(rule): 0 for rule in self.rules}

    def judge(self, step: int, scores: Mapping[str, float]) -> list[Verdict]:
        """The rules that the evaluation after `step` sets off, in the order of the configuration.

        A set's first score becomes its baseline. Sets without a rule are remembered and not judged.

        Args:
            step: the step after which was evaluated.
            scores: bits per byte by set; a set that was not measured this time is not judged.

        Raises:
            UserError: a first score is not a positive number, so nothing could be compared with it.
        """
        for name, score in scores.items():
            if name not in self.baseline:
                if not (math.isfinite(score) and score > 0):
                    raise UserError(
                        f"the first evaluation of the held-out set '{name}' gives {score} bits per byte (step {step}), with "
                        "which nothing can be compared: look at the set and at the model, or take its rules out of "
                        "evaluation.rules."
                    )
                self.baseline[name] = score
        verdicts = (self._judge(rule, step, scores[rule.set]) for rule in self.rules if rule.set in scores)
        return [verdict for verdict in verdicts if verdict is not None]

    def _judge(self, rule: HeldoutRule, step: int, score: float) -> Verdict | None:
        baseline = self.baseline[rule.set]
        increase = score / baseline - 1 if math.isfinite(score) else math.inf
        if increase <= rule.max_increase:
            return None
        said = (
            f"step {step}: held-out set '{rule.set}' has {score:.4f} bits per byte, {increase:+.2%} since the first "
            f"evaluation ({baseline:.4f}; allowed {rule.max_increase:+.2%})"
        )
        action = rule.action
        if action == "reweight":
            acted = self._acted[_key(rule)]
            if acted >= rule.max_times:
                return Verdict(
                    step, rule.set, baseline, score, increase, "warn",
                    f"{said}: weights have been changed {acted} of {rule.max_times} times and stay as they are",
                )  # fmt: skip
            self._acted[_key(rule)] = acted + 1
            factors = ", ".join(f"{name} × {factor:g}" for name, factor in rule.reweight.items())
            said += f": weights change, {factors} ({acted + 1} of {rule.max_times})"
        elif action == "stop":
            said += ": the run is saved and stops"
        return Verdict(step, rule.set, baseline, score, increase, action, said, dict(rule.reweight))

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON."""
        return {"baseline": dict(self.baseline), "acted": {key: times for key, times in self._acted.items() if times}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`. A rule that was changed since then has not acted yet; baselines stay."""
        self.baseline = {name: float(score) for name, score in state["baseline"].items()}
        self._acted = {_key(rule): int(state["acted"].get(_key(rule), 0)) for rule in self.rules}


def reweight(blend: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    """Weights of a blend with some multiplied; weights are relative, so nothing is scaled back to a sum.

    Args:
        blend: dataset name → weight.
        factors: dataset name → factor.

    Raises:
        UserError: a factor names a dataset that the blend does not have, or no weight would be left.
    """
    unknown = [name for name in factors if name not in blend]
    if unknown:
        raise UserError(
            f"a rule of evaluation.rules reweights '{unknown[0]}', which the blend does not have ({', '.join(blend)}): name "
            "its datasets as data.blend does."
        )
    weights = {name: weight * factors.get(name, 1.0) for name, weight in blend.items()}
    if not any(weight > 0 for weight in weights.values()):
        raise UserError(
            f"reweighting the blend by {dict(factors)} leaves every dataset at weight 0: give a factor above 0 to one "
            "that has a weight."
        )
    return weights


def _key(rule: HeldoutRule) -> str:
    """What a rule is known by across a resume: all that it says, but how often it may act."""
    return json.dumps(rule.model_dump(exclude={"max_times"}), sort_keys=True)
