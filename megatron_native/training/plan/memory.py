"""What one rank of a run holds in memory, part by part, and the most of it at any moment of a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from megatron_native.config.layout import data_parallel_size
from megatron_native.config.megatron import LayerSpec, PlatformKind, resolve_layer_spec
from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import ResolvedPhase, resolve_phases
from megatron_native.config.run import RunConfig
from megatron_native.training.plan.activations import chunk_activations
from megatron_native.training.plan.layer_time import is_fp8_layer
from megatron_native.training.plan.rank_model import RankModel, rank_model
from megatron_native.training.plan.schedule import fullest_moment, rank_order
from megatron_native.training.plan.transformer_engine import TransformerEngineRules

NCCL_ALLOWANCE = 1 << 30
"""Bytes for NCCL's channels on a GPU: an allowance, not measured."""
CUDA_ALLOWANCE = 3 << 29
"""Bytes for the CUDA context, cuBLAS's and cuDNN's workspaces and fragments of the allocator: an allowance, not measured."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank. Ranks of one pipeline stage hold equally much."""

    rank: int
    pipeline_rank: int
    layers: tuple[tuple[int, ...], ...]
    """Transformer layers of each model chunk, counted from 0 over the whole model."""
    parameters: int
    """Numbers, not bytes: what is really built there."""
    weights: int
    gradients: int
    optimizer: int
    activations: dict[str, int]
    """Component → bytes kept for the backward pass when most micro-batches are in flight."""
    communication: dict[str, int]
    """Kind → bytes of buffers beyond weights and gradients."""
    workspace: dict[str, int]
    """What comes and goes at the peak and is not kept: logits and loss, gradients of activations."""
    in_flight: tuple[int, ...]
    """For each model chunk: micro-batches whose activations are there at the peak."""

    @property
    def groups(self) -> dict[str, int]:
        """Bytes by what they are for."""
        return {
            "weights": self.weights, "gradients": self.gradients, "optimizer state": self.optimizer,
            "activations": sum(self.activations.values()), "communication": sum(self.communication.values()),
            "workspace": sum(self.workspace.values()),
        }  # fmt: skip

    @property
    def total(self) -> int:
        """Bytes at the peak of a step."""
        return sum(self.groups.values())

    @property
    def largest(self) -> tuple[str, int]:
        """The group that takes most: its name and its bytes."""
        return max(self.groups.items(), key=lambda group: group[1])


def rank_memory(
    run: RunConfig,
    model_config: ModelConfig,
    world_size: int,
    pipeline_rank: int,
    platform: PlatformKind = "cuda",
    layer_spec: LayerSpec | None = None,
) -> RankMemory:
    """The memory of the ranks of one pipeline stage, in the phase of the run whose micro-batches have most tokens.

    Args:
        run: the run; its layout has passed `config.layout.check_layout`.
        model_config: the model's shape.
        world_size: processes.
        pipeline_rank: the stage.
        platform: where it will run; on `cpu` nothing is allowed for a device's libraries.
        layer_spec: whose layers: `transformer_engine` keeps what its kernels keep on a GPU (rules, never measured), `torch`
            what the plain-torch layers keep (measured on meta); by default what the run says, `auto` with Transformer Engine.
    """
    spec = layer_spec or resolve_layer_spec(run, platform, has_transformer_engine=True)
    phase = largest_phase(run)
    micro_batches = phase.global_batch_size // (phase.micro_batch_size * data_parallel_size(run, world_size))
    rules = TransformerEngineRules(run, model_config, phase)
    with rank_model(run, model_config, world_size, pipeline_rank, platform) as rank:
        parameters, layers, number = rank.parameter_count, rank.layers, rank.rank
        weights, gradients = held_weights(rank), held_gradients(rank)
        optimizer = held_optimizer_state(rank)
        bucket = _largest_bucket(rank)
        quantised = sum(
            parameter.numel()
            for module in rank.trainable.modules
            for layer in module.decoder.layers
            if is_fp8_layer(run, model_config, layer.layer_number - 1)
            for parameter in layer.parameters()
            if parameter.dim() > 1
        )
        chunks = chunk_activations(rank, run, model_config, phase, platform, spec)
    if spec == "transformer_engine" and quantised:
        weights += _fp8_weights(run, quantised)
    stages = run.parallel.pipeline_model_parallel_size
    in_flight, last_begun = fullest_moment(
        rank_order(stages, pipeline_rank, len(chunks), micro_batches),
        [chunk.kept_bytes for chunk in chunks],
        [chunk.recomputed + chunk.workspace for chunk in chunks],
    )
    beside = chunks[last_begun]
    activations: dict[str, int] = {}
    for index, chunk in enumerate(chunks):
        for name, size in chunk.kept.items():
            activations[name] = activations.get(name, 0) + size * in_flight[index]
        for name, size in chunk.shared.items():
            activations[name] = activations.get(name, 0) + size
    if beside.recomputed:
        activations["recomputed"] = beside.recomputed
    if spec == "torch" and (inputs := _pipeline_inputs(pipeline_rank, in_flight)):
        activations["stage inputs"] = inputs * rules.hidden
    if platform == "cuda" and run.parallel.defer_embedding_wgrad_compute and pipeline_rank == stages - 1:
        activations["deferred output layer"] = rules.deferred(micro_batches)
    activations = {name: size for name, size in activations.items() if size}
    return RankMemory(
        rank=number, pipeline_rank=pipeline_rank, layers=layers, parameters=parameters, weights=weights, gradients=gradients,
        optimizer=optimizer, activations=activations,
        communication=_communication(run, rules, bucket, platform),
        workspace={"gradients and logits in passing": beside.workspace},
        in_flight=in_flight,
    )  # fmt: skip


