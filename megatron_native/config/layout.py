"""Does the model fit the layout, and the layout the number of processes? Asked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_native.config.megatron import PlatformKind
from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import ResolvedPhase, ramp_sizes, resolve_phases
from megatron_native.config.pipeline_layout import layers_of_chunks, pipeline_findings
from megatron_native.config.requirements import fp8_dimension_findings
from megatron_native.config.run import RunConfig
from megatron_native.config.user_buffers import overlaps_tensor_parallel, tokens_of_forward_passes
from megatron_native.errors import UserError


def model_parallel_size(run: RunConfig) -> int:
    """Processes that share one copy of the model and its sequences: tensor × pipeline × context."""
    parallel = run.parallel
    return parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size


def data_parallel_size(run: RunConfig, world_size: int) -> int:
    """Copies of the model that share the batch: processes / (tensor × pipeline × context)."""
    return world_size // model_parallel_size(run)


def check_layout(run: RunConfig, model: ModelConfig, world_size: int, platform: PlatformKind | None = None) -> None:
    """Refuse impossible layouts.

    Args:
        run: the run's configuration.
        model: the model's shape.
        world_size: processes.
        platform: where it will run, where that is known and `run.platform` is `auto`; what one platform alone can't do is
            refused only where the platform is known.

    Raises:
        UserError: names every field that does not fit, its value and what would be right.
    """
    platform = platform if run.platform == "auto" else run.platform
    findings = [
        *_tensor_findings(run, model, world_size),
        *pipeline_findings(run.parallel, model),
        *_context_findings(run, model, platform),
        *_overlap_findings(run),
        *_recompute_findings(run, model, platform),
    ]
    if run.training.precision == "fp8":
        findings += _fp8_findings(run, model)
        if platform == "cuda":
            findings += fp8_dimension_findings(run, model)
    phases = resolve_phases(run)
    for phase in phases:
        findings += _length_findings(run, model, phase)
    if not findings:
        findings += _optimizer_findings(run, world_size)
        for phase in phases:
            findings += _batch_findings(run, phase, data_parallel_size(run, world_size))
    if findings:
        raise UserError("impossible layout: " + "; ".join(dict.fromkeys(findings)) + ".")


def _tensor_findings(run: RunConfig, model: ModelConfig, world_size: int) -> Iterator[str]:
    tp, pp, cp = (
        run.parallel.tensor_model_parallel_size,
        run.parallel.pipeline_model_parallel_size,
        run.parallel.context_parallel_size,
    )
    if world_size % (tp * pp * cp):
        yield (
            f"{world_size} processes cannot be split by tensor_model_parallel_size {tp} × pipeline_model_parallel_size {pp}"
            + (f" × context_parallel_size {cp}" if cp > 1 else "")
            + f": start a multiple of {tp * pp * cp} (--nproc {tp * pp * cp})"
        )
    if model.num_attention_heads % tp or model.num_query_groups % tp:
        right = [
            n
            for n in range(1, model.num_query_groups + 1)
            if model.num_attention_heads % n == 0 and model.num_query_groups % n == 0
        ]
        yield (
            f"parallel.tensor_model_parallel_size {tp} does not divide {model.num_attention_heads} attention heads and "
            f"{model.num_query_groups} key/value heads: use one of {', '.join(map(str, right))}"
        )
    if model.ffn_hidden_size % tp or model.hidden_size % tp:
        yield (
            f"parallel.tensor_model_parallel_size {tp} does not divide hidden_size {model.hidden_size} and "
            f"ffn_hidden_size {model.ffn_hidden_size}"
        )
    if run.parallel.sequence_parallel and tp == 1:
        yield "parallel.sequence_parallel needs tensor_model_parallel_size above 1: switch it off"


def _context_findings(run: RunConfig, model: ModelConfig, platform: PlatformKind | None) -> Iterator[str]:
    cp, tp = run.parallel.context_parallel_size, run.parallel.tensor_model_parallel_size
    if cp == 1:
        return
    name = f"parallel.context_parallel_size {cp}"
    if platform == "cpu":
        yield (
            f"{name} is for GPUs: only Transformer Engine's attention exchanges keys and values between processes. Set it to "
            "1, and split by tensor and pipeline parallelism"
        )
    elif run.layer_spec == "torch":
        yield f"{name} needs Transformer Engine's attention, and layer_spec is 'torch': set one of them otherwise"
    if run.data.document_boundaries and run.parallel.tp_comm_overlap:
        yield (
            f"{name} cuts every document into {2 * cp} equal parts, and with data.document_boundaries each is padded for that, "
            "so that a batch's length varies, which the buffers of parallel.tp_comm_overlap can't: set context_parallel_size "
            "to 1 and raise tensor_model_parallel_size instead, or switch one of the other two off"
        )
    if run.parallel.cp_comm_type == "a2a" and (model.num_query_groups // tp) % cp:
        yield (
            f"parallel.cp_comm_type a2a shares {model.num_query_groups} key/value heads / tensor_model_parallel_size {tp} over "
            f"context_parallel_size {cp}, which does not divide them: use p2p"
        )
    if run.parallel.cp_comm_type == "a2a+p2p":
        yield "parallel.cp_comm_type a2a+p2p needs groups of two levels, which are not made here: use p2p or a2a"


def _overlap_findings(run: RunConfig) -> Iterator[str]:
    parallel = run.parallel
    if parallel.overlap_param_gather and not (parallel.overlap_grad_reduce and parallel.use_distributed_optimizer):
        yield "parallel.overlap_param_gather needs overlap_grad_reduce and use_distributed_optimizer: switch them on too"
    if parallel.tp_comm_overlap and (parallel.tensor_model_parallel_size == 1 or not parallel.sequence_parallel):
        yield (
            f"parallel.tp_comm_overlap needs sequence_parallel and tensor_model_parallel_size above 1 (it is "
            f"{parallel.tensor_model_parallel_size}): switch the first on, or the overlap off"
        )
    if overlaps_tensor_parallel(run):
        tokens = tokens_of_forward_passes(run)
        if len(set(tokens.values())) > 1:
            yield (
                "parallel.tp_comm_overlap has buffers of one size, and forward passes have different numbers of tokens ("
                + ", ".join(f"{owner}: {count}" for owner, count in tokens.items())
                + "): make seq_length × micro_batch_size the same everywhere (evaluation.micro_batch_size too), or switch "
                "it off"
            )


def _optimizer_findings(run: RunConfig, world_size: int) -> Iterator[str]:
    parallel = run.parallel
    instances = parallel.num_distributed_optimizer_instances
    sharing = data_parallel_size(run, world_size) * parallel.context_parallel_size
    if instances > 1 and not parallel.use_distributed_optimizer:
        yield f"parallel.num_distributed_optimizer_instances {instances} needs use_distributed_optimizer: switch it on"
    if sharing % instances:
        right = [n for n in range(1, sharing + 1) if sharing % n == 0]
        yield (
            f"parallel.num_distributed_optimizer_instances {instances} does not divide the {sharing} processes that share "
            f"gradients (data × context parallel): use one of {', '.join(map(str, right))}"
        )
    if parallel.reduce_scatter_with_fp32_accumulation:
        name = "parallel.reduce_scatter_with_fp32_accumulation"
        if not parallel.use_distributed_optimizer:
            yield f"{name} needs use_distributed_optimizer: switch it on"
        if run.optimizer.grad_reduce_in_fp32:
            yield f"{name} is for gradients that are sent in BF16: set optimizer.grad_reduce_in_fp32=false, or switch it off"
        if instances > 1:
            yield f"{name} works with num_distributed_optimizer_instances 1 only, and it is {instances}"
        if run.training.precision == "fp8" and run.fp8.param_gather and parallel.overlap_grad_reduce:
            yield (
                f"{name} sends one bucket at a time, and fp8.param_gather puts FP8 and BF16 buckets together: switch one of "
                "them off"
            )


def _recompute_findings(run: RunConfig, model: ModelConfig, platform: PlatformKind | None) -> Iterator[str]:
    training = run.training
    if training.recompute == "full" and next(pipeline_findings(run.parallel, model), None) is None:
        largest = max(max(chunks) for chunks in layers_of_chunks(run.parallel, model.num_layers))
        if training.recompute_num_layers > largest:
            yield (
                f"training.recompute_num_layers {training.recompute_num_layers} is above the {largest} layers of the "
                "largest model chunk: use at most that"
            )
    if training.recompute == "selective":
        if not training.recompute_modules:
            yield "training.recompute selective recomputes training.recompute_modules, which is empty: name some"
        if "layernorm" in training.recompute_modules and training.precision == "fp8" and run.fp8.recipe == "delayed":
            yield "training.recompute_modules layernorm can't be recomputed under fp8.recipe delayed: leave it out"
        elif "layernorm" in training.recompute_modules and (platform == "cpu" or run.layer_spec == "torch"):
            yield (
                "training.recompute_modules layernorm needs Transformer Engine's layers, whose norms megatron-core can compute "
                "again: leave it out on the CPU and with layer_spec=torch"
            )


def _fp8_findings(run: RunConfig, model: ModelConfig) -> Iterator[str]:
    fp8, parallel = run.fp8, run.parallel
    edges = {"fp8.first_layers_bf16": fp8.bf16_at_start(), "fp8.last_layers_bf16": fp8.bf16_at_end()}
    if fp8.recipe == "delayed":
        reason = "fp8.recipe delayed keeps one history for all layers, so none can stay BF16"
        named = [f"{name} to 0" for name, count in edges.items() if count]
        named += ["fp8.bf16_layers to []"] if fp8.bf16_layers else []
        if named:
            yield f"{reason}: set {' and '.join(named)}, or take the recipe tensorwise"
        if run.conscience.action == "bf16":
            yield f"{reason}: set conscience.action=warn, or take the recipe tensorwise"
    if sum(edges.values()) >= model.num_layers:
        yield (
            " + ".join(f"{name} {count}" for name, count in edges.items())
            + f" leaves none of {model.num_layers} layers in FP8: lower them, or set training.precision=bf16"
        )
    share = model.num_layers // parallel.pipeline_model_parallel_size
    for name, count in edges.items():
        if share < count < model.num_layers:
            yield (
                f"{name} {count} is above {share}, the layers of one pipeline stage, and megatron-core looks no further: lower "
                "it, or name the layers in fp8.bf16_layers"
            )
    beyond = [layer for layer in fp8.bf16_layers if not 0 <= layer < model.num_layers]
    if beyond:
        yield (
            f"fp8.bf16_layers has {', '.join(map(str, beyond))}, and the model's layers are 0 to {model.num_layers - 1}: take "
            "that out"
        )
    if fp8.param_gather and not parallel.use_distributed_optimizer:
        yield (
            "fp8.param_gather keeps FP32 masters in the distributed optimizer alone: set "
            "parallel.use_distributed_optimizer=true"
        )


def _setting(run: RunConfig, phase: ResolvedPhase, section: str, field: str) -> str:
    """Where a phase's value was set, as the user would look for it."""
    for index, given in enumerate(run.phases):
        if given.name == phase.name and getattr(given, field, None) is not None:
            return f"phases.{index}.{field}"
    return f"{section}.{field}"


def _length_findings(run: RunConfig, model: ModelConfig, phase: ResolvedPhase) -> list[str]:
    setting, findings = _setting(run, phase, "data", "seq_length"), []
    tp, cp = run.parallel.tensor_model_parallel_size, run.parallel.context_parallel_size
    if cp > 1 and phase.seq_length % (2 * cp):
        findings.append(
            f"{setting} {phase.seq_length} is no multiple of {2 * cp}, which context_parallel_size {cp} needs: each process "
            "takes two parts of a sequence, so that all have the same work under the causal mask"
        )
    elif run.parallel.sequence_parallel and phase.seq_length // cp % tp:
        share = f"{setting} {phase.seq_length}" + (f" / context_parallel_size {cp}" if cp > 1 else "")
        findings.append(
            f"{share} is no multiple of tensor_model_parallel_size {tp}, which parallel.sequence_parallel needs"
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
