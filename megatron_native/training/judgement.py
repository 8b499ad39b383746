"""Is a step's loss to be learned from? Judged between the gradients and the update, the same on every rank.

Loss and gradient norm that are no numbers: computed again (a fault of the machine does not come twice), then skipped,
within a budget. A loss far above those before it: what the configuration says, within a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_native.config.run import FaultsSection
from megatron_native.training import incidents as kinds
from megatron_native.training.course import StepPlan
from megatron_native.training.spikes import LossMonitor
from megatron_native.training.step import StepResult


@dataclass(frozen=True)
class Verdict:
    """What becomes of a step."""

    result: StepResult
    updates: bool = True
    rolls_back: bool = False
    stops: bool = False
    incident: str | None = None
    """Its kind, where there is something to record."""
    message: str = ""


class Judgement:
    """Judges the steps of a run, one after another.

    Args:
        settings: budgets and actions.
    """

    def __init__(self, settings: FaultsSection) -> None:
        self.settings = settings
        self.losses = LossMonitor(settings.spike)
        self.skipped_nonfinite = 0
        self.spikes_acted_on = 0

    def judge(self, plan: StepPlan, result: StepResult, again: Callable[[], StepResult]) -> Verdict:
        """What becomes of a step with this result; `again` computes it anew."""
        noted: dict[str, Any] = {}
        if not result.finite and self.settings.retry_nonfinite:
            first, result = result, again()
            if result.finite:
                noted = {
                    "incident": kinds.RECOMPUTED,
                    "message": f"step {plan.step}: {_figures(first)}; computed again it was {_figures(result)}, which is used",
                }
        if not result.finite:
            return self._nonfinite(plan, result)
        spike = None if self.settings.spike.action == "none" else self.losses.judge(result.loss)
        if spike is None:
            self.losses.accept(result.loss)
            return Verdict(result, **noted)
        return self._spike(plan, result, f"step {plan.step}: {spike}")

    def _nonfinite(self, plan: StepPlan, result: StepResult) -> Verdict:
        what, settings = f"step {plan.step}: {_figures(result)}", self.settings
        skipped = StepResult(result.loss, result.tokens, result.grad_norm, updated=False)
        if self.skipped_nonfinite >= settings.nonfinite_budget:
            message = f"{what}, and the budget of {settings.nonfinite_budget} skips (faults.nonfinite_budget) is used up"
            return Verdict(skipped, False, stops=True, incident=kinds.NOT_FINITE, message=message)
        self.skipped_nonfinite += 1
        message = f"{what}; the update is skipped ({self.skipped_nonfinite} of {settings.nonfinite_budget})"
        return Verdict(skipped, False, incident=kinds.NOT_FINITE, message=message)

    def _spike(self, plan: StepPlan, result: StepResult, what: str) -> Verdict:
        settings = self.settings.spike
        action = settings.action
        if action in ("skip", "rollback"):
            if self.spikes_acted_on >= settings.budget:
                action, what = "stop", f"{what}, and the budget of {settings.budget} (faults.spike.budget) is used up"
            self.spikes_acted_on += 1
        if action == "stop":
            return Verdict(result, False, stops=True, incident=kinds.LOSS_SPIKE, message=f"{what}; the run stops before it")
        if action == "rollback":
            message = f"{what}; back to the last checkpoint, and past the data since"
            return Verdict(result, False, rolls_back=True, incident=kinds.LOSS_SPIKE, message=message)
        if action == "skip":
            skipped = StepResult(result.loss, result.tokens, result.grad_norm, updated=False)
            return Verdict(skipped, False, incident=kinds.LOSS_SPIKE, message=f"{what}; the update is skipped")
        self.losses.accept(result.loss)
        return Verdict(result, incident=kinds.LOSS_SPIKE if action == "warn" else None, message=what)

    def state(self) -> dict[str, Any]:
        """What a resume needs, as plain values."""
        return {
            "losses": self.losses.state(), "skipped_nonfinite": self.skipped_nonfinite,
            "spikes_acted_on": self.spikes_acted_on,
        }  # fmt: skip

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from a saved state."""
        if state:
            self.losses.restore(state["losses"])
            self.skipped_nonfinite, self.spikes_acted_on = state["skipped_nonfinite"], state["spikes_acted_on"]

    def back_to(self, monitors: dict[str, Any]) -> None:
        """Take the losses of a checkpoint that the run has gone back to; what was acted on stays counted."""
        state = monitors.get("judgement")
        self.losses = LossMonitor(self.settings.spike)
        if state:
            self.losses.restore(state["losses"])


def _figures(result: StepResult) -> str:
    return f"loss {result.loss:.4f}, gradient norm {result.grad_norm:.4g}"
