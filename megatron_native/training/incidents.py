"""What went wrong in a run and what was done about it: one JSON line an event in `incidents.jsonl`.

Several processes may write (a rank, the launcher): a line is appended in one write. A line that a kill cut short is
closed by the next one and left out when reading.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_native.manifest import json_value
from megatron_native.training.line_file import LineFile

LOSS_SPIKE = "loss_spike"
NOT_FINITE = "not_finite"
RECOMPUTED = "recomputed"
HELDOUT_RULE = "heldout_rule"
EARLY_STOP = "early_stop"
CHECKPOINT_DAMAGED = "checkpoint_damaged"
SAVE_FAILED = "save_failed"
STOP_REQUESTED = "stop_requested"
STALL = "stall"
RANK_DIED = "rank_died"
RESTART = "restart"
GAVE_UP = "gave_up"
FP8_LIMIT = "fp8_limit"
FP8_TO_BF16 = "fp8_to_bf16"

KINDS = frozenset({
    LOSS_SPIKE, NOT_FINITE, RECOMPUTED, HELDOUT_RULE, EARLY_STOP, CHECKPOINT_DAMAGED, SAVE_FAILED, STOP_REQUESTED,
    STALL, RANK_DIED, RESTART, GAVE_UP, FP8_LIMIT, FP8_TO_BF16,
})  # fmt: skip
"""Every kind of event there is."""


class Incidents:
    """Appends events to a file and says them on stderr.

    Args:
        path: `incidents.jsonl` of the run folder; made with its folder at the first event.
        enabled: whether this process writes; others do nothing.
    """

    def __init__(self, path: Path, enabled: bool = True) -> None:
        self.path, self.enabled = path, enabled
        self._file = LineFile(path)  # a full disk may be the very incident: then the line waits

    def record(
        self, kind: str, message: str, step: int | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        """Write down one event and print its message.

        Args:
            kind: one of `KINDS`.
            message: what happened and what is done about it, for people.
            step: the step that it happened in, where it belongs to one.
            details: figures, fit for JSON; numbers that are not finite are written as text ("nan", "inf").

        Raises:
            ValueError: the kind is unknown.
        """
        if kind not in KINDS:
            raise ValueError(f"there is no kind of incident '{kind}'; kinds are {', '.join(sorted(KINDS))}")
        if not self.enabled:
            return
        event = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "step": step,
            "kind": kind,
            "message": message,
            "details": json_value(details or {}),
        }
        print(message, file=sys.stderr, flush=True)
        self._file.append(json.dumps(event, ensure_ascii=False, allow_nan=False))

    def flush(self) -> None:
        """Try again to write what a full disk has refused."""
        self._file.flush()