def largest_phase(run: RunConfig) -> ResolvedPhase:
    """The phase of a run whose micro-batches have most tokens."""
    return max(resolve_phases(run), key=lambda one: (one.seq_length * one.micro_batch_size, one.global_batch_size))


def held_weights(rank: RankModel) -> int:
    """Bytes of the buffers that the rank's weights lie in, padding included."""
    return sum(_storages(p for chunk in rank.trainable.chunks for p in chunk.parameters()).values())


def held_gradients(rank: RankModel) -> int:
    """Bytes of the buffers that gradients are summed up in, padding included."""
    return sum(buffer.grad_data.nbytes for chunk in rank.trainable.chunks for buffer in chunk.buffers)


def _largest_bucket(rank: RankModel) -> int:
    """Bytes of the most gradients that are reduced at once."""
    groups = [group for chunk in rank.trainable.chunks for group in chunk.bucket_groups]
    return max((bucket.grad_data.nbytes for group in groups for bucket in group.buckets), default=0)


def held_optimizer_state(rank: RankModel) -> int:
    """Bytes of this rank's share of FP32 master weights and of the two moments; masters that are the weights count nothing."""
    model = _storages(p for chunk in rank.trainable.chunks for p in chunk.parameters())
    total = 0
    for inner in getattr(rank.trainable.optimizer, "chained_optimizers", [rank.trainable.optimizer]):
        if getattr(inner, "is_stub_optimizer", False):
            continue
        masters = [p for group in inner.optimizer.param_groups for p in group["params"]]
        total += sum(2 * 4 * p.numel() for p in masters)
        total += sum(size for key, size in _storages(masters).items() if key not in model)
    return total


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Storage → its bytes, each once."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage.nbytes()
    return found


def _fp8_weights(run: RunConfig, elements: int) -> int:
    """Bytes beside BF16 weights: a copy in FP8 and its transpose, or both in the place of BF16 where weights are FP8."""
    scales = 2 * elements * 4 // (128 * 128) if run.fp8.recipe == "blockwise" else 0
    return (0 if run.fp8.param_gather else 2 * elements) + scales


def _pipeline_inputs(pipeline_rank: int, in_flight: tuple[int, ...]) -> int:
    """Inputs of model chunks that the schedule holds: every one but the model's own."""
    return sum(in_flight) - (in_flight[0] if pipeline_rank == 0 else 0)


def _communication(
    run: RunConfig, rules: TransformerEngineRules, bucket: int, platform: PlatformKind
) -> dict[str, int]:
    """Buffers beyond weights and gradients, by kind; on a GPU with allowances for what libraries take, never measured."""
    parallel, found = run.parallel, {}
    if parallel.pipeline_model_parallel_size > 1:
        found["pipeline messages"] = 4 * rules.hidden  # one to send and one to receive, of activations and of gradients
    if parallel.reduce_scatter_with_fp32_accumulation:
        found["gradient exchange"] = bucket
    if parallel.context_parallel_size > 1:
        found["keys and values of a neighbour"] = 2 * rules.keys_and_values
    if platform == "cuda":
        if parallel.tp_comm_overlap and run.training.mode == "fast":
            found["tensor-parallel user buffers"] = rules.user_buffers
        found["NCCL (allowance)"] = NCCL_ALLOWANCE
        found["CUDA context and libraries (allowance)"] = CUDA_ALLOWANCE
    return found
