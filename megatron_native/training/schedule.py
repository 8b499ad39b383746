"""The learning rate as a pure function of the step: nothing to save, nothing to drift after a resume."""

from __future__ import annotations

import math

from megatron_native.config.phases import Schedule


def learning_rate(schedule: Schedule, step: int, total_steps: int) -> float:
    """Learning rate of step `step` (1 for the first) of the `total_steps` that a schedule spans.

    Linear warm-up from `warmup_start_lr`: with W warm-up steps, step n has start + (lr − start) · n / W up to W. Then a
    decay that ends with the last step: min + (lr − min) · d(p), p = (n − B) / (N − B) from where it begins, B. It begins
    after the warm-up; with `wsd` at the last `decay_fraction` of the steps. d(p) is (1 + cos πp) / 2 for cosine, 1 − p for
    linear, 1 − √p for sqrt and wsd (Hägele et al., 2024), and 1 for constant.
    """
    if step <= schedule.warmup_steps:
        start = schedule.warmup_start_lr
        return start + (schedule.lr - start) * step / schedule.warmup_steps
    begin = schedule.warmup_steps
    if schedule.shape == "wsd":
        begin = max(begin, total_steps - round(schedule.decay_fraction * total_steps))
    if schedule.shape == "constant" or step <= begin:
        return schedule.lr
    progress = min(1.0, (step - begin) / max(1, total_steps - begin))
    shapes = {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress}
    return schedule.min_lr + (schedule.lr - schedule.min_lr) * shapes.get(schedule.shape, 1 - math.sqrt(progress))
