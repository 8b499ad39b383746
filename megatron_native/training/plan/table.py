"""A plan on the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from megatron_native.config.layout import data_parallel_size
from megatron_native.training.plan.checkpoint_size import stored_parameters
from megatron_native.training.plan.findings import Finding
from megatron_native.training.plan.flops import FORMULA
from megatron_native.training.plan.memory import RankMemory
from megatron_native.training.plan.run_plan import RunPlan, gib, overrides_text
from megatron_native.training.plan.search import SearchResult

WIDTH = 120


def plan_table(plan: RunPlan) -> str:
    """All that a plan found, as text."""
    parts = [_heading(plan), _memory(plan), _verdict(plan), _speed(plan), _phases(plan), _saving(plan), _honesty(plan)]
    return "\n\n".join(parts)


def findings_text(findings: Sequence[Finding]) -> str:
    """What was found wrong, errors first; one paragraph each."""
    ordered = sorted(findings, key=lambda finding: finding.kind != "error")
    return "\n".join(_wrapped(f"{finding.kind}: {finding}") for finding in ordered)


def layers_text(layers: Sequence[Sequence[int]]) -> str:
    """Layers of a stage, counted from 0: `0-9`, or chunk by chunk `0-1 16-17`."""
    return " ".join(_span(chunk) for chunk in layers) or "none"


def _span(layers: Sequence[int]) -> str:
    if not layers:
        return "–"
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"


def _wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows in columns; the first `left` of them flush left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _heading(plan: RunPlan) -> str:
    parallel, training = plan.run.parallel, plan.run.training
    layout = [f"tensor {parallel.tensor_model_parallel_size}", f"pipeline {parallel.pipeline_model_parallel_size}"]
    if parallel.virtual_pipeline_model_parallel_size:
        layout[-1] += f" × {parallel.virtual_pipeline_model_parallel_size} chunks"
    if parallel.context_parallel_size > 1:
        layout.append(f"context {parallel.context_parallel_size}")
    layout.append(f"data {data_parallel_size(plan.run, plan.world_size)}")
    model = plan.model
    recompute: str = training.recompute
    if recompute == "selective":
        recompute += f" ({', '.join(training.recompute_modules)})"
    return (
        f"{model.family}, {model.num_layers} layers of {model.hidden_size:,}, vocabulary {model.vocab_size:,}, "
        f"{stored_parameters(model, 1):,} parameters; {training.precision.upper()}, recompute {recompute}\n"
        f"{plan.world_size} × {plan.gpu.name}: {' · '.join(layout)}"
    )


def _memory(plan: RunPlan) -> str:
    rows = [(
        "stage", "layers", "parameters", "weights", "gradients", "optimizer", "activations", "buffers", "passing",
        "peak", "free", "",
    )]  # fmt: skip
    for stage in plan.stages:
        rows.append((
            str(stage.pipeline_rank), layers_text(stage.layers), f"{stage.parameters:,}", gib(stage.weights),
            gib(stage.gradients), gib(stage.optimizer), gib(sum(stage.activations.values())),
            gib(sum(stage.communication.values())), gib(sum(stage.workspace.values())), gib(stage.total), gib(plan.room(stage)),
            "fits" if plan.room(stage) >= 0 else "DOES NOT FIT",
        ))  # fmt: skip
    head = f"Memory of one GPU of each pipeline stage at its fullest, in GiB ({gib(plan.gpu.usable_bytes)} usable)"
    return f"{head}\n{aligned(rows, left=2)}\n{_components(plan.fullest)}"


def _components(stage: RankMemory) -> str:
    lines = []
    for name, values in (
        ("activations", stage.activations),
        ("communication", stage.communication),
        ("workspace", stage.workspace),
    ):
        shown = sorted(((size, part) for part, size in values.items() if size >= 2**20), reverse=True)
        if shown:
            lines.append(
                _wrapped(
                    f"{name} of stage {stage.pipeline_rank}: "
                    + ", ".join(f"{part} {size / 2**30:.2f}" for size, part in shown)
                )
            )
    flight = ", ".join(map(str, stage.in_flight))
    lines.append(f"micro-batches in flight there: {flight}" + (" (by model chunk)" if len(stage.in_flight) > 1 else ""))
    return "\n".join(lines)


def _verdict(plan: RunPlan) -> str:
    stage = plan.fullest
    largest, size = stage.largest
    if plan.fits:
        return (
            f"It fits: stage {stage.pipeline_rank} needs most, {gib(stage.total)} GiB; largest there: {largest}, "
            f"{gib(size)} GiB."
        )
    text = (
        f"It does NOT fit: stage {stage.pipeline_rank} lacks {gib(-plan.room(stage))} GiB; largest there: {largest}, "
        f"{gib(size)} GiB of {gib(stage.total)}."
    )
    if not plan.remedies:
        return text + "\nNo single setting makes it fit; --search ranks the layouts that do."
    lines = ["Single settings that make it fit, fastest first (estimates):"]
    for remedy in plan.remedies:
        lines.append(f"  {remedy.text}  →  {gib(remedy.peak)} GiB, {remedy.tokens_a_second:,.0f} tokens/s/GPU")
    return "\n".join([text, *lines])


def _speed(plan: RunPlan) -> str:
    step = plan.step
    largest = max(step.volumes, key=lambda volume: sum(volume.by_kind().values()))
    sent = ", ".join(f"{kind} {_bytes(size)}" for kind, size in largest.by_kind().items() if size)
    rows = [
        (
            "micro-batches a step",
            f"{step.micro_batches} of {plan.run.training.micro_batch_size} ({plan.schedule}; bubble "
            f"{step.timeline.bubble:.1%} of all stages' time, "
            f"{step.bubble_seconds / step.timeline.seconds:.1%} of the busiest's)",
        ),
        ("tokens a step", f"{step.tokens:,}"),
        (
            "FLOP a token",
            f"{step.flops_a_token['full']:.3e} (full attention), {step.flops_a_token['causal']:.3e} (causal)",
        ),
        ("sent by a GPU a step", sent or "nothing"),
        ("step, estimated", f"{step.seconds:.2f} s"),
        (
            "tokens/s/GPU, estimated",
            f"{step.tokens_a_second:,.0f} ({step.tokens_a_second * step.world_size:,.0f} in all)",
        ),
        ("model FLOP utilisation", _utilisation(plan)),
    ]
    return aligned(rows, left=2) + "\n" + "\n".join(_parts(plan))


def _utilisation(plan: RunPlan) -> str:
    step = plan.step
    rate = step.tokens_a_second * step.flops_a_token["causal"] / 1e12
    return (
        f"{step.utilisation['causal']:.1%} causal, {step.utilisation['full']:.1%} full, of {step.peak_tflops:,.0f} TFLOP/s "
        f"{step.peak_of}; {rate:,.0f} TFLOP/s causal"
    )


def _parts(plan: RunPlan) -> Iterator[str]:
    seconds = plan.step.seconds
    shown = [f"{name} {part / seconds:.1%}" for name, part in plan.step.parts().items() if part / seconds >= 0.0005]
    yield _wrapped("where the step goes, on the busiest stage: " + ", ".join(shown))


def _phases(plan: RunPlan) -> str:
    rows = [("phase", "tokens", "steps", "s/step", "tokens/s/GPU", "days", "GPU-hours")]
    for phase in plan.phases:
        rows.append((
            phase.name, f"{phase.tokens:,}", f"{phase.steps:,}", f"{phase.step.seconds:.2f}",
            f"{phase.step.tokens_a_second:,.0f}", f"{phase.days:,.2f}", f"{phase.gpu_hours:,.0f}",
        ))  # fmt: skip
    if len(plan.phases) > 1:
        rows.append((
            "all", f"{sum(phase.tokens for phase in plan.phases):,}", f"{sum(phase.steps for phase in plan.phases):,}", "", "",
            f"{sum(phase.days for phase in plan.phases):,.2f}", f"{sum(phase.gpu_hours for phase in plan.phases):,.0f}",
        ))  # fmt: skip
    return "Estimated length, without saves, evaluations and stops\n" + aligned(rows)


def _saving(plan: RunPlan) -> str:
    return (
        f"checkpoint: {_bytes(plan.saving.bytes)}, about {plan.saving.seconds:,.0f} s to write at "
        f"{plan.saving.gb_a_second:.3g} GB/s ({plan.saving.rate_is})"
    )


def _honesty(plan: RunPlan) -> str:
    shares = plan.gpu.shares
    return "\n".join([
        _wrapped(FORMULA),
        _wrapped(
            f"Times are estimates from a roofline with {plan.gpu.key}'s figures: {shares.bf16_matmul:.0%} of the BF16 and "
            f"{shares.fp8_matmul:.0%} of the FP8 peak in matrix products, {shares.hbm:.0%} of the memory's bandwidth. They "
            "were not measured. Memory of Transformer Engine's layers is by rules. docs/plan.md says how both are worked out."
        ),
    ])  # fmt: skip


def _bytes(size: float) -> str:
    for unit, power in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= power:
            return f"{size / power:,.2f} {unit}"
    return f"{size:,.0f} B"


def search_table(found: SearchResult) -> str:
    """Layouts ranked by their estimate, and the fastest as overrides."""
    rows = [
        (
            "tensor",
            "pipeline",
            "chunks",
            "context",
            "data",
            "micro-batch",
            "recompute",
            "tokens/s/GPU",
            "peak GiB",
            "bubble",
            "",
        )
    ]
    for one in found.candidates:
        rows.append((
            str(one.tensor), str(one.pipeline), str(one.chunks), str(one.context), str(one.data), str(one.micro_batch),
            one.recompute, f"{one.tokens_a_second:,.0f}", gib(one.peak), f"{one.bubble:.1%}",
            "" if one.settings else "the run's own",
        ))  # fmt: skip
    head = (
        f"{found.examined} layouts are possible, {found.looked_at} were looked at for memory; the fastest that fit, by "
        "estimate (not measured):"
    )
    return f"{head}\n{aligned(rows, left=0)}\n" + _wrapped(
        "the first as settings: " + overrides_text(found.candidates[0].settings)
        if found.candidates[0].settings
        else "the first is the run's own: nothing to change"
    )
