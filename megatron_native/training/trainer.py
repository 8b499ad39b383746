"""A run from its configuration to its last checkpoint: build, restore, then step, evaluate and save in one loop."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

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
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.errors import EXIT_DONE, EXIT_REQUEUE, UserError
from megatron_native.platform import Platform, seed_everything
from megatron_native.training import checkpoints
from megatron_native.training.batches import SampleSource, sample_numbers, step_micro_batches
from megatron_native.training.checkpoints import Progress
from megatron_native.training.evaluation import HeldoutEvaluation
from megatron_native.training.metrics import Metrics
from megatron_native.training.model import build_trainable_model, initialize_parallel_state
from megatron_native.training.schedule import LearningRate
from megatron_native.training.shape import read_model
from megatron_native.training.step import StepResult, train_step


def open_blend(run: RunConfig, model: ModelConfig) -> SampleSource:
    """The training blend, with the structure of every dataset checked first unless `data.verify` is off."""
    from megatron_native.data.blend import Blend
    from megatron_native.data.indexed import IndexedTokens, verify_structure
    from megatron_native.data.sequence_index import SequenceIndex

    parts = []
    for entry in run.data.blend:
        tokens = verify_structure(entry.prefix, model.vocab_size) if run.data.verify != "off" else IndexedTokens(entry.prefix)
        index = SequenceIndex(tokens, run.data.seq_length, run.seed, entry.name or entry.prefix.name)
        parts.append((entry.weight, index))
    return Blend(parts)


class Trainer:
    """One process of a run. Building it restores the run to where it was; `fit` takes it to its end.

    Args:
        run: the configuration, already checked by itself.
        platform: this process's place; the process group is up.
        source: training samples, by default the blend of the configuration.

    Raises:
        UserError: the layout does not fit the model or the processes, or data or checkpoint are damaged.
    """

    def __init__(self, run: RunConfig, platform: Platform, source: SampleSource | None = None) -> None:
        self.run, self.platform = run, platform
        self.model_config = read_model(run)
        check_layout(run, self.model_config, platform.world_size)
        self.source = source or open_blend(run, self.model_config)
        initialize_parallel_state(run)
        seed_everything(run.seed)
        spec = resolve_layer_spec(run, platform.name, has_transformer_engine())
        self.configs = megatron_configs(run, self.model_config, platform.name, spec, has_nvidia_apex())
        self.model = build_trainable_model(run, self.model_config, self.configs, platform.device)
        steps = run.training.steps or 0
        self.learning_rate = LearningRate.of(run.optimizer, steps)
        self.progress, self.restored_from = self._restore()
        tokenizer = (run.model.checkpoint or run.run_dir) / layout.TOKENIZER_FOLDER
        self.evaluation = HeldoutEvaluation(run, tokenizer, platform.device)
        self.metrics = Metrics(
            run.run_dir / "metrics.jsonl", steps, self.progress.step, run.logging.interval, platform.is_main
        )

    def fit(self) -> int:
        """Train to the last step (or `training.stop_after`), evaluating and saving on the way; the exit code."""
        run, steps = self.run, self.run.training.steps or 0
        last = min(steps, run.training.stop_after or steps)
        self._announce()
        if self.progress.step == 0:
            self._evaluate()
        while self.progress.step < last:
            started = time.monotonic()
            result, lr = self.train_one_step()
            self.metrics.step(
                self.progress.step, result, lr, time.monotonic() - started,
                self.progress.consumed_samples, self.progress.consumed_tokens,
            )  # fmt: skip
            at_end = self.progress.step == last
            if (at_end and last == steps) or self._due(run.evaluation.interval):
                self._evaluate()
            if at_end or self._due(run.checkpointing.save_interval):
                self._save()
        self.metrics.close()
        if last < steps:
            self.metrics.say(f"stopped after step {last} of {steps}, saved; the same command goes on from there")
            return EXIT_REQUEUE
        return EXIT_DONE

    def train_one_step(self) -> tuple[StepResult, float]:
        """Take the next global batch, update once, move the position on; the result and the learning rate used."""
        run, progress = self.run, self.progress
        numbers = sample_numbers(
            progress.consumed_samples,
            run.training.global_batch_size,
            run.training.micro_batch_size,
            parallel_state.get_data_parallel_rank(),
            data_parallel_size(run, self.platform.world_size),
        )
        batches = list(step_micro_batches(self.source, numbers, self.platform.device))
        lr = self.learning_rate.at(progress.step + 1)
        result = train_step(
            self.model.chunks, self.model.optimizer, batches, lr, run.optimizer.weight_decay, run.data.seq_length,
            self.platform.device,
        )  # fmt: skip
        progress.step += 1
        progress.consumed_samples += run.training.global_batch_size
        progress.consumed_tokens += run.training.global_batch_size * run.data.seq_length
        return result, lr

    def _restore(self) -> tuple[Progress, Path | None]:
        run = self.run
        existing = checkpoints.checkpoints_of(run.run_dir)
        if existing and run.checkpointing.resume:
            checkpoints.refuse_other_data(existing[-1], run)
            return checkpoints.load_checkpoint(existing[-1], self.model), existing[-1]
        if existing:
            raise UserError(
                f"{run.run_dir} already holds checkpoints up to {existing[-1].name} and checkpointing.resume is false: "
                "choose another run_dir, or let the run resume."
            )
        if run.model.checkpoint is not None:
            layout.check_complete(run.model.checkpoint)
            checkpoints.load_weights(run.model.checkpoint, self.model)
        return Progress(), run.model.checkpoint

    def _announce(self) -> None:
        run, parallel = self.run, self.run.parallel
        if self.platform.is_main:
            run.run_dir.mkdir(parents=True, exist_ok=True)
            (run.run_dir / "config.yaml").write_text(dump_run_config(run), encoding="utf-8")
        virtual = parallel.virtual_pipeline_model_parallel_size
        self.metrics.say(
            f"{self.model_config.family} · {self.model_config.num_layers} layers · {run.training.precision} on "
            f"{self.platform.world_size} {self.platform.name} process(es): TP {parallel.tensor_model_parallel_size} × PP "
            f"{parallel.pipeline_model_parallel_size}{f' × VPP {virtual}' if virtual else ''} × DP "
            f"{data_parallel_size(run, self.platform.world_size)} · {run.training.global_batch_size} × "
            f"{run.data.seq_length} tokens a step"
        )
        if self.progress.step:
            self.metrics.say(f"resumed from {self.restored_from}: {self.progress.step} of {run.training.steps} steps done")

    def _due(self, interval: int) -> bool:
        return interval > 0 and self.progress.step % interval == 0

    def _evaluate(self) -> None:
        started = time.monotonic()
        scores = self.evaluation.measure(self.model.chunks)
        self.metrics.evaluation(self.progress.step, scores, time.monotonic() - started)

    def _save(self) -> None:
        run, started = self.run, time.monotonic()
        folder = checkpoints.checkpoint_folder(run.run_dir, self.progress.step)
        checkpoints.save_checkpoint(
            folder, self.model, dataclasses.replace(self.progress), self._travelling_source(), dump_run_config(run),
            run.checkpointing.save_optimizer,
        )  # fmt: skip
        if self.platform.is_main:
            checkpoints.prune(run.run_dir, run.checkpointing.keep_last)
        dist.barrier()
        self.metrics.say(f"saved {folder} ({time.monotonic() - started:.1f} s)")

    def _travelling_source(self) -> Path | None:
        """Whose `run/` files travel along: the last checkpoint's, which had them from the one before."""
        if self.restored_from is not None and self.restored_from.is_dir():
            return self.restored_from
        if self.run.model.checkpoint is not None:
            return self.run.model.checkpoint
        return self._run_files_of_a_new_model()

    def _run_files_of_a_new_model(self) -> Path | None:
        """For a model with random weights: its shape and `config.json`, laid out as a checkpoint has them."""
        assert self.run.model.hf_config is not None
        folder = self.run.run_dir
        if self.platform.is_main:
            source = self.run.model.hf_config
            source = source / "config.json" if source.is_dir() else source
            (folder / layout.HF_FOLDER).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / layout.HF_CONFIG_FILE)
            layout.write_model_config(folder, self.model_config)
        dist.barrier()
        return folder
