"""What a run says about itself: one line a step on the console, everything in `metrics.jsonl`.

A line of `metrics.jsonl` is either a step (`loss` in nats per token, `lr`, `grad_norm`, `tokens`, `consumed_samples`,
`consumed_tokens`, `seconds`, `tokens_per_second`) or an evaluation (`heldout`: set → `bits_per_byte`, `loss`).
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from megatron_native.training.evaluation import HeldoutScore
from megatron_native.training.step import StepResult


class Metrics:
    """Writes a run's metrics; on other ranks than the main one it does nothing.

    Args:
        path: `metrics.jsonl`.
        total_steps: steps of the run, for the ETA.
        start_step: steps already done: later lines of an earlier, interrupted attempt are removed.
        interval: steps between console lines.
        enabled: whether this rank writes.
    """

    def __init__(self, path: Path, total_steps: int, start_step: int, interval: int, enabled: bool) -> None:
        self.total_steps, self.interval, self.enabled = total_steps, interval, enabled
        self._file: TextIO | None = None
        self._started, self._start_step = time.monotonic(), start_step
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_lines_after(path, start_step)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def step(
        self, step: int, result: StepResult, lr: float, seconds: float, consumed_samples: int, consumed_tokens: int
    ) -> None:
        """Report one training step."""
        rate = result.tokens / seconds
        self._write({
            "step": step, "loss": result.loss, "lr": lr, "grad_norm": result.grad_norm, "updated": result.updated,
            "tokens": result.tokens, "consumed_samples": consumed_samples, "consumed_tokens": consumed_tokens,
            "seconds": seconds, "tokens_per_second": rate,
        })
        if step % self.interval == 0 or step == self.total_steps:
            done = step - self._start_step
            eta = (time.monotonic() - self._started) / done * (self.total_steps - step)
            skipped = "" if result.updated else " · update skipped: gradients not finite"
            self.say(
                f"step {step:>{len(str(self.total_steps))}}/{self.total_steps} · loss {result.loss:.4f} · lr {lr:.2e} · "
                f"grad norm {result.grad_norm:.2f} · {rate:,.0f} tokens/s · ETA {_clock(eta)}{skipped}"
            )

    def evaluation(self, step: int, scores: dict[str, HeldoutScore], seconds: float) -> None:
        """Report one held-out evaluation."""
        if not scores:
            return
        self._write({"step": step, "seconds": seconds, "heldout": {name: asdict(s) for name, s in scores.items()}})
        figures = " · ".join(f"{name} {score.bits_per_byte:.4f}" for name, score in scores.items())
        self.say(f"step {step}: held-out bits per byte: {figures} ({seconds:.1f} s)")

    def say(self, message: str) -> None:
        """One line on the console, from the main rank."""
        if self.enabled:
            print(message, flush=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, record: dict[str, object]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()


def read_metrics(path: Path) -> list[dict[str, object]]:
    """Every whole line of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            print(f"{path}: a line that was cut short is left out", file=sys.stderr)
    return records


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [json.dumps(record) + "\n" for record in read_metrics(path) if int(str(record["step"])) <= step]
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text("".join(kept) if step else "", encoding="utf-8")
    temporary.replace(path)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
