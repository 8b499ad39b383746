"""The configuration of a training run, as typed sections.

In comes a YAML file with `section.key=value` overrides (`config/load.py`); out goes a `RunConfig` in which every value is
present and plausible by itself. What depends on the model or on the number of processes is checked by
`config/layout.py`, before anything starts. The resolved configuration is saved with the run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from megatron_native.config.parallel import ParallelSection
from megatron_native.config.precision import ConscienceSection, Fp8Section
from megatron_native.config.profiling import ProfilingSection
from megatron_native.config.section import Section

Packing = Literal["concatenate", "best_fit", "single"]
Trainable = Literal["all", "embeddings"]
ScheduleShape = Literal["cosine", "linear", "sqrt", "constant", "wsd"]


class ModelSection(Section):
    """Where the weights come from."""

    checkpoint: Path | None = None
    """A checkpoint of this project (`import-hf` writes one) whose weights the run starts from."""
    branch_from: Path | None = None
    """A checkpoint of another run that this one goes on from, optimizer, data position and ledger included: an anneal off a
    trunk. Its `phases` begin there; the trunk is not touched."""
    hf_config: Path | None = None
    """A Hugging Face `config.json` (or its folder) to start from random weights, for experiments without a checkpoint."""
    import_gate: bool = True
    """Before step 1 of a run that starts from `checkpoint`, compare its logits on the fixed texts with those recorded at
    import, and the optimizer's master weights with the weights; refuse to train where they differ."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.checkpoint, self.branch_from, self.hf_config)) != 1:
            raise ValueError(
                "give exactly one of model.checkpoint (continue a model), model.branch_from (branch off another run) and "
                "model.hf_config (start anew)"
            )
        return self


class BlendEntry(Section):
    """One indexed dataset of the training blend."""

    prefix: Path
    """Path of the `.bin`/`.idx` pair without its ending, as `tokenize` printed it."""
    weight: float = Field(default=1.0, ge=0)
    """Share of *sequences* that come from this dataset, relative to the other weights (0: none)."""
    name: str = ""
    """Name that seeds the order of its documents, so renaming it changes the order; by default the prefix's last part."""


class DataSection(Section):
    """What the run learns from."""

    blend: list[BlendEntry] = Field(min_length=1)
    """Indexed datasets with weights."""
    seq_length: int = Field(default=4096, gt=0)
    """Tokens of context per sequence."""
    packing: Packing = "concatenate"
    """`concatenate`: documents end to end, cut every `seq_length` tokens, nothing padded. `best_fit`: no document that fits a
    sequence is cut; what stays free in a sequence is padded and counts nothing (Ding et al., 2024). `single`: every document
    its own sequence, padded; only what is longer than a sequence is cut."""
    document_boundaries: bool = True
    """Attention and positions begin anew with every document of a sequence. Without, a token sees the documents before its
    own in the sequence."""
    loss_on_bos: bool | None = None
    """Learn to predict a document's first token from the separator before it; by default only without
    `document_boundaries`, since with them nothing of the document is known there."""
    loss_on_eod: bool = True
    """Learn to predict the separator that ends a document."""
    verify: Literal["sampled", "full", "off"] = "sampled"
    """Before anything starts, check every dataset: the whole `.idx`, the manifest and blocks of `.bin` (`sampled`, seconds),
    every byte against the manifest too (`full`), or nothing."""
    index_cache: Path | None = None
    """Folder for the sequence indices of large datasets, built once a node and shared by its processes; by default
    `index_cache` in the run folder."""

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not any(entry.weight > 0 for entry in self.blend):
            raise ValueError("every weight of data.blend is 0: give at least one dataset a positive weight")
        return self


class ScheduleFields(Section):
    """The learning rate over the steps that a schedule spans: warm-up, then a decay."""

    lr: float | None = Field(default=None, ge=0)
    """Peak learning rate."""
    min_lr: float | None = Field(default=None, ge=0)
    """Learning rate at the end of the decay."""
    schedule: ScheduleShape | None = None
    """Shape of the decay from `lr` to `min_lr`."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up."""
    warmup_start_lr: float | None = Field(default=None, ge=0)
    """Learning rate that the warm-up begins above."""
    decay_fraction: float | None = Field(default=None, gt=0, le=1)
    """With `wsd`: the last part of the steps, in which it decays."""


class BatchRamp(Section):
    """A batch that grows: from `start` sequences a step by `increment` until `global_batch_size`."""

    start: int = Field(gt=0)
    """Sequences a step at the beginning of the phase."""
    increment: int = Field(gt=0)
    """Sequences a step that are added each time."""
    tokens: int = Field(gt=0)
    """Tokens of the phase after which `global_batch_size` is reached; the increments come at equal distances."""


