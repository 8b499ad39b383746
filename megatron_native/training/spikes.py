"""Whether a step's loss jumped: compared with the median of the losses before it, in median absolute deviations.

Pure arithmetic on numbers that every rank has, so all ranks judge alike. Median and deviation come from accepted losses
only: a spike that is skipped or rolled back does not widen what counts as usual.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from megatron_native.config.run import SpikeSection

_SMALLEST_DEVIATION = 1e-12


@dataclass(frozen=True)
class Spike:
    """A loss far above those before it."""

    loss: float
    """The step's loss, in nats per token."""
    median: float
    """Median of the window before it, in nats per token."""
    mad: float
    """Median absolute deviation of the window from its median, in nats per token."""

    def __str__(self) -> str:
        deviations = (self.loss - self.median) / max(self.mad, _SMALLEST_DEVIATION)
        far = f"{deviations:.1f} median absolute deviations" if deviations < 1e6 else "far"
        return f"loss {self.loss:.4f} is {far} above the median {self.median:.4f} of the steps before"


class LossMonitor:
    """Judges each loss against the last accepted ones.

    Args:
        settings: `window`, `deviations` and `minimum_increase`; what to do about a spike is the caller's.
    """

    def __init__(self, settings: SpikeSection) -> None:
        self.settings = settings
        self._losses: deque[float] = deque(maxlen=settings.window)

    def judge(self, loss: float) -> Spike | None:
        """The spike that `loss` is, or None; nothing is a spike until the window is full.

        A loss that is not a number is none either: what is not finite is judged elsewhere. Changes nothing.
        """
        if len(self._losses) < self.settings.window or math.isnan(loss):
            return None
        middle = median(self._losses)
        mad = median(abs(earlier - middle) for earlier in self._losses)
        increase = max(self.settings.deviations * max(mad, _SMALLEST_DEVIATION), self.settings.minimum_increase)
        return Spike(loss, middle, mad) if loss > middle + increase else None

    def accept(self, loss: float) -> None:
        """Count `loss` among those that later ones are compared with.

        Raises:
            ValueError: it is not finite.
        """
        if not math.isfinite(loss):
            raise ValueError(f"a loss of {loss} is nothing to compare later losses with")
        self._losses.append(float(loss))

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to judge on exactly alike; fit for JSON."""
        return {"losses": list(self._losses)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave; of a longer window than the present one, the newest losses."""
        self._losses = deque((float(loss) for loss in state["losses"]), maxlen=self.settings.window)
