"""The course of a run: which phase a step belongs to, which samples it takes, at which learning rate.

In go the phases of the configuration, the ledger and how far the run is; out comes a `StepPlan` for the next step. The
position is counted in consumed samples, so the configuration may change between two starts: phases to come as one likes,
and the phase under way in its blend, batch, sequence length, packing, length and learning rate. What changes is written to
the ledger when the first step under it is planned. No torch here, so the plan of a whole run can be listed anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from megatron_native.config.phases import ResolvedPhase, resolve_phases, run_schedule_of
from megatron_native.config.run import RunConfig
from megatron_native.data.ledger import Ledger
from megatron_native.errors import UserError
from megatron_native.training.schedule import learning_rate


@dataclass
class Progress:
    """How far a run is; the only position there is."""

    step: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    """Tokens of context, pads included."""
    phase: str | None = None
    """The phase of the last step, or None before the first of this run."""
    phase_steps: int = 0
    phase_tokens: int = 0
    """Done of that phase."""
    schedule_steps: int = 0
    """Steps done under the run's schedule, which phases with one of their own don't count in."""

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class StepPlan:
    """One step, before it is taken."""

    step: int
    """Its number, 1 for the first."""
    phase: ResolvedPhase
    begins_phase: bool
    first_sample: int
    batch_size: int
    learning_rate: float

    @property
    def samples(self) -> range:
        """The numbers of its samples."""
        return range(self.first_sample, self.first_sample + self.batch_size)

    @property
    def tokens(self) -> int:
        """Tokens of context."""
        return self.batch_size * self.phase.seq_length


class Course:
    """Plans the steps of a run, one after another.

    Args:
        run: the configuration.
        ledger: the account of the run so far; planning the first step under a change adds it.
        progress: how far the run is; `done` moves it on.

    Raises:
        UserError: the phase that the run is in is not in the configuration any more, or the seed has changed.
    """

    def __init__(self, run: RunConfig, ledger: Ledger, progress: Progress) -> None:
        if ledger.stretches and ledger.seed != run.seed:
            raise UserError(
                f"seed is {run.seed}, and the run began with {ledger.seed}: its data would come in another order, some of "
                "it twice and some never. Put it back, or start a run of its own."
            )
        self.phases = resolve_phases(run)
        self.run_schedule = run_schedule_of(run)
        self.ledger, self.progress = ledger, progress
        ledger.seed = run.seed
        names = [phase.name for phase in self.phases]
        if progress.phase is not None and progress.phase not in names:
            raise UserError(
                f"the run is in its phase '{progress.phase}' (step {progress.step}), and the configuration has the phases "
                f"{', '.join(names)} only. Keep the phase under its name; its length and settings may change."
            )
        self._at = names.index(progress.phase) if progress.phase is not None else 0

    def next_step(self) -> StepPlan | None:
        """The step after the last one that is done, or None at the end of the run."""
        at, steps_done, tokens_done = self._at, self.progress.phase_steps, self.progress.phase_tokens
        while at < len(self.phases) and not self.phases[at].steps_left(tokens_done, steps_done):
            at, steps_done, tokens_done = at + 1, 0, 0
        if at == len(self.phases):
            return None
        phase = self.phases[at]
        return StepPlan(
            step=self.progress.step + 1,
            phase=phase,
            begins_phase=self.progress.phase != phase.name,
            first_sample=self.progress.consumed_samples,
            batch_size=phase.batch_size(tokens_done),
            learning_rate=self._learning_rate(at, steps_done, tokens_done),
        )

    def enter(self, plan: StepPlan) -> bool:
        """Write what changes with this step to the ledger; whether anything did."""
        ledger, phase, changed = self.ledger, plan.phase, False
        last = ledger.segments[-1] if ledger.segments else None
        here = (phase.name, phase.seq_length, phase.packing, phase.weights)
        if last is None or (last.phase, last.seq_length, last.packing, last.configured) != here:
            ledger.begin_segment(
                plan.first_sample, plan.step, phase.name, phase.seq_length, phase.packing, phase.weights, phase.weights
            )
            changed = True
        if not ledger.stretches or ledger.samples_of(plan.step) != plan.samples:
            ledger.begin_stretch(plan.step, plan.first_sample, plan.batch_size)
            changed = True
        return changed

    def reweight(self, weights: Mapping[str, float]) -> None:
        """Draw by other weights than the configuration's from the next step on."""
        plan = self.next_step()
        if plan is None or not self.ledger.segments:
            return
        self.enter(plan)
        last = self.ledger.segments[-1]
        self.ledger.begin_segment(
            plan.first_sample, plan.step, last.phase, last.seq_length, last.packing, weights, last.configured
        )

    def done(self, plan: StepPlan) -> None:
        """Move the position past a step."""
        progress = self.progress
        if plan.begins_phase:
            self._at = self.phases.index(plan.phase)
            progress.phase, progress.phase_steps, progress.phase_tokens = plan.phase.name, 0, 0
        progress.step = plan.step
        progress.consumed_samples += plan.batch_size
        progress.consumed_tokens += plan.tokens
        progress.phase_steps += 1
        progress.phase_tokens += plan.tokens
        progress.schedule_steps += plan.phase.schedule is None

    def pass_over(self, end_sample: int, reason: str) -> None:
        """Leave out the samples up to `end_sample`; the next step takes those after them."""
        progress = self.progress
        self.ledger.pass_over(progress.step + 1, progress.consumed_samples, end_sample, reason)
        progress.consumed_samples = max(progress.consumed_samples, end_sample)

    @property
    def steps_left(self) -> int:
        """Steps to the end of the run."""
        first = self.phases[self._at].steps_left(self.progress.phase_tokens, self.progress.phase_steps)
        return first + sum(phase.steps_left(0, 0) for phase in self.phases[self._at + 1 :])

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, as planned now."""
        return self.progress.step + self.steps_left

    def _learning_rate(self, at: int, steps_done: int, tokens_done: int) -> float:
        phase = self.phases[at]
        left = phase.steps_left(tokens_done, steps_done)
        if phase.schedule is not None:
            return learning_rate(phase.schedule, steps_done + 1, steps_done + left)
        later = sum(other.steps_left(0, 0) for other in self.phases[at + 1 :] if other.schedule is None)
        done = self.progress.schedule_steps
        return learning_rate(self.run_schedule, done + 1, done + left + later)
