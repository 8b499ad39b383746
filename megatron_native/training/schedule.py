"""The learning rate as a pure function of the step: nothing to save, nothing to drift after a resume."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_native.config.run import OptimizerSection


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up from 0, then a decay to `min_lr` that ends with the last step.

    With W warm-up steps of N, step n (counted from 1) has lr · n / W up to W, and after it min + (lr − min) · d(p) at
    p = (n − W) / (N − W), where d is (1 + cos πp) / 2 or 1 − p: the last step has exactly `min_lr`.
    """

    peak: float
    minimum: float
    warmup_steps: int
    total_steps: int
    shape: str

    @classmethod
    def of(cls, section: OptimizerSection, total_steps: int) -> LearningRate:
        """The schedule of an optimizer section for a run of `total_steps`."""
        return cls(section.lr, section.min_lr, section.warmup_steps, total_steps, section.schedule)

    def at(self, step: int) -> float:
        """Learning rate of step `step`, 1 for the first."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        if self.shape == "constant":
            return self.peak
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        decay = (1 + math.cos(math.pi * progress)) / 2 if self.shape == "cosine" else 1 - progress
        return self.minimum + (self.peak - self.minimum) * decay
