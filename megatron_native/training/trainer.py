"""A run from its configuration to its last checkpoint: build, restore, then step, evaluate and save in one loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_native.checkpoint import layout
from megatron_native.config.layout import check_layout, data_parallel_size
from megatron_native.config.load import dump_run_config
from megatron_native.config.megatron import (
    has_nvidia_apex,
    has_transformer_engine,
    megatron_configs,
    resolve_layer_spec,
)
from megatron_native.config.run import RunConfig
from megatron_native.data.run_data import RunData
from megatron_native.errors import EXIT_DONE, EXIT_FAILURE, EXIT_REQUEUE, RunStoppedError
from megatron_native.manifest import write_json
from megatron_native.models import fp8_layers
from megatron_native.models.gpt import set_rotary_frequencies
from megatron_native.platform import Platform, seed_everything
from megatron_native.training import incidents as kinds
from megatron_native.training.batches import sample_numbers, step_micro_batches
from megatron_native.training.boundaries import assert_boundaries
from megatron_native.training.checkpoints import Checkpointer, SavedCheckpoint
from megatron_native.training.conscience import Conscience
from megatron_native.training.course import Course, StepPlan
from megatron_native.training.cuda_settings import prepare_device, without_effect
from megatron_native.training.data_source import open_run_data, run_data
from megatron_native.training.early_stop import EarlyStop, write_best
from megatron_native.training.evaluation import HeldoutEvaluation
from megatron_native.training.flop_rate import described, peak_of, speed_figures
from megatron_native.training.forgetting import ForgettingMonitor, reweight
from megatron_native.training.import_gate import check_import, check_masters
from megatron_native.training.incidents import Incidents
from megatron_native.training.judgement import Judgement, Verdict
from megatron_native.training.launch import FINISHED_FILE
from megatron_native.training.lineage import RunLineage
from megatron_native.training.metrics import Metrics
from megatron_native.training.model import build_trainable_model, initialize_parallel_state
from megatron_native.training.norms import LogitStatistics, measure_norms
from megatron_native.training.restore import Restored, restore, roll_back
from megatron_native.training.retention import checkpoint_folder
from megatron_native.training.shape import read_model
from megatron_native.training.sharded_state import reset_moments
from megatron_native.training.signals import STOP_SIGNALS, StopRequest
from megatron_native.training.step import StepResult, apply_update, compute_gradients
from megatron_native.training.step_duties import StepDuties
from megatron_native.training.trainable import set_trainable
from megatron_native.training.watchdog import Watchdog


class Trainer:
    """One process of a run. Building it restores the run to where it was; `fit` takes it to its end.

    Args:
        run: the configuration, already checked by itself.
        platform: this process's place; the process group is up.

    Raises:
        UserError: the layout does not fit the model or the processes, or data or checkpoint are damaged.
    """

    def __init__(self, run: RunConfig, platform: Platform) -> None:
        self.run, self.platform = run, platform
        self.model_config = read_model(run)
        check_layout(run, self.model_config, platform.world_size, platform.name)
        initialize_parallel_state(run)
        prepare_device(run, self.model_config, platform)
        seed_everything(run.seed)
        spec = resolve_layer_spec(run, platform.name, has_transformer_engine())
        self.configs = megatron_configs(run, self.model_config, platform.name, spec, has_nvidia_apex())
        self.model = build_trainable_model(run, self.model_config, self.configs, platform.device)
        self.incidents = Incidents(run.run_dir / "incidents.jsonl", platform.is_main)
        self.restored: Restored = restore(run, self.model, platform, self.say, self.incidents)
        self.course = Course(run, self.restored.ledger, self.restored.progress)
        self.data: RunData = open_run_data(run, self.course, platform, self.say)
        tokenizer = (run.model.checkpoint or run.model.branch_from or run.run_dir) / layout.TOKENIZER_FOLDER
        self.evaluation = HeldoutEvaluation(run, tokenizer, platform.device)
        self.forgetting = ForgettingMonitor(run.evaluation.rules)
        self.judgement = Judgement(run.faults)
        self.early_stop = EarlyStop(run.evaluation.early_stop)
        self.conscience = Conscience(run, self.model, self.incidents)
        self._restore_monitors(self.restored.monitors)
        self.lineage = RunLineage(run, self.restored.folder) if platform.is_main else None
        self.checkpointer = Checkpointer(run.run_dir, run.checkpointing, self.say)
        self.metrics = Metrics(
            run.run_dir / "metrics.jsonl", self.course.total_steps, self.progress.step, run.logging.interval,
            platform.is_main, tensorboard=run.run_dir / "tensorboard" if run.logging.tensorboard else None,
        )  # fmt: skip
        self.duties = StepDuties(run, self.model, platform, self.metrics, partial(print, flush=True))
        self.peak = peak_of(run, platform)
        self.watchdog = Watchdog(
            run.run_dir, platform.rank, platform.world_size, run.faults.stall_seconds,
            on_stall=lambda step, message, details: self._stalled(step, message, details),
        )  # fmt: skip
        self._lengthened = False
        self._stopped_by: str | None = None
        self._unsaved = False
        self._best: Path | None = None
        """The newest best checkpoint that is known to be whole."""

    @property
    def progress(self) -> Any:
        """How far the run is."""
        return self.course.progress

    def fit(self) -> int:
        """Train to the end of the last phase (or `training.stop_after`), evaluating and saving on the way.

        Returns:
            The exit code: 0 at the end, 75 where the run is saved and wants to go on, 1 where it could not be saved.

        Raises:
            RunStoppedError: a rule about losses or held-out sets stopped the run; it is saved.
        """
        with StopRequest() as stop, self.watchdog:
            self.model.gather.stop(gather=False)  # until the first update
            with self.model.between_steps():
                self._begin()
            with self.duties:
                reason = self._loop(stop)
            if self._unsaved:
                self._save()
            self._say_saves(self.checkpointer.wait())
            if reason is None and not self._unsaved:
                self._finish()
        self.metrics.close()
        self.incidents.flush()
        if self._unsaved:
            self.say(f"step {self.progress.step} could not be saved (incidents.jsonl says why); the same command goes on from "
                     "the checkpoint before it")
            return EXIT_FAILURE
        if self._stopped_by is not None:
            raise RunStoppedError(
                f"{self._stopped_by} The run is saved after step {self.progress.step}; look at incidents.jsonl, change what "
                "the rule or the data needs, and give the same command to go on."
            )
        if reason is not None:
            self.say(f"{reason}: stopped after step {self.progress.step} of {self.course.total_steps}, saved; the same "
                     "command goes on from there")
            return EXIT_REQUEUE
        return EXIT_DONE

    def _loop(self, stop: StopRequest) -> str | None:
        """Step until the run ends or must stop; why it stopped before its end."""
        run = self.run
        while not self.early_stop.exhausted and (plan := self.course.next_step()) is not None:
            if run.training.stop_after is not None and self.progress.step >= run.training.stop_after:
                return "training.stop_after"
            self.duties.begin(plan.step)
            self._enter(plan)
            verdict = self._take(plan)
            if verdict.stops:
                self._stopped_by = f"{verdict.message}."
                return "stopped"
            if verdict.rolls_back:
                self._save()  # so that what is passed over stays so
                continue
            with self.duties.part("checkpoint"):
                self._say_saves(self.checkpointer.poll())
            self.incidents.flush()
            if self._due(run.evaluation.interval) and self.course.next_step() is not None and self._evaluate():
                return "stopped"
            if self.early_stop.exhausted:
                self.incidents.record(kinds.EARLY_STOP, self.early_stop.message, plan.step, self.early_stop.state())
                return None
            with self.duties.part("communication"):
                signal = self._agreed(stop.requested)
            if signal:
                message = f"{signal} came: the run stops after step {plan.step} and is saved"
                self.incidents.record(kinds.STOP_REQUESTED, message, plan.step)
                return signal
            due = self._due(run.checkpointing.save_interval) and self.course.next_step() is not None
            if self._unsaved and (due or self.early_stop.best_step == plan.step):
                self._save()
        if not self.early_stop.exhausted:
            self._evaluate()
        self._stopped_by = None  # there is nothing left to stop
        return None

    def _take(self, plan: StepPlan) -> Verdict:
        """One step: gradients, judgement, update; then the position moves on, or the run goes back."""
        run, started = self.run, time.monotonic()
        self.watchdog.at(plan.step, "reading data")
        set_trainable(self.model.optimizer, plan.phase.trainable)
        numbers = sample_numbers(
            plan.samples, plan.phase.micro_batch_size, parallel_state.get_data_parallel_rank(),
            data_parallel_size(run, self.platform.world_size),
        )  # fmt: skip
        with self.duties.part("data"):
            batches = list(step_micro_batches(self.data, numbers, self.platform.device, run.data.document_boundaries))
        interval, logits = run.logging.norms_interval, None
        measured = interval > 0 and plan.step % interval == 0

        def compute() -> StepResult:
            nonlocal logits
            self.watchdog.at(plan.step, "forward and backward")
            fp8_layers.begin_step(self.model.configs.transformer, self.model.modules)
            logits = self._observe_logits(measured)
            return compute_gradients(self.model.chunks, self.model.optimizer, batches, self.platform.device)

        result = compute()
        verdict = self.judgement.judge(plan, result, compute)
        if verdict.incident is not None:
            self._record(plan, verdict)
        if verdict.rolls_back:
            self._roll_back(plan, verdict)
            return verdict
        if verdict.stops:
            return verdict
        result, norms = verdict.result, None
        if verdict.updates:
            if measured:
                norms = measure_norms(self.model, gradients=True, logits=logits)
            self.watchdog.at(plan.step, "updating")
            with self.duties.part("optimizer"):
                apply_update(self.model.optimizer, result, plan.learning_rate, run.optimizer.weight_decay)
                fp8_layers.end_step(self.model.configs.transformer, self.model.modules, self.model.chunks)
            self.model.gather.start()
        else:
            self.course.ledger.not_learned.append(plan.step)
        self.course.done(plan)
        self._unsaved = True
        self.metrics.set_total_steps(self.course.total_steps)
        seconds = time.monotonic() - started
        length, processes = plan.phase.seq_length, self.platform.world_size
        self.metrics.step(
            plan.step, result, plan.learning_rate, seconds, self.progress.consumed_samples, self.progress.consumed_tokens,
            phase=plan.phase.name, batch=plan.batch_size,
            speed=speed_figures(self.model_config, length, plan.tokens, seconds, processes, self.peak),
        )  # fmt: skip
        if norms is not None:
            self.metrics.norms(plan.step, norms)
        if self.conscience.due(plan.step):
            self.watchdog.at(plan.step, "comparing FP8 with BF16")
            if (report := self.conscience.replay(plan.step, batches)) is not None:
                self.metrics.conscience(plan.step, report)
        return verdict

    def _observe_logits(self, measured: bool) -> LogitStatistics | None:
        """Have the logits of the next forward passes observed, by sums of their own, or no longer."""
        statistics = LogitStatistics(self.platform.device) if measured else None
        for module in self.model.modules:
            module.logit_observer = statistics
        return statistics

    def _begin(self) -> None:
        """Everything between building and the first step: the checks that may refuse to train, the first evaluation."""
        run = self.run
        self._announce()
        if self.restored.fresh and run.model.checkpoint is not None and run.model.import_gate:
            self.watchdog.at(0, "checking the import")
            gate = check_import(self.model, run.model.checkpoint, self.platform.device, run.training.precision)
            check_masters(self.model, run.model.checkpoint)
            self.say(gate.message)
        if run.data.document_boundaries:
            self.watchdog.at(self.progress.step, "checking document boundaries")
            length = min(64, min(phase.seq_length for phase in self.course.phases))
            # In FP8 a document changes the scale that others are rounded with: no leak of the attention's.
            with fp8_layers.bf16_everywhere(self.model.configs.transformer, self.model.modules):
                assert_boundaries(
                    self.model.chunks, self.model_config.vocab_size, length, run.training.precision, self.platform.device
                )
        if self.progress.step == 0:
            self._evaluate()
        self._write_best()
        plan = self.course.next_step()
        if plan is not None and not plan.begins_phase:
            self._lengthen(plan)

    def _enter(self, plan: StepPlan) -> None:
        """What changes with a step: the ledger; with a phase, the rotary base and the optimizer's moments."""
        if plan.begins_phase:
            for name in plan.phase.datasets:
                self.course.ledger.record_dataset(name, self.data.record(name))
            if plan.phase.resets_optimizer and plan.step > 1:
                reset_moments(self.model.optimizer)
            self._lengthen(plan)
        segments = len(self.course.ledger.segments)
        if self.course.enter(plan):
            self._write_ledger()
        if plan.begins_phase or len(self.course.ledger.segments) > segments:
            self.say(f"phase '{plan.phase.name}' from step {plan.step}: {self._shares(plan)}")

    def _shares(self, plan: StepPlan) -> str:
        """A phase's datasets: share of sequences, and the tokens and epochs that it comes to."""
        phase = plan.phase
        tokens = phase.total_tokens
        total, parts = sum(phase.weights.values()), []
        for name, weight in phase.weights.items():
            read = tokens * weight / total
            epochs = read / self.course.ledger.datasets[name].tokens
            parts.append(f"{name} {weight / total:.2%} of sequences, {read:,.0f} tokens, {epochs:.2f} epochs")
        return f"{tokens:,} tokens; {'; '.join(parts)}"

    def _lengthen(self, plan: StepPlan) -> None:
        """Take on the rotary base of a phase; from then on checkpoints say so."""
        phase = plan.phase
        if phase.rotary_base is None:
            return
        length = max(self.model_config.max_position_embeddings, phase.seq_length)
        self.model_config = self.model_config.model_copy(
            update={"rotary_base": phase.rotary_base, "max_position_embeddings": length}
        )
        self._lengthened = True
        for module in self.model.modules:
            set_rotary_frequencies(module, self.model_config)

    def _evaluate(self) -> bool:
        """Measure the held-out sets and apply the rules; whether one says to stop."""
        started, stops = time.monotonic(), False
        self.watchdog.at(self.progress.step, "evaluating")
        with self.duties.part("evaluation"), self.model.between_steps():
            scores = self.evaluation.measure(self.model.chunks)
        self.metrics.evaluation(self.progress.step, scores, time.monotonic() - started)
        figures = {name: score.bits_per_byte for name, score in scores.items()}
        if self.lineage is not None:
            self.lineage.evaluated(self.progress.step, figures)
        for verdict in self.forgetting.judge(self.progress.step, figures):
            self.incidents.record(kinds.HELDOUT_RULE, verdict.message, self.progress.step)
            if verdict.action == "reweight" and self.course.ledger.segments:
                self.course.reweight(reweight(self.course.ledger.segments[-1].weights, verdict.factors))
            if verdict.action == "stop":
                self._stopped_by, stops = f"{verdict.message}.", True
        if self.progress.step:
            self.early_stop.judge(self.progress.step, {name: score.loss for name, score in scores.items()})
        return stops

    def _roll_back(self, plan: StepPlan, verdict: Verdict) -> None:
        """Back to the last whole checkpoint, and past the data up to and including this step's."""
        self._say_saves(self.checkpointer.wait())
        restored = roll_back(self.run, self.model, self.platform, self.say, self.incidents)
        self.course = Course(self.run, restored.ledger, restored.progress)
        self.data = run_data(self.run, self.course)
        self.judgement.back_to(restored.monitors)
        self._restore_early_stop(restored.monitors)
        self.conscience.restore(restored.monitors.get("conscience"))
        self.course.pass_over(plan.samples.stop, verdict.message)
        self._unsaved = True
        self.metrics.rewind(restored.progress.step)

    def _save(self) -> None:
        self.watchdog.at(self.progress.step, "saving")
        self.conscience.begin_save(self.progress.step)
        run_files = {"config.yaml": dump_run_config(self.run), "ledger.json": self.course.ledger.dumps()}
        run_files["lineage.json"] = "" if self.lineage is None else self.lineage.text(self.course)
        if self._lengthened:
            run_files["model.json"] = self.model_config.model_dump_json(indent=2) + "\n"
        state = {
            "position": self.progress.state(), "judgement": self.judgement.state(), "forgetting": self.forgetting.state(),
            "early_stop": self.early_stop.state(), "conscience": self.conscience.state(),
        }  # fmt: skip
        with self.duties.part("checkpoint"), self.model.between_steps():
            self.checkpointer.save(self.progress.step, self.model, state, self.restored.travelling, run_files, self._kept())
        self._write_ledger()
        self._unsaved = False
        self._say_saves(self.checkpointer.poll())

    def _kept(self) -> list[Path]:
        """The best checkpoint and, where that one's own save failed, the one before it; none when the best is saved now."""
        best = self.early_stop.best_step
        if best is None or best == self.progress.step:
            return []
        return [checkpoint_folder(self.run.run_dir, best), *([self._best] if self._best is not None else [])]

    def _write_ledger(self) -> None:
        """The ledger for people and `trace`; the run itself goes on from the copy in its checkpoints."""
        if self.platform.is_main:
            try:
                self.course.ledger.save(self.run.run_dir)
            except OSError as error:
                self.say(f"{self.run.run_dir}/ledger could not be written ({error.strerror}); tried again at the next save")

    def _say_saves(self, saved: list[SavedCheckpoint]) -> None:
        for one in saved:
            if one.failed is not None:
                self.incidents.record(kinds.SAVE_FAILED, f"{one.folder} was not saved: {one.failed}", one.step)
                self._unsaved = True
                self.early_stop.not_saved(one.step)
            else:
                self.early_stop.saved(one.step)
                self.metrics.saved(one.step, one.folder, one.seconds, one.blocked, one.bytes)
            self._write_best()

    def _write_best(self) -> None:
        """Say in the run folder which checkpoint is the best, where that one is whole."""
        if self.platform.is_main:
            self._best = write_best(self.run.run_dir, self.early_stop) or self._best

    def _finish(self) -> None:
        """Leave word that the run is done, for the next time the command is given."""
        if self.platform.is_main:
            plan = self.run.model_dump(mode="json")["phases"]
            checkpoint = checkpoint_folder(self.run.run_dir, self.progress.step).relative_to(self.run.run_dir)
            rule = self.run.evaluation.early_stop
            early = rule.model_dump(mode="json") if rule is not None and self.course.next_step() is not None else None
            record = {"step": self.progress.step, "checkpoint": str(checkpoint), "plan": plan, "early_stop": early}
            write_json(self.run.run_dir / FINISHED_FILE, record)

    def _record(self, plan: StepPlan, verdict: Verdict) -> None:
        """An incident with the documents of the batch, so that a person can look at them."""
        assert verdict.incident is not None
        details: dict[str, Any] = {"samples": [plan.samples.start, plan.samples.stop]}
        if self.platform.is_main:
            details["documents"] = documents_of(self.data, plan)
        self.incidents.record(verdict.incident, verdict.message, plan.step, details)

    def _restore_monitors(self, state: dict[str, Any]) -> None:
        self.judgement.restore(state.get("judgement"))
        if "forgetting" in state:
            self.forgetting.restore(state["forgetting"])
        self._restore_early_stop(state)
        self.conscience.restore(state.get("conscience"))

    def _restore_early_stop(self, state: Mapping[str, Any]) -> None:
        """The best so far; one whose checkpoint is not there, as its save failed, is none. Collective."""
        self.early_stop.restore(state.get("early_stop"))
        best = self.early_stop.best_step
        if best is None:
            return
        there = torch.tensor([checkpoint_folder(self.run.run_dir, best).is_dir()], dtype=torch.int, device=self.platform.device)
        dist.all_reduce(there, op=dist.ReduceOp.MIN)
        (self.early_stop.saved if int(there) else self.early_stop.not_saved)(best)

    def _agreed(self, signal: str | None) -> str | None:
        """The signal that any rank has got, known to every rank."""
        names = [stop.name for stop in STOP_SIGNALS]
        code = torch.tensor([names.index(signal) + 1 if signal else 0], device=self.platform.device)
        dist.all_reduce(code, op=dist.ReduceOp.MAX)
        return names[int(code) - 1] if int(code) else None

    def _stalled(self, step: int, message: str, details: Mapping[str, Any]) -> None:
        """Record a stall; any rank may have to."""
        Incidents(self.incidents.path).record(kinds.STALL, message, step, details)

    def _announce(self) -> None:
        run, parallel = self.run, self.run.parallel
        if self.platform.is_main:
            run.run_dir.mkdir(parents=True, exist_ok=True)
            (run.run_dir / "config.yaml").write_text(dump_run_config(run), encoding="utf-8")
        virtual = parallel.virtual_pipeline_model_parallel_size
        plan = self.course.next_step()
        batch = f" · {plan.batch_size} × {plan.phase.seq_length} tokens a step" if plan else ""
        self.say(
            f"{self.model_config.family} · {self.model_config.num_layers} layers · {self._precision()} on "
            f"{self.platform.world_size} {self.platform.name} process(es): TP {parallel.tensor_model_parallel_size} × PP "
            f"{parallel.pipeline_model_parallel_size}{f' × VPP {virtual}' if virtual else ''} × DP "
            f"{data_parallel_size(run, self.platform.world_size)}{batch}"
        )
        for line in (described(self.peak, run, self.platform), without_effect(run, self.platform)):
            if line is not None:
                self.say(line)
        if self.progress.step:
            self.say(f"resumed from {self.restored.folder}: {self.progress.step} of {self.course.total_steps} steps done")

    def _precision(self) -> str:
        config, modules = self.model.configs.transformer, self.model.modules
        return fp8_layers.described(config, modules) if config.fp8 else self.run.training.precision

    def _due(self, interval: int) -> bool:
        return interval > 0 and self.progress.step % interval == 0

    def say(self, message: str) -> None:
        """One line on the console, from the main rank."""
        if self.platform.is_main:
            print(message, flush=True)


def documents_of(data: RunData, plan: StepPlan) -> dict[str, list[int]]:
    """The documents that a step's samples are made of, by dataset."""
    found: dict[str, set[int]] = {}
    for number in plan.samples:
        name, spans = data.spans(number)
        found.setdefault(name, set()).update(span.document for span in spans)
    return {name: sorted(documents) for name, documents in found.items()}
