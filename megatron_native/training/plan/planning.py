"""A run planned and checked: everything that `plan` says, in one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_native.config.load import load_run_config
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from megatron_native.platform.quiet import silence_libraries
from megatron_native.training.plan.findings import Finding
from megatron_native.training.plan.gpus import DEFAULT_GPU, Gpu, read_gpu
from megatron_native.training.plan.validate import data_findings, layout_findings, start_findings
from megatron_native.training.shape import find_model

if TYPE_CHECKING:
    from megatron_native.training.plan.run_plan import RunPlan
    from megatron_native.training.plan.search import SearchResult


@dataclass(frozen=True)
class PlanRequest:
    """What is asked of a plan; the command's arguments."""

    config: Path
    overrides: Sequence[str]
    world_size: int
    gpu: str = DEFAULT_GPU
    no_data: bool = False
    sbatch: Path | None = None
    storage_gb_s: float | None = None
    hf: Path | None = None
    """Hugging Face folder that will be imported; says the model's shape before the checkpoint is there."""


@dataclass
class Planned:
    """What was found of a run."""

    findings: list[Finding] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    """A line a dataset."""
    plan: RunPlan | None = None
    """None where the layout is impossible."""

    @property
    def exit_code(self) -> int:
        """0 where it fits and nothing is wrong."""
        wrong = any(finding.kind == "error" for finding in self.findings)
        return EXIT_USER_ERROR if wrong or self.plan is None or not self.plan.fits else EXIT_DONE

    def as_json(self) -> dict[str, Any]:
        """The plan, and what was found."""
        plan = {} if self.plan is None else self.plan.as_json()
        return {**plan, "findings": [finding.as_json() for finding in self.findings]}


def plan_and_check(request: PlanRequest) -> Planned:
    """Check everything about the run that can be, and plan it.

    Raises:
        UserError: the configuration can't be read, or names no such GPU or model. What is wrong beyond that is a finding.
    """
    run, model, gpu = read_request(request)
    planned = Planned(layout_findings(run, model, gpu, request.world_size))
    possible = all(finding.kind != "error" for finding in planned.findings)
    planned.findings += start_findings(run, awaited=request.no_data)
    if not request.no_data:
        found, planned.data = data_findings(run, model, str(request.config))
        planned.findings += found
    else:
        planned.findings.append(Finding("datasets were not looked at (--no-data)", "", "", "note"))
    if possible:
        from megatron_native.training.plan.run_plan import plan_run

        planned.plan = plan_run(run, model, gpu, request.world_size, request.storage_gb_s)
    if request.sbatch is not None:
        from megatron_native.training.plan.slurm_script import slurm_findings

        plan = planned.plan
        planned.findings += slurm_findings(
            request.sbatch, request.world_size, plan.saving if plan else None,
            plan.step.seconds if plan else None,
        )  # fmt: skip
    return planned


def read_request(request: PlanRequest) -> tuple[RunConfig, ModelConfig, Gpu]:
    """The run, the model's shape and the GPU of a request; files of the run are not looked at."""
    if request.world_size < 1:
        raise UserError(f"--world-size {request.world_size}: give the number of GPUs of the run, 1 or more.")
    if request.storage_gb_s is not None and request.storage_gb_s <= 0:
        raise UserError(
            f"--storage-gb-s {request.storage_gb_s}: give what the file system takes, in GB a second, above 0."
        )
    silence_libraries()
    gpu = read_gpu(request.gpu)
    run = load_run_config(request.config, request.overrides, files=False)
    model = find_model(run, request.hf)
    if model is None:
        source = run.model.checkpoint or run.model.branch_from or run.model.hf_config
        raise UserError(
            f"{source} is not there, so nothing says the model's shape: give --hf FOLDER with the model's config.json; no "
            "other file of it is needed." + ("" if request.hf is None else f" {request.hf} has none.")
        )
    return run, model, gpu


def search(request: PlanRequest, wanted: int) -> SearchResult:
    """The layouts of the run, ranked.

    Raises:
        UserError: as `plan_and_check`; or no layout fits.
    """
    from megatron_native.training.plan.search import search_layouts

    run, model, gpu = read_request(request)
    found = search_layouts(run, model, gpu, request.world_size, wanted)
    if not found.examined:
        raise UserError(
            f"no layout is possible on {request.world_size} GPUs with training.global_batch_size "
            f"{run.training.global_batch_size}: use a batch that many small numbers divide, such as "
            f"{request.world_size * 4}, or another --world-size."
        )
    if not found.candidates:
        raise UserError(
            f"of {found.examined} possible layouts on {request.world_size} × {gpu.name} none was found to fit: take more GPUs "
            "(--world-size), shorter sequences, or a GPU with more memory (--gpu)."
        )
    return found


def timeline_html(planned: RunPlan) -> str:
    """The page of a plan's timeline, of its first phase's step."""
    from megatron_native.config.layout import data_parallel_size
    from megatron_native.training.plan.table import layers_text
    from megatron_native.training.plan.timeline_page import TimelineTexts, timeline_page

    step, parallel = planned.step, planned.run.parallel
    ranks = len(planned.stages)
    each = planned.world_size // ranks
    virtual = parallel.virtual_pipeline_model_parallel_size
    rows = [
        (
            f"stage {stage.pipeline_rank} · GPUs {stage.rank}–{stage.rank + each - 1}" if each > 1 else
            f"stage {stage.pipeline_rank} · GPU {stage.rank}",
            f"{sum(map(len, stage.layers))} layers, "
            f"waits {1 - step.timeline.busy(stage.pipeline_rank) / step.timeline.seconds:.1%}",
        )
        for stage in planned.stages
    ]  # fmt: skip
    layout = f"TP{parallel.tensor_model_parallel_size} × PP{ranks}" + (f" × VPP{virtual}" if virtual else "")
    texts = TimelineTexts(
        title=f"One step of {planned.world_size} GPUs through the pipeline",
        facts=[
            ("layout", layout), ("data-parallel copies", str(data_parallel_size(planned.run, planned.world_size))),
            ("schedule", planned.schedule),
            ("micro-batches", str(step.micro_batches)), ("bubble", f"{step.timeline.bubble:.1%}"),
            ("step, estimated", f"{step.seconds:.2f} s"),
        ],
        row_labels=rows,
        notes=[
            "Every row is a pipeline stage; the GPUs of a stage do the same at the same time, each its share. "
            "Numbers in boxes are micro-batches, counted from 1.",
            f"Times are estimates with the figures of {planned.gpu.name}, not measurements. The bubble is the share of all "
            "stages' time in which they wait, for the pipeline to fill and empty and for slower stages.",
            f"Not drawn: {_after(planned)} of gradient reduction, parameter gather and optimizer after the last pass.",
            "Layers: " + "; ".join(f"stage {stage.pipeline_rank}: {layers_text(stage.layers)}" for stage in planned.stages),
        ],
    )  # fmt: skip
    return timeline_page(step.timeline, texts)


def _after(planned: RunPlan) -> str:
    return f"{(planned.step.seconds - planned.step.timeline.seconds) * 1e3:.0f} ms"
