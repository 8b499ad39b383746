"""Has the model stopped getting better? A held-out set's loss against its best, by `evaluation.early_stop`.

Nothing here needs torch: losses go in, outcomes come out, and what is remembered between them is a JSON object that travels
in the checkpoint. `RUN/best.json` says which checkpoint is the best one so far, once it is whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_native.config.run import EarlyStopRule
from megatron_native.manifest import write_json
from megatron_native.training.retention import checkpoint_folder

BEST_FILE = "best.json"


@dataclass(frozen=True)
class BestCheckpoint:
    """What `best.json` says.

    Attributes:
        set: the held-out set that decides.
        step: after which the checkpoint was made.
        loss: the set's mean cross entropy per token there, in nats.
        checkpoint: its folder.
    """

    set: str
    step: int
    loss: float
    checkpoint: Path


class EarlyStop:
    """Judges the evaluations of a run by its rule; without a rule it judges nothing.

    The evaluation before the first step is left out: the best is a checkpoint of the run.
    """

    def __init__(self, rule: EarlyStopRule | None) -> None:
        self.rule = rule
        self.best_step: int | None = None
        self.best_loss = math.inf
        self.waited = 0
        """Evaluations since the best one."""
        self._judged = 0
        self._unsaved: dict[int, float] = {}
        """Loss by step of those that were the best, and of whose checkpoint nothing is known yet."""
        self._saved: tuple[int, float] | None = None
        """Step and loss of the newest best whose checkpoint is whole."""

    @property
    def exhausted(self) -> bool:
        """Whether as many evaluations brought no improvement as the rule has patience for."""
        return self.rule is not None and self.rule.patience is not None and self.waited >= self.rule.patience

    def judge(self, step: int, losses: Mapping[str, float]) -> bool:
        """Take in the evaluation after `step`; whether it is the best so far.

        Args:
            step: the step after which was evaluated; one that was judged before is not judged again.
            losses: mean cross entropy per token by set. One that is not finite is no improvement.
        """
        if self.rule is None or step <= self._judged or self.rule.set not in losses:
            return False
        self._judged, loss = step, losses[self.rule.set]
        threshold = self.best_loss if self.best_step is None else self.best_loss * (1 - self.rule.min_improvement)
        if math.isfinite(loss) and loss < threshold:
            self.best_step, self.best_loss, self.waited = step, loss, 0
            self._unsaved[step] = loss
            return True
        self.waited += 1
        return False

    def saved(self, step: int) -> None:
        """Take in that the checkpoint after `step` is whole."""
        if step in self._unsaved:
            self._saved = (step, self._unsaved.pop(step))

    def not_saved(self, step: int) -> None:
        """Take in that there is no checkpoint after `step`: the best is the one before it again, if there is one."""
        self._unsaved.pop(step, None)
        if step == self.best_step:
            self.best_step, self.best_loss = self._saved or (None, math.inf)

    @property
    def message(self) -> str:
        """Why the run ends, for people."""
        assert self.rule is not None
        since = f"step {self.best_step} ({self.best_loss:.4f} nats per token)" if self.best_step else "the beginning"
        smaller = f" of {self.rule.min_improvement:.2%} or more" if self.rule.min_improvement else ""
        return (
            f"step {self._judged}: the loss of the held-out set '{self.rule.set}' has shown no improvement{smaller} in "
            f"{self.waited} evaluations since {since}: the run ends (evaluation.early_stop)"
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON; empty without a rule."""
        if self.rule is None:
            return {}
        best = self.best_loss if self.best_step is not None else None
        return {
            "set": self.rule.set, "judged": self._judged, "best_step": self.best_step, "best_loss": best, "waited": self.waited,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `state()`; from nothing, or from the state of another set, begin anew."""
        self.best_step, self.best_loss, self.waited, self._judged = None, math.inf, 0, 0
        self._unsaved, self._saved = {}, None
        if self.rule is None or not state or state["set"] != self.rule.set:
            return
        self._judged, self.waited = int(state["judged"]), int(state["waited"])
        if state["best_step"] is not None:
            self.best_step, self.best_loss = int(state["best_step"]), float(state["best_loss"])
            self._unsaved[self.best_step] = self.best_loss


def write_best(run_dir: Path, early_stop: EarlyStop) -> Path | None:
    """Write `best.json` when the best checkpoint is there; its folder, or None where it is not."""
    if early_stop.rule is None or early_stop.best_step is None:
        return None
    folder = checkpoint_folder(run_dir, early_stop.best_step)
    if not folder.is_dir():
        return None
    record = {
        "set": early_stop.rule.set, "step": early_stop.best_step, "loss": early_stop.best_loss,
        "checkpoint": str(folder.relative_to(run_dir)),
    }  # fmt: skip
    write_json(run_dir / BEST_FILE, record)
    return folder


def read_best(run_dir: Path) -> BestCheckpoint | None:
    """The best checkpoint of a run folder; None where it has none, or no longer has it."""
    try:
        record = json.loads((run_dir / BEST_FILE).read_text(encoding="utf-8"))
        folder = run_dir / str(record["checkpoint"])
        best = BestCheckpoint(str(record["set"]), int(record["step"]), float(record["loss"]), folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return best if folder.is_dir() else None
