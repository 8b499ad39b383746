"""A run worked out with no GPU: the memory of every pipeline stage, the time of a step, the length of every phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron_native.config.layout import data_parallel_size
from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import resolve_phases
from megatron_native.config.run import RunConfig
from megatron_native.training.plan.checkpoint_size import (
    ASSUMED_GB_S,
    Saving,
    checkpoint_size,
    speed_of_saves,
    stored_parameters,
)
from megatron_native.training.plan.flops import FORMULA
from megatron_native.training.plan.gpus import GIB, Gpu
from megatron_native.training.plan.layer_time import is_fp8_layer
from megatron_native.training.plan.memory import RankMemory, rank_memory
from megatron_native.training.plan.rough_memory import rough_peak
from megatron_native.training.plan.stages import split_stages
from megatron_native.training.plan.step_time import PhaseEstimate, StepEstimate, estimate_phases, estimate_step
from megatron_native.training.plan.validate import layout_findings

FORMAT = "megatron-native/plan/1"


def overrides_text(settings: Mapping[str, Any]) -> str:
    """Settings as overrides on the command line."""
    return " ".join(f"{name}={_override_value(value)}" for name, value in settings.items())


def _override_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


@dataclass(frozen=True)
class Remedy:
    """One change that would make a run fit."""

    settings: dict[str, Any]
    """Dotted name → value."""
    peak: int
    """Bytes of the fullest stage with it."""
    tokens_a_second: float
    """Estimate of one GPU with it."""

    @property
    def text(self) -> str:
        """As overrides on the command line."""
        return overrides_text(self.settings)


@dataclass(frozen=True)
class RunPlan:
    """What a plan found."""

    run: RunConfig
    model: ModelConfig
    gpu: Gpu
    world_size: int
    stages: tuple[RankMemory, ...]
    """By pipeline rank."""
    phases: tuple[PhaseEstimate, ...]
    saving: Saving
    remedies: tuple[Remedy, ...]

    @property
    def fits(self) -> bool:
        """Whether every stage has room on the GPU."""
        return all(self.room(stage) >= 0 for stage in self.stages)

    @property
    def fullest(self) -> RankMemory:
        """The stage that needs most."""
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def step(self) -> StepEstimate:
        """The step of the first phase."""
        return self.phases[0].step

    @property
    def schedule(self) -> str:
        """The pipeline's schedule, by name."""
        if self.run.parallel.virtual_pipeline_model_parallel_size:
            return "interleaved 1F1B"
        return "1F1B" if len(self.stages) > 1 else "no pipeline"

    def room(self, stage: RankMemory) -> int:
        """Bytes that stay free on the ranks of a stage; negative: that are missing."""
        return self.gpu.usable_bytes - stage.total

    def as_json(self) -> dict[str, Any]:
        """Everything, for other programs."""
        parallel, step = self.run.parallel, self.step
        return {
            "format": FORMAT, "world_size": self.world_size, "gpu": self.gpu.model_dump(), "model": self.model.model_dump(),
            "layout": {
                **parallel.model_dump(), "data_parallel_size": data_parallel_size(self.run, self.world_size),
                "precision": self.run.training.precision, "recompute": self.run.training.recompute,
            },
            "parameters": stored_parameters(self.model, 1),
            "fits": self.fits,
            "usable_bytes": self.gpu.usable_bytes,
            "stages": [
                {
                    "pipeline_rank": stage.pipeline_rank, "rank": stage.rank, "layers": stage.layers,
                    "parameters": stage.parameters, "weights": stage.weights, "gradients": stage.gradients,
                    "optimizer": stage.optimizer, "activations": stage.activations, "communication": stage.communication,
                    "workspace": stage.workspace, "in_flight": stage.in_flight, "peak": stage.total,
                    "free": self.room(stage), "largest": stage.largest[0],
                }
                for stage in self.stages
            ],
            "remedies": [
                {"settings": remedy.settings, "peak": remedy.peak, "tokens_a_second_a_gpu": remedy.tokens_a_second}
                for remedy in self.remedies
            ],
            "flop_formula": FORMULA,
            "estimate": True,
            "phases": [_phase_json(phase) for phase in self.phases],
            "communication_a_step": [volume.by_kind() for volume in step.volumes],
            "checkpoint": {
                "bytes": self.saving.bytes, "gb_a_second": self.saving.gb_a_second, "seconds": self.saving.seconds,
            },
            "shares": self.gpu.shares.model_dump(),
        }  # fmt: skip


def _phase_json(phase: PhaseEstimate) -> dict[str, Any]:
    step = phase.step
    return {
        "name": phase.name, "tokens": phase.tokens, "steps": phase.steps, "days": phase.days, "gpu_hours": phase.gpu_hours,
        "micro_batches": step.micro_batches, "tokens_a_step": step.tokens, "seconds_a_step": step.seconds,
        "tokens_a_second_a_gpu": step.tokens_a_second, "bubble": step.timeline.bubble, "seconds_by_part": step.parts(),
        "flop_a_token": step.flops_a_token, "model_flop_utilisation": step.utilisation,
        "peak_tflops": step.peak_tflops, "peak_of": step.peak_of,
    }  # fmt: skip


