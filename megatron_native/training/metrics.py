"""What a run says about itself: one line a step on the console, everything in `metrics.jsonl`, curves in TensorBoard.

A line of `metrics.jsonl` is one of

* a step: `loss` in nats per token, `lr`, `grad_norm`, `updated`, `tokens`, `consumed_samples`, `consumed_tokens`,
  `seconds`, `tokens_per_second`, and where there are any `phase` (its name) and `batch` (sequences of the step);
* an evaluation: `heldout`: set → `bits_per_byte`, `loss`, `tokens`, `text_bytes`; and its `seconds`;
* norms: `norms`: what `norms.Norms` has;
* a replay of FP8 in BF16: `conscience`: `layers` (number → `output_error`, `gradient_cosine`, `saturation`,
  `underflow`, `linear`), `worst` (a layer), `emulated`;
* a save: `saved`: `folder`, `seconds` until it was complete, `blocked_seconds` that training waited, `bytes`.

Each has the `step` after which it was made.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_native.training.evaluation import HeldoutScore
from megatron_native.training.line_file import LineFile, read_json_lines
from megatron_native.training.step import StepResult

if TYPE_CHECKING:
    from megatron_native.training.conscience import ConscienceReport
    from megatron_native.training.norms import Norms


class Metrics:
    """Writes a run's metrics; on other ranks than the main one it does nothing.

    Args:
        path: `metrics.jsonl`.
        total_steps: steps of the run, for the ETA; `set_total_steps` changes it.
        start_step: steps already done: later lines of an earlier, interrupted attempt are removed.
        interval: steps between console lines.
        enabled: whether this rank writes.
        tensorboard: folder of TensorBoard's event files; None writes none.
    """

    def __init__(
        self,
        path: Path,
        total_steps: int,
        start_step: int,
        interval: int,
        enabled: bool,
        *,
        tensorboard: Path | None = None,
    ) -> None:
        self.path, self.total_steps, self.interval, self.enabled = path, total_steps, interval, enabled
        self._tensorboard = tensorboard
        self._file: LineFile | None = None
        self._events: Any = None
        self._open(start_step)

    def set_total_steps(self, total_steps: int) -> None:
        """The run turns out to have this many steps."""
        self.total_steps = total_steps

    def rewind(self, step: int) -> None:
        """The run goes on from after `step` again: what was reported of later steps is taken back."""
        self.close()
        self._open(step)

    def step(
        self,
        step: int,
        result: StepResult,
        lr: float,
        seconds: float,
        consumed_samples: int,
        consumed_tokens: int,
        *,
        phase: str | None = None,
        batch: int | None = None,
    ) -> None:
        """Report one training step; `seconds` it took, `phase` by name, `batch` in sequences."""
        rate = result.tokens / seconds
        record: dict[str, object] = {
            "step": step, "loss": result.loss, "lr": lr, "grad_norm": result.grad_norm, "updated": result.updated,
            "tokens": result.tokens, "consumed_samples": consumed_samples, "consumed_tokens": consumed_tokens,
            "seconds": seconds, "tokens_per_second": rate,
        }  # fmt: skip
        record |= {name: value for name, value in (("phase", phase), ("batch", batch)) if value is not None}
        self._write(record)
        self._curves(step, {
            "train/loss": result.loss, "train/lr": lr, "train/grad_norm": result.grad_norm,
            "train/consumed_tokens": consumed_tokens, "train/tokens_per_second": rate,
            **({} if batch is None else {"train/batch": batch}),
        })  # fmt: skip
        self._reported += 1
        if step % self.interval == 0 or step == self.total_steps:
            eta = (time.monotonic() - self._started) / self._reported * max(0, self.total_steps - step)
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
        self._curves(step, {f"heldout/{name}": score.bits_per_byte for name, score in scores.items()})
        figures = " · ".join(f"{name} {score.bits_per_byte:.4f}" for name, score in scores.items())
        self.say(f"step {step}: held-out bits per byte: {figures} ({seconds:.1f} s)")

    def norms(self, step: int, norms: Norms) -> None:
        """Report norms of weights and gradients and statistics of logits, measured in `step`."""
        figures = asdict(norms)
        self._write({"step": step, "norms": figures})
        curves = {
            f"norms/{kind}/{name}": value
            for kind in ("weights", "gradients")
            for name, value in (figures[kind] or {}).items()
        }
        curves |= {f"norms/{name}": figures[name] for name in ("weight", "gradient") if figures[name] is not None}
        curves |= {f"logits/{name}": value for name, value in (figures["logits"] or {}).items() if name != "positions"}
        self._curves(step, curves)

    def conscience(self, step: int, report: ConscienceReport) -> None:
        """Report a comparison of FP8 with BF16, made after `step`."""
        self._write({"step": step, "conscience": report.record()})
        self._curves(step, {
            f"conscience/{name}/{layer}": value
            for layer, figures in report.layers.items()
            for name, value in asdict(figures).items() if name != "linear"
        })  # fmt: skip
        self.say(f"step {step}: {report.line()}")

    def saved(self, step: int, folder: Path, seconds: float, blocked_seconds: float, bytes: int) -> None:
        """Report a complete checkpoint.

        Args:
            step: the step after which it was begun.
            folder: where it lies.
            seconds: from its beginning until it was complete.
            blocked_seconds: how long training waited for it.
            bytes: its size on disk.
        """
        self._write({
            "step": step,
            "saved": {"folder": str(folder), "seconds": seconds, "blocked_seconds": blocked_seconds, "bytes": bytes},
        })  # fmt: skip
        self._curves(step, {"save/seconds": seconds, "save/blocked_seconds": blocked_seconds, "save/bytes": bytes})
        self.say(f"saved {folder} ({seconds:.1f} s, training waited {blocked_seconds:.1f} s, {bytes / 1e9:.2f} GB)")

    def say(self, message: str) -> None:
        """One line on the console, from the main rank."""
        if self.enabled:
            print(message, flush=True)

    def close(self) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.flush()
            self._file = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def _open(self, start_step: int) -> None:
        self._started, self._reported = time.monotonic(), 0
        if not self.enabled:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_lines_after(self.path, start_step)
        self._file = LineFile(self.path)
        if self._tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            # Later events of an interrupted attempt stay in its files; the purge tells TensorBoard not to show them.
            self._events = SummaryWriter(self._tensorboard, purge_step=start_step + 1 if start_step else 0)

    def _curves(self, step: int, values: Mapping[str, float]) -> None:
        if self._events is not None:
            try:
                for name, value in values.items():
                    self._events.add_scalar(name, value, step)
            except OSError as error:  # curves are no reason to end a run
                print(f"{self._tensorboard} can't be written ({error.strerror}): no more curves", file=sys.stderr, flush=True)
                self._events = None

    def _write(self, record: dict[str, object]) -> None:
        if self._file is not None:
            self._file.append(json.dumps(record))


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [json.dumps(record) + "\n" for record in read_json_lines(path) if int(record["step"]) <= step]
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text("".join(kept) if step else "", encoding="utf-8")
    temporary.replace(path)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
