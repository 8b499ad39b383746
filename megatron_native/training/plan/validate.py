"""Everything about a run that can be checked before it has a GPU: layout, data, where it starts, the Slurm script.

A run that would die after an hour in the queue is to die here. Nothing is raised for what is wrong: all of it is found at once.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_native.checkpoint.layout import check_complete
from megatron_native.config.layout import check_layout, model_parallel_size
from megatron_native.config.load import check_files
from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import resolve_phases
from megatron_native.config.presets import replay_remark
from megatron_native.config.run import RunConfig
from megatron_native.data.startup_check import check_datasets
from megatron_native.errors import UserError
from megatron_native.training.plan.findings import Finding
from megatron_native.training.plan.gpus import Gpu

EPOCHS_OF_NOTE = 4.0
"""Repetitions of a dataset above which it is said; up to about four are worth nearly as much as new text (Muennighoff et al.,
Scaling Data-Constrained Language Models, 2023)."""


def layout_findings(run: RunConfig, model: ModelConfig, gpu: Gpu, world_size: int) -> list[Finding]:
    """Does the layout fit the model, the number of GPUs, and the GPU?"""
    findings: list[Finding] = []
    parallel = run.parallel
    share = model_parallel_size(run)
    if world_size % share:
        findings.append(Finding(
            f"{world_size} GPUs can't be split by tensor {parallel.tensor_model_parallel_size} × pipeline "
            f"{parallel.pipeline_model_parallel_size} × context {parallel.context_parallel_size} parallelism", "",
            f"plan for a multiple of {share}, or change one of the three",
        ))  # fmt: skip
        return findings
    try:
        check_layout(run, model, world_size)
    except UserError as error:
        findings.append(Finding(str(error), "", ""))
        return findings
    if run.training.precision == "fp8" and gpu.fp8_tflops is None:
        findings.append(Finding(
            f"training.precision is fp8, and {gpu.name} has no FP8", "its matrix units don't know the format",
            "set training.precision=bf16, or plan for another GPU",
        ))  # fmt: skip
    tensor = parallel.tensor_model_parallel_size
    if tensor > gpu.gpus_a_node:
        findings.append(Finding(
            f"parallel.tensor_model_parallel_size {tensor} is more than the {gpu.gpus_a_node} GPUs of a node",
            "every layer would wait for the network between nodes several times", f"use at most {gpu.gpus_a_node}", "note",
        ))  # fmt: skip
    return findings


def data_findings(run: RunConfig, model: ModelConfig, source: str) -> tuple[list[Finding], list[str]]:
    """Are the run's files there and its datasets whole, and how often is each repeated? Findings, and a line a dataset.

    The datasets are checked as the run's start does it, and the result is kept for it in the run folder.
    """
    try:
        check_files(run, source)
    except UserError as error:
        return [Finding(str(error), "", "make them, or plan with --no-data until they are there")], []
    lines: list[str] = []
    try:
        facts = check_datasets(run, model, lines.append)
    except UserError as error:
        return [Finding(str(error), "", "")], lines
    findings = [
        Finding(
            f"the dataset {name} is repeated {epochs:.1f} times over the run", "text that comes so often is learned by "
            "heart and teaches less each time", "lower its weight, shorten the run, or find more text", "note",
        )
        for name, epochs in epochs_of(run, facts).items() if epochs > EPOCHS_OF_NOTE
    ]  # fmt: skip
    remark = replay_remark(run)
    if remark:
        findings.append(Finding(remark.removeprefix("note: "), "", "", "note"))
    return findings, lines


def epochs_of(run: RunConfig, facts: Mapping[Path, Mapping[str, Any]]) -> dict[str, float]:
    """Dataset name → how often the whole run goes through it, by tokens.

    Args:
        run: the run.
        facts: dataset prefix → what `check_datasets` found, of which `tokens` is read.
    """
    taken: dict[str, float] = defaultdict(float)
    prefixes: dict[str, Path] = {}
    for phase in resolve_phases(run):
        total = sum(phase.weights.values())
        for name, weight in phase.weights.items():
            taken[name] += phase.total_tokens * weight / total
            prefixes[name] = phase.datasets[name]
    return {
        name: tokens / facts[prefixes[name]]["tokens"]
        for name, tokens in taken.items() if prefixes[name] in facts and facts[prefixes[name]]["tokens"]
    }  # fmt: skip


def start_findings(run: RunConfig, awaited: bool) -> list[Finding]:
    """Is what the run starts from whole, and can its folder be written?

    Args:
        run: the run.
        awaited: whether a checkpoint may be made yet; where not, `data_findings` says that the one to start from is missing.
    """
    findings = []
    source = run.model.checkpoint or run.model.branch_from
    if source is not None and awaited and not source.exists():
        findings.append(Finding(
            f"{source}, which the run starts from, is not there yet", "", "make it with import-hf before the run", "note",
        ))  # fmt: skip
    elif source is not None and (source.exists() or source == run.model.branch_from):
        try:
            check_complete(source)
        except UserError as error:
            findings.append(Finding(str(error), "", ""))
    elif source is None:
        findings.append(Finding(
            "the run starts from random weights (model.hf_config)", "nothing of a trained model is continued",
            "for continued pre-training give model.checkpoint, which import-hf writes", "note",
        ))  # fmt: skip
    folder = run.run_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        findings.append(Finding(
            f"run_dir {run.run_dir} can't be written", f"no permission in {folder}", "choose another run_dir",
        ))  # fmt: skip
    if run.checkpointing.save_interval == 0:
        findings.append(Finding(
            "checkpointing.save_interval is 0", "a run that dies loses everything since its beginning",
            "set it to the steps of half an hour or so", "note",
        ))  # fmt: skip
    return findings