class Phase(ScheduleFields):
    """A span of the run with its own data; what it leaves out, it takes from `data`, `training` and `optimizer`.

    A phase that sets `lr`, `min_lr`, `schedule`, `warmup_steps`, `warmup_start_lr` or `decay_fraction` has a schedule of its
    own over its own steps (no warm-up unless it says so); the others share the optimizer's, which spans them all.
    """

    name: str = Field(min_length=1)
    """Name in metrics, ledger and messages; a resumed run finds its place by it."""
    tokens: int | None = Field(default=None, gt=0)
    """Length in tokens of context, pads included; rounded up to whole steps."""
    steps: int | None = Field(default=None, gt=0)
    """Length in steps, instead of `tokens`."""
    blend: list[BlendEntry] | None = Field(default=None, min_length=1)
    """Indexed datasets with weights. A dataset goes on where it stood in the phase before."""
    seq_length: int | None = Field(default=None, gt=0)
    """Tokens of context per sequence."""
    packing: Packing | None = None
    """How sequences are made of documents."""
    global_batch_size: int | None = Field(default=None, gt=0)
    """Sequences per optimizer step, over all processes."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Sequences per forward pass and data-parallel process."""
    batch_ramp: BatchRamp | None = None
    """Begin with a smaller batch."""
    rotary_base: float | None = Field(default=None, gt=0)
    """Base of the rotary positions from this phase on (a long-context phase raises it)."""
    optimizer_state: Literal["keep", "reset"] = "keep"
    """Keep Adam's moments from the phase before, or begin with none."""
    trainable: Trainable = "all"
    """What learns in this phase: `all` weights, or `embeddings`, which is the embedding and the output layer; the others, and
    their moments, keep every bit."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.tokens is None) == (self.steps is None):
            raise ValueError(f"phase '{self.name}': give exactly one of tokens and steps")
        if self.blend is not None and not any(entry.weight > 0 for entry in self.blend):
            raise ValueError(f"phase '{self.name}': every weight of its blend is 0")
        return self


class HeldoutRule(Section):
    """What to do when the model forgets: bits per byte of a held-out set above where the run began."""

    set: str
    """Name of the held-out set."""
    max_increase: float = Field(gt=0)
    """Relative increase of its bits per byte since the first evaluation that sets the rule off (0.02: two percent)."""
    action: Literal["warn", "stop", "reweight"] = "warn"
    """Say so; save and stop; or multiply weights of the blend."""
    reweight: dict[str, float] = Field(default={})
    """With `reweight`: dataset name → factor of its weight from the next step on."""
    max_times: int = Field(default=3, gt=0)
    """How often a `reweight` rule may act."""

    @model_validator(mode="after")
    def _factors(self) -> Self:
        if (self.action == "reweight") != bool(self.reweight):
            raise ValueError(
                f"evaluation rule for '{self.set}': action reweight and the factors in reweight go together"
            )
        if any(factor < 0 for factor in self.reweight.values()):
            raise ValueError(f"evaluation rule for '{self.set}': factors of weights are 0 or more")
        return self


class EarlyStopRule(Section):
    """End the run when a held-out set gets no better, and keep the checkpoint where it was best."""

    set: str
    """Name of the held-out set whose loss decides."""
    patience: int | None = Field(default=3, gt=0)
    """The run ends after this many evaluations in a row without an improvement; none: it goes on to its end."""
    min_improvement: float = Field(default=0.0, ge=0, lt=1)
    """Relative decrease of the loss that counts as one (0.01: one percent); 0: any."""


class HeldoutSet(Section):
    """One held-out set of documents or conversations whose bits per byte is measured during training."""

    name: str
    """Name in metrics, for example `ar`."""
    path: Path
    """A file of documents (JSONL, plain or compressed); of `conversations` the prefix of a masked dataset."""
    kind: Literal["text", "conversations"] = "text"
    """`text`: every token of the documents is predicted. `conversations`: the tokens that the dataset's mask names, which
    are answers and their ends; bytes are those of the answers."""


class EvaluationSection(Section):
    """Held-out evaluation."""

    heldout: list[HeldoutSet] = Field(default=[])
    """Sets measured before the first step, at every interval and after the last step."""
    interval: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 evaluates only at the beginning and the end."""
    micro_batch_size: int = Field(default=4, gt=0)
    """Sequences per forward pass and data-parallel rank."""
    rules: list[HeldoutRule] = Field(default=[])
    """What to do when a set gets worse."""
    early_stop: EarlyStopRule | None = None
    """When a set gets no better: end the run. An evaluation that is the best so far saves a checkpoint, which is never
    deleted while it is the best; `best.json` in the run folder names it."""

    @model_validator(mode="after")
    def _known_sets(self) -> Self:
        names = [heldout.name for heldout in self.heldout]
        for rule in self.rules:
            if rule.set not in names:
                raise ValueError(f"evaluation.rules names the set '{rule.set}', which evaluation.heldout does not have")
        if self.early_stop is not None and self.early_stop.set not in names:
            raise ValueError(
                f"evaluation.early_stop names the set '{self.early_stop.set}', which evaluation.heldout does not have "
                f"({', '.join(names) or 'it is empty'})"
            )
        if self.early_stop is not None and not self.interval:
            raise ValueError(
                "evaluation.early_stop needs evaluations to judge by, and evaluation.interval is 0: give the steps between them"
            )
        return self


