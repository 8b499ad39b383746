"""Does the model fit the layout, and the layout the number of processes? Asked before anything starts."""

from __future__ import annotations

from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import ResolvedPhase, ramp_sizes, resolve_phases
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError


def data_parallel_size(run: RunConfig, world_size: int) -> int:
    """Copies of the model that share the batch: processes / (tensor × pipeline × context)."""
    parallel = run.parallel
    return world_size // (
        parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    )


def check_layout(run: RunConfig, model: ModelConfig, world_size: int) -> None:
    """Refuse impossible layouts.

    Raises:
        UserError: names every field that does not fit, its value and what would be right.
    """
    tp = run.parallel.tensor_model_parallel_size
    pp = run.parallel.pipeline_model_parallel_size
    vpp = run.parallel.virtual_pipeline_model_parallel_size
    findings: list[str] = []
    if world_size % (tp * pp):
        findings.append(
            f"{world_size} processes cannot be split by tensor_model_parallel_size {tp} × "
            f"pipeline_model_parallel_size {pp}: start a multiple of {tp * pp} (--nproc {tp * pp})"
        )
    if model.num_attention_heads % tp or model.num_query_groups % tp:
        right = [n for n in range(1, model.num_query_groups + 1)
                 if model.num_attention_heads % n == 0 and model.num_query_groups % n == 0]
        findings.append(
            f"parallel.tensor_model_parallel_size {tp} does not divide {model.num_attention_heads} attention heads and "
            f"{model.num_query_groups} key/value heads: use one of {', '.join(map(str, right))}"
        )
    if model.ffn_hidden_size % tp or model.hidden_size % tp:
        findings.append(
            f"parallel.tensor_model_parallel_size {tp} does not divide hidden_size {model.hidden_size} and "
            f"ffn_hidden_size {model.ffn_hidden_size}"
        )
    if vpp is not None and pp == 1:
        findings.append(
            f"parallel.virtual_pipeline_model_parallel_size {vpp} needs pipeline_model_parallel_size above 1: leave it out"
        )
    chunks = pp * (vpp or 1)
    if model.num_layers % chunks:
        findings.append(
            f"{model.num_layers} layers cannot be split evenly over parallel.pipeline_model_parallel_size {pp}"
            + (f" × virtual_pipeline_model_parallel_size {vpp}" if vpp else "")
            + f": their product must be one of {', '.join(str(n) for n in _divisors(model.num_layers))}"
        )
    if run.parallel.sequence_parallel and tp == 1:
        findings.append("parallel.sequence_parallel needs tensor_model_parallel_size above 1: switch it off")
    if run.parallel.overlap_param_gather and not (
        run.parallel.overlap_grad_reduce and run.parallel.use_distributed_optimizer
    ):
        findings.append(
            "parallel.overlap_param_gather needs overlap_grad_reduce and use_distributed_optimizer: switch them on too"
        )
    phases = resolve_phases(run)
    for phase in phases:
        findings += _length_findings(run, model, phase)
    if not findings:
        for phase in phases:
            findings += _batch_findings(run, phase, world_size // (tp * pp))
    if findings:
        raise UserError("impossible layout: " + "; ".join(dict.fromkeys(findings)) + ".")


def _setting(run: RunConfig, phase: ResolvedPhase, section: str, field: str) -> str:
    """Where a phase's value was set, as the user would look for it."""
    for index, given in enumerate(run.phases):
        if given.name == phase.name and getattr(given, field, None) is not None:
            return f"phases.{index}.{field}"
    return f"{section}.{field}"


def _length_findings(run: RunConfig, model: ModelConfig, phase: ResolvedPhase) -> list[str]:
    setting, findings = _setting(run, phase, "data", "seq_length"), []
    tp = run.parallel.tensor_model_parallel_size
    if run.parallel.sequence_parallel and phase.seq_length % tp:
        findings.append(
            f"{setting} {phase.seq_length} is no multiple of tensor_model_parallel_size {tp}, which "
            "parallel.sequence_parallel needs"
        )
    if phase.seq_length > model.max_position_embeddings and phase.rotary_base is None:
        findings.append(
            f"{setting} {phase.seq_length} is longer than the model's max_position_embeddings "
            f"{model.max_position_embeddings}: use at most that, or give a phase that is to lengthen it a rotary_base"
        )
    return findings


def _batch_findings(run: RunConfig, phase: ResolvedPhase, dp: int) -> list[str]:
    micro = phase.micro_batch_size
    pp, vpp = run.parallel.pipeline_model_parallel_size, run.parallel.virtual_pipeline_model_parallel_size
    setting = _setting(run, phase, "training", "global_batch_size")
    sizes = [(setting, phase.global_batch_size)]
    if phase.batch_ramp is not None:
        if phase.batch_ramp.start > phase.global_batch_size:
            return [
                f"phase '{phase.name}': batch_ramp.start {phase.batch_ramp.start} is above global_batch_size "
                f"{phase.global_batch_size}: a ramp grows"
            ]
        sizes += [
            (f"phase '{phase.name}': the size in its batch_ramp", size)
            for size in ramp_sizes(phase.batch_ramp, phase.global_batch_size)
        ]
    findings = []
    for name, total in sizes:
        if total % (micro * dp):
            findings.append(
                f"{name} {total} is no multiple of micro_batch_size {micro} × data-parallel size {dp}: "
                f"use a multiple of {micro * dp}"
            )
        elif vpp is not None and (total // (micro * dp)) % pp:
            findings.append(
                f"the interleaved schedule needs micro-batches a step ({total // (micro * dp)} = global_batch_size {total} / "
                f"(micro_batch_size {micro} × data-parallel size {dp})) to be a multiple of "
                f"pipeline_model_parallel_size {pp}: use a global_batch_size of a multiple of {micro * dp * pp}"
            )
    return findings


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
