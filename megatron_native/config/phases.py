"""The phases of a run with every value filled in, and how long each takes.

A phase takes what it leaves out from the sections `data`, `training` and `optimizer`; a run without phases is one phase
named `main`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_native.config.run import BatchRamp, Packing, Phase, RunConfig, ScheduleFields, ScheduleShape, Trainable

MAIN = "main"


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule: `training/schedule.py` computes with it."""

    lr: float
    min_lr: float
    shape: ScheduleShape
    warmup_steps: int
    warmup_start_lr: float
    decay_fraction: float


@dataclass(frozen=True)
class ResolvedPhase:
    """A phase with every value present."""

    name: str
    tokens: int | None
    """Length in tokens, or None where `steps` says it."""
    steps: int | None
    datasets: dict[str, Path]
    """Dataset name → prefix."""
    weights: dict[str, float]
    """Dataset name → share of sequences, relative to the others."""
    seq_length: int
    packing: Packing
    global_batch_size: int
    micro_batch_size: int
    batch_ramp: BatchRamp | None
    rotary_base: float | None
    """The last one that this phase or one before it sets; None: the model's."""
    resets_optimizer: bool
    trainable: Trainable
    schedule: Schedule | None
    """The phase's own, or None where the run's spans it."""

    def batch_size(self, tokens_done: int) -> int:
        """Sequences of the step that begins after `tokens_done` tokens of the phase."""
        if self.batch_ramp is None:
            return self.global_batch_size
        levels = ramp_sizes(self.batch_ramp, self.global_batch_size)
        level = tokens_done * (len(levels) - 1) // self.batch_ramp.tokens
        return levels[min(level, len(levels) - 1)]

    def steps_left(self, tokens_done: int, steps_done: int) -> int:
        """Steps that the phase still takes when so much of it is done."""
        if self.steps is not None:
            return max(0, self.steps - steps_done)
        assert self.tokens is not None
        left, done = 0, tokens_done
        while done < self.tokens:
            tokens_a_step = self.batch_size(done) * self.seq_length
            end = min(self.tokens, self._next_level(done))
            steps = max(1, -(-(end - done) // tokens_a_step))
            left, done = left + steps, done + steps * tokens_a_step
        return left

    @property
    def total_tokens(self) -> int:
        """Tokens of context of the whole phase; of one whose length is in tokens, before rounding up to whole steps."""
        if self.tokens is not None:
            return self.tokens
        assert self.steps is not None
        done = 0
        for _ in range(self.steps if self.batch_ramp else 0):
            done += self.batch_size(done) * self.seq_length
        return done or self.steps * self.global_batch_size * self.seq_length

    def _next_level(self, tokens_done: int) -> int:
        """Tokens of the phase at which the batch grows next; the end of the phase when it does not grow any more."""
        assert self.tokens is not None
        ramp = self.batch_ramp
        if ramp is None:
            return self.tokens
        increments = len(ramp_sizes(ramp, self.global_batch_size)) - 1
        level = tokens_done * increments // ramp.tokens
        return self.tokens if level >= increments else -(-(level + 1) * ramp.tokens // increments)


def ramp_sizes(ramp: BatchRamp, full: int) -> list[int]:
    """Every batch size of a ramp, from its start to the full one."""
    return [*range(ramp.start, full, ramp.increment), full]


def run_schedule_of(run: RunConfig) -> Schedule:
    """The schedule that spans all phases without one of their own."""
    section = run.optimizer
    return Schedule(
        section.lr, section.min_lr, section.schedule, section.warmup_steps, section.warmup_start_lr, section.decay_fraction
    )


def resolve_phases(run: RunConfig) -> list[ResolvedPhase]:
    """Every phase of the run, in order."""
    if not run.phases:
        return [_resolved(run, Phase(name=MAIN, steps=run.training.steps))]
    base, resolved = None, []
    for phase in run.phases:
        base = phase.rotary_base or base
        resolved.append(_resolved(run, phase, base))
    return resolved


def _resolved(run: RunConfig, phase: Phase, rotary_base: float | None = None) -> ResolvedPhase:
    blend = phase.blend or run.data.blend
    return ResolvedPhase(
        name=phase.name,
        tokens=phase.tokens,
        steps=phase.steps,
        datasets={entry.name or entry.prefix.name: entry.prefix for entry in blend},
        weights={entry.name or entry.prefix.name: entry.weight for entry in blend},
        seq_length=phase.seq_length or run.data.seq_length,
        packing=phase.packing or run.data.packing,
        global_batch_size=phase.global_batch_size or run.training.global_batch_size,
        micro_batch_size=phase.micro_batch_size or run.training.micro_batch_size,
        batch_ramp=phase.batch_ramp,
        rotary_base=rotary_base,
        resets_optimizer=phase.optimizer_state == "reset",
        trainable=phase.trainable,
        schedule=_own_schedule(run, phase),
    )


def _own_schedule(run: RunConfig, phase: Phase) -> Schedule | None:
    if all(getattr(phase, field) is None for field in ScheduleFields.model_fields):
        return None
    default = run_schedule_of(run)

    def chosen(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else value

    return Schedule(
        lr=chosen(phase.lr, default.lr),
        min_lr=chosen(phase.min_lr, default.min_lr),
        shape=phase.schedule or default.shape,
        warmup_steps=phase.warmup_steps or 0,
        warmup_start_lr=chosen(phase.warmup_start_lr, 0.0),
        decay_fraction=chosen(phase.decay_fraction, default.decay_fraction),
    )