class TrainingSection(Section):
    """The loop: how many steps of how many tokens, in which precision."""

    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps of a run without `phases`."""
    micro_batch_size: int = Field(default=1, gt=0)
    """Sequences per forward pass and data-parallel process."""
    global_batch_size: int = Field(gt=0)
    """Sequences per optimizer step, over all processes."""
    precision: Literal["fp32", "bf16", "fp8"] = "bf16"
    """Arithmetic of the model; optimizer state and master weights are FP32 in each. `fp8`: matrix products of the layers in
    FP8 as section `fp8` says, the rest in BF16."""
    mode: Literal["fast", "exact"] = "fast"
    """On GPUs: `fast` takes every fusion and overlap that is set; `exact` gives the same bits in every repetition on the same
    GPUs, without fused cross entropy or tensor-parallel overlap. The CPU is exact in either."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation: nothing, the parts of layers in `recompute_modules`, or whole layers."""
    recompute_modules: list[Literal["core_attn", "mlp", "layernorm"]] = Field(default=["core_attn"])
    """With `selective`: what is computed again in the backward pass."""
    recompute_method: Literal["uniform", "block"] = "uniform"
    """With `full`: `uniform` recomputes every layer, in blocks of `recompute_num_layers`; `block` only the first
    `recompute_num_layers` layers of every model chunk."""
    recompute_num_layers: int = Field(default=1, gt=0)
    """With `full`: layers per recomputed block, or recomputed layers per chunk."""
    gc_interval: int = Field(default=0, ge=0)
    """Steps between garbage collections, at the same step on every process so that none waits for another's; 0 leaves them to
    Python."""
    stop_after: int | None = Field(default=None, gt=0)
    """Save and stop after this step, as if interrupted; schedules still count `steps`."""


class OptimizerSection(Section):
    """AdamW and the learning-rate schedule of the run."""

    lr: float = Field(default=1e-5, ge=0)
    """Peak learning rate (1e-5: the AraLLaMA paper of the method's group)."""
    min_lr: float = Field(default=2e-6, ge=0)
    """Learning rate at the end of the decay."""
    schedule: ScheduleShape = "cosine"
    """Shape of the decay from `lr` to `min_lr`: `sqrt` is 1 − √progress; `wsd` stays at `lr` and decays so in the last
    `decay_fraction` of the steps (Hägele et al., 2024)."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up: Hugging Face weights come with no optimizer state, so give some."""
    warmup_start_lr: float = Field(default=0.0, ge=0)
    """Learning rate that the warm-up begins above."""
    decay_fraction: float = Field(default=0.1, gt=0, le=1)
    """With `wsd`: the last part of the steps, in which it decays."""
    embedding_lr_multiplier: float = Field(default=1.0, ge=0)
    """Learning rate of the embedding and the output layer, as a multiple of the others'."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices; biases and norms have none."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment per step."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment per step (0.95: usual for large language models)."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Global gradient norm above which gradients are scaled down; 0 switches clipping off."""
    grad_reduce_in_fp32: bool = True
    """Accumulate and reduce gradients in FP32."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(
                f"optimizer.min_lr {self.min_lr} is above optimizer.lr {self.lr}: the decay goes from lr to it"
            )
        return self


class CheckpointingSection(Section):
    """When the run is saved and what is kept."""

    save_interval: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 saves only after the last step."""
    keep_last: int = Field(default=0, ge=0)
    """Older checkpoints than the newest this many are deleted; 0 keeps all."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints of steps that are multiples of this are never deleted; 0 exempts none."""
    asynchronous: bool = True
    """Write while training goes on: the loop waits for the copy of the state only."""
    verify_on_resume: Literal["sizes", "full"] = "sizes"
    """How a checkpoint is checked before it is resumed from: the size of every file, or every checksum too. A damaged one is
    passed over for the one before it."""
    save_optimizer: bool = True
    """Keep optimizer state (three FP32 values a weight), which an exact resume needs."""
    resume: bool = True
    """Go on from the newest complete checkpoint of the run folder, if there is one."""


