"""The configuration of a training run, as typed sections.

In comes a YAML file with `section.key=value` overrides (`config/load.py`); out goes a `RunConfig` in which every value is
present and plausible by itself. What depends on the model or on the number of processes is checked by
`config/layout.py`, before anything starts. The resolved configuration is saved with the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, docstrings are the documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class ModelSection(Section):
    """Where the weights come from."""

    checkpoint: Path | None = None
    """A checkpoint of this project (`import-hf` writes one) whose weights the run starts from."""
    hf_config: Path | None = None
    """A Hugging Face `config.json` (or its folder) to start from random weights, for experiments without a checkpoint."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.checkpoint is None) == (self.hf_config is None):
            raise ValueError("give exactly one of model.checkpoint (continue a model) and model.hf_config (start anew)")
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
    verify: bool = True
    """Check the structure of every `.bin`/`.idx` and its manifest before anything starts."""

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not any(entry.weight > 0 for entry in self.blend):
            raise ValueError("every weight of data.blend is 0: give at least one dataset a positive weight")
        return self


class HeldoutSet(Section):
    """One held-out set of documents whose bits per byte is measured during training."""

    name: str
    """Name in metrics, for example `ar`."""
    path: Path
    """A file of documents (JSONL, plain or compressed)."""


class EvaluationSection(Section):
    """Held-out evaluation."""

    heldout: list[HeldoutSet] = []
    """Sets measured before the first step, at every interval and after the last step."""
    interval: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 evaluates only at the beginning and the end."""
    micro_batch_size: int = Field(default=4, gt=0)
    """Sequences per forward pass and data-parallel rank."""


class ParallelSection(Section):
    """How the model and the batch are split over processes, with Megatron's names."""

    tensor_model_parallel_size: int = Field(default=1, gt=0)
    """Processes that share every layer's matrices."""
    pipeline_model_parallel_size: int = Field(default=1, gt=0)
    """Processes that share the layers, in order."""
    virtual_pipeline_model_parallel_size: int | None = Field(default=None, gt=1)
    """Interleaved schedule: model chunks per pipeline process (2 or more); none for the plain 1F1B schedule."""
    sequence_parallel: bool = False
    """Split activations outside the matrices along the sequence; needs tensor parallelism."""
    use_distributed_optimizer: bool = True
    """Shard optimizer state over data-parallel processes."""
    overlap_grad_reduce: bool = False
    """Overlap gradient reduction with the backward pass (a GPU setting)."""
    overlap_param_gather: bool = False
    """Overlap parameter gathering with the forward pass (a GPU setting)."""


class TrainingSection(Section):
    """The loop: how many steps of how many tokens, in which precision."""

    steps: int = Field(gt=0)
    """Optimizer steps of the whole run."""
    micro_batch_size: int = Field(default=1, gt=0)
    """Sequences per forward pass and data-parallel process."""
    global_batch_size: int = Field(gt=0)
    """Sequences per optimizer step, over all processes."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the model; optimizer state and master weights are FP32 in either."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation: nothing, core attention only, or whole layers."""
    recompute_num_layers: int = Field(default=1, gt=0)
    """With `full`: layers per recomputed block."""
    stop_after: int | None = Field(default=None, gt=0)
    """Save and stop after this step, as if interrupted; schedules still count `steps`."""


class OptimizerSection(Section):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(default=1e-5, ge=0)
    """Peak learning rate (1e-5: the AraLLaMA paper of the method's group)."""
    min_lr: float = Field(default=2e-6, ge=0)
    """Learning rate at the end of the decay."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay from `lr` to `min_lr`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from 0: Hugging Face weights come with no optimizer state, so give some."""
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
            raise ValueError(f"optimizer.min_lr {self.min_lr} is above optimizer.lr {self.lr}: the decay goes from lr to it")
        return self


class CheckpointingSection(Section):
    """When the run is saved and what is kept."""

    save_interval: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 saves only after the last step."""
    keep_last: int = Field(default=0, ge=0)
    """Older checkpoints than the newest this many are deleted; 0 keeps all."""
    save_optimizer: bool = True
    """Keep optimizer state (three FP32 values a weight), which an exact resume needs."""
    resume: bool = True
    """Go on from the newest complete checkpoint of the run folder, if there is one."""


class LoggingSection(Section):
    """What is said while the run goes on."""

    interval: int = Field(default=1, gt=0)
    """Steps between lines on the console; `metrics.jsonl` has every step."""


class RunConfig(Section):
    """A whole run."""

    run_dir: Path
    """Folder of the run: `config.yaml`, `metrics.jsonl`, `checkpoints/`."""
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
    optimizer: OptimizerSection = OptimizerSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpointing: CheckpointingSection = CheckpointingSection()
    logging: LoggingSection = LoggingSection()

    @model_validator(mode="after")
    def _agreeing_sections(self) -> Self:
        if self.optimizer.warmup_steps >= self.training.steps and self.optimizer.warmup_steps > 0:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} leaves no step of training.steps "
                f"{self.training.steps} for the decay: make it smaller"
            )
        if self.training.global_batch_size % self.training.micro_batch_size:
            raise ValueError(
                f"training.global_batch_size {self.training.global_batch_size} is no multiple of "
                f"training.micro_batch_size {self.training.micro_batch_size}: change one of them"
            )
        return self