def plan_run(
    run: RunConfig, model: ModelConfig, gpu: Gpu, world_size: int, storage_gb_s: float | None = None
) -> RunPlan:
    """Plan a run whose layout `layout_findings` has no error of.

    Args:
        run: the run.
        model: the model's shape.
        gpu: what it will run on.
        world_size: processes, one a GPU.
        storage_gb_s: what the file system takes of a checkpoint, in GB/s over all ranks; None: what the run's own saves
            took, where its folder has any, or `ASSUMED_GB_S`.
    """
    stages = tuple(
        rank_memory(run, model, world_size, rank) for rank in range(run.parallel.pipeline_model_parallel_size)
    )
    phases = tuple(estimate_phases(run, model, gpu, world_size))
    plan = RunPlan(run, model, gpu, world_size, stages, phases, saving_of(run, model, storage_gb_s), ())
    if plan.fits:
        return plan
    return replace(plan, remedies=tuple(find_remedies(plan)))


def saving_of(run: RunConfig, model: ModelConfig, storage_gb_s: float | None) -> Saving:
    """A checkpoint of the run, at a given speed of the file system, at that of its earlier saves, or at the assumed one."""
    size = checkpoint_size(run, model).total
    if storage_gb_s is not None:
        return Saving(size, storage_gb_s, "given")
    measured = speed_of_saves(run.run_dir / "metrics.jsonl")
    if measured is not None:
        return Saving(size, measured / 1e9, "measured in this run's saves")
    return Saving(size, ASSUMED_GB_S, "assumed; --storage-gb-s says otherwise")


def find_remedies(plan: RunPlan) -> Iterator[Remedy]:
    """Changes of one setting with which a run that does not fit would fit, fastest first."""
    found = []
    for settings in _single_changes(plan.run):
        changed = with_settings(plan.run, settings)
        if any(finding.kind == "error" for finding in layout_findings(changed, plan.model, plan.gpu, plan.world_size)):
            continue
        if rough_peak(changed, plan.model, plan.world_size) > plan.gpu.usable_bytes:
            continue  # spares the building of its models
        peak = peak_if_fits(changed, plan.model, plan.gpu, plan.world_size)
        if peak is None:
            continue
        step = estimate_step(changed, plan.model, plan.gpu, plan.world_size, resolve_phases(changed)[0])
        found.append(Remedy(settings, peak, step.tokens_a_second))
    yield from sorted(found, key=lambda remedy: -remedy.tokens_a_second)


def peak_if_fits(run: RunConfig, model: ModelConfig, gpu: Gpu, world_size: int) -> int | None:
    """Bytes of the fullest stage, or None where one does not fit.

    The stages at both ends are asked first. Between them, a stage with the same layers as an earlier one is not asked: it
    has fewer micro-batches in flight.
    """
    stages, seen, peak = split_stages(run, model), set(), 0
    ends = {0, len(stages) - 1}
    for rank in sorted(range(len(stages)), key=lambda rank: rank not in ends):
        layers = tuple(tuple(is_fp8_layer(run, model, layer) for layer in chunk.layers) for chunk in stages[rank])
        if layers in seen:
            continue
        if rank not in ends:
            seen.add(layers)
        total = rank_memory(run, model, world_size, rank).total
        if total > gpu.usable_bytes:
            return None
        peak = max(peak, total)
    return peak


def _single_changes(run: RunConfig) -> Iterator[dict[str, Any]]:
    """Settings that save memory, each by itself."""
    training, parallel = run.training, run.parallel
    if training.recompute == "none":
        yield {"training.recompute": "selective", "training.recompute_modules": ["mlp"]}
    if training.recompute != "full":
        yield {"training.recompute": "full"}
    if training.micro_batch_size > 1:
        yield micro_batch_settings(run, training.micro_batch_size // 2)
    if not parallel.use_distributed_optimizer:
        yield {"parallel.use_distributed_optimizer": True}
    if parallel.tensor_model_parallel_size > 1 and not parallel.sequence_parallel:
        yield {"parallel.sequence_parallel": True}
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    yield {"parallel.tensor_model_parallel_size": 2 * tp} | (
        {} if parallel.sequence_parallel else {"parallel.sequence_parallel": True}
    )
    yield {"parallel.pipeline_model_parallel_size": 2 * pp}
    yield {"parallel.context_parallel_size": 2 * parallel.context_parallel_size}
    if run.training.precision == "fp8" and not run.fp8.param_gather:
        yield {"fp8.param_gather": True}
    if run.optimizer.grad_reduce_in_fp32:
        yield {"optimizer.grad_reduce_in_fp32": False}


def micro_batch_settings(run: RunConfig, size: int) -> dict[str, Any]:
    """Another micro-batch; with buffers of one size for overlapped communication, evaluation takes it too."""
    tied = run.parallel.tp_comm_overlap and run.evaluation.micro_batch_size == run.training.micro_batch_size
    return {"training.micro_batch_size": size} | ({"evaluation.micro_batch_size": size} if tied else {})


def with_settings(run: RunConfig, settings: dict[str, Any]) -> RunConfig:
    """A copy of the run with other values of `section.key`; values are not checked again."""
    for name, value in settings.items():
        section, _, key = name.partition(".")
        run = run.model_copy(update={section: getattr(run, section).model_copy(update={key: value})})
    return run


def gib(size: float) -> str:
    """Bytes in GiB, with one decimal."""
    return f"{size / GIB:.1f}"