class LoggingSection(Section):
    """What is said while the run goes on."""

    interval: int = Field(default=1, gt=0)
    """Steps between lines on the console; `metrics.jsonl` has every step."""
    norms_interval: int = Field(default=0, ge=0)
    """Steps between measurements of the norms of weights, gradients and logits; 0 measures none."""
    tensorboard: bool = True
    """Write TensorBoard's event files beside `metrics.jsonl`."""


class SpikeSection(Section):
    """What to do when the loss of a step jumps."""

    action: Literal["none", "warn", "skip", "rollback", "stop"] = "warn"
    """`skip`: no update from that step; `rollback`: back to the last checkpoint, and past the data since; `stop`: save
    what was before the step, and end."""
    window: int = Field(default=64, ge=4)
    """Steps before it that a loss is compared with; nothing is judged until there are so many."""
    deviations: float = Field(default=8.0, gt=0)
    """A spike is this many median absolute deviations above the median of the window."""
    minimum_increase: float = Field(default=0.1, ge=0)
    """And at least this much above it, in nats per token."""
    budget: int = Field(default=5, ge=0)
    """Skips or rollbacks in the whole run before it stops instead."""


class FaultsSection(Section):
    """What the run does when something goes wrong."""

    nonfinite_budget: int = Field(default=10, ge=0)
    """Steps whose loss or gradients are not finite, even when computed again, that may be skipped in the whole run."""
    retry_nonfinite: bool = True
    """Compute such a step a second time first: a fault of the machine does not come twice."""
    spike: SpikeSection = SpikeSection()
    """Loss spikes."""
    stall_seconds: float = Field(default=1800, gt=0)
    """Without a finished step, evaluation or save for so long, every process's stack is printed and the run aborts."""
    max_restarts: int = Field(default=3, ge=0)
    """How often `pretrain --nproc` starts all processes again after one has died."""


class RunConfig(Section):
    """A whole run."""

    run_dir: Path
    """Folder of the run: `config.yaml`, `metrics.jsonl`, `checkpoints/`, `ledger/`, `logs/`."""
    preset: str | list[str] | None = None
    """A preset of settings under this file's own, or several, later ones over earlier (`megatron-native config presets` lists
    them)."""
    platform: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs: `cuda` (NCCL), `cpu` (gloo), or `auto`, which takes CUDA where there is a device."""
    layer_spec: Literal["auto", "transformer_engine", "torch"] = "auto"
    """Layers: Transformer Engine's or plain torch's; `auto` takes Transformer Engine on CUDA where it is installed."""
    seed: int = 1234
    """Seed of data order and initialisation."""
    model: ModelSection
    data: DataSection
    parallel: ParallelSection = ParallelSection()
    training: TrainingSection
    fp8: Fp8Section = Fp8Section()
    conscience: ConscienceSection = ConscienceSection()
    phases: list[Phase] = Field(default=[])
    """The run in parts, one after another; without any, one phase `main` of `training.steps`."""
    optimizer: OptimizerSection = OptimizerSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpointing: CheckpointingSection = CheckpointingSection()
    faults: FaultsSection = FaultsSection()
    logging: LoggingSection = LoggingSection()
    profiling: ProfilingSection = ProfilingSection()
    environment: dict[str, str] = Field(default={})
    """Environment variables on CUDA, over the project's own; what the shell has set wins."""

    @model_validator(mode="after")
    def _agreeing_sections(self) -> Self:
        if bool(self.phases) == (self.training.steps is not None):
            raise ValueError("give training.steps or phases, and not both: phases have lengths of their own")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phases are named {', '.join(names)}: a name may come once")
        steps = self.training.steps
        if steps is not None and self.optimizer.warmup_steps >= steps and self.optimizer.warmup_steps > 0:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} leaves no step of training.steps "
                f"{steps} for the decay: make it smaller"
            )
        prefixes: dict[str, Path] = {}
        for blend in (self.data.blend, *(phase.blend for phase in self.phases if phase.blend)):
            named = [entry.name or entry.prefix.name for entry in blend]
            twice = sorted({name for name in named if named.count(name) > 1})
            if twice:
                raise ValueError(f"a blend has two datasets named {', '.join(twice)}: give each a name of its own")
            for name, entry in zip(named, blend):
                if os.path.normpath(prefixes.setdefault(name, entry.prefix)) != os.path.normpath(entry.prefix):
                    raise ValueError(
                        f"the name {name} stands for {prefixes[name]} in one blend and for {entry.prefix} in another: give "
                        "each dataset a name of its own"
                    )
        if self.training.global_batch_size % self.training.micro_batch_size:
            raise ValueError(
                f"training.global_batch_size {self.training.global_batch_size} is no multiple of "
                f"training.micro_batch_size {self.training.micro_batch_size}: change one of them"
            )
        return self
