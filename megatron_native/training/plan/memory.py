"""What one rank of a run holds in memory, part by part, and the most of it at any moment of a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from megatron_native.config.layout import data_parallel_size
from megatron_native.config.megatron import LayerSpec, PlatformKind, resolve_layer_spec
from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import resolve_phases
from megatron_native.config.run import RunConfig
from megatron_native.training.plan.activations import ChunkActivations, chunk_activations
from megatron_native.training.plan.layer_time import is_fp8_layer
from megatron_native.training.plan.rank_model import RankModel, rank_model
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
    chunk_activations: tuple[dict[str, int], ...]
    """For each model chunk: component → bytes that one micro-batch leaves there for its backward pass."""
    in_flight: tuple[int, ...]
    """For each model chunk: micro-batches whose activations are there at the peak."""

    @property
    def parts(self) -> dict[str, int]:
        """Every part by name, in bytes; activations, communication and workspace by component."""
        parts = {"weights": self.weights, "gradients": self.gradients, "optimizer state": self.optimizer}
        for group, values in (
            ("activations", self.activations), ("communication", self.communication), ("workspace", self.workspace),
        ):  # fmt: skip
            parts.update({f"{group}: {name}": value for name, value in values.items()})
        return parts

    @property
    def static(self) -> int:
        """Bytes that stay through the whole run: weights, gradients, optimizer state, communication buffers."""
        return self.weights + self.gradients + self.optimizer + sum(self.communication.values())

    @property
    def total(self) -> int:
        """Bytes at the peak of a step."""
        return self.static + sum(self.activations.values()) + sum(self.workspace.values())

    peak = total

    @property
    def largest(self) -> tuple[str, int]:
        """The group that takes most: its name and its bytes."""
        groups = {
            "weights": self.weights, "gradients": self.gradients, "optimizer state": self.optimizer,
            "activations": sum(self.activations.values()), "communication": sum(self.communication.values()),
            "workspace": sum(self.workspace.values()),
        }  # fmt: skip
        name = max(groups, key=lambda group: groups[group])
        return name, groups[name]


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
    phase = max(resolve_phases(run), key=lambda one: (one.seq_length * one.micro_batch_size, one.global_batch_size))
    micro_batches = phase.global_batch_size // (phase.micro_batch_size * data_parallel_size(run, world_size))
    rules = TransformerEngineRules(run, model_config, phase)
    with rank_model(run, model_config, world_size, pipeline_rank, platform) as rank:
        parameters, layers, number = rank.parameter_count, rank.layers, rank.rank
        weights, gradients = held_weights(rank), held_gradients(rank)
        optimizer = held_optimizer_state(rank)
        bucket = _largest_bucket(rank)
        quantised = sum(
            parameter.elements
            for parameter in rank.parameters
            if parameter.kind == "matrix"
            and is_fp8_layer(run, model_config, _layer_of(parameter.name, layers[parameter.chunk]))
        )
        chunks = chunk_activations(rank, run, model_config, phase, platform, spec)
    if spec == "transformer_engine" and quantised:
        weights += _fp8_weights(run, quantised)
    order = step_order(run, pipeline_rank, micro_batches)
    peak = _peak(order, chunks)
    activations: dict[str, int] = {}
    for index, chunk in enumerate(chunks):
        for name, size in chunk.kept.items():
            activations[name] = activations.get(name, 0) + size * peak.in_flight[index]
        for name, size in chunk.shared.items():
            activations[name] = activations.get(name, 0) + size
    if peak.recomputed:
        activations["recomputed"] = peak.recomputed
    if spec == "torch" and (inputs := _pipeline_inputs(run, pipeline_rank, peak.in_flight)):
        activations["stage inputs"] = inputs * rules.hidden
    last = pipeline_rank == run.parallel.pipeline_model_parallel_size - 1
    if platform == "cuda" and run.parallel.defer_embedding_wgrad_compute and last:
        activations["deferred output layer"] = rules.deferred(micro_batches)
    activations = {name: size for name, size in activations.items() if size}
    return RankMemory(
        rank=number, pipeline_rank=pipeline_rank, layers=layers, parameters=parameters, weights=weights, gradients=gradients,
        optimizer=optimizer, activations=activations,
        communication=_communication(run, rules, bucket, platform),
        workspace={"gradients and logits in passing": peak.workspace},
        chunk_activations=tuple(dict(chunk.kept) for chunk in chunks), in_flight=peak.in_flight,
    )  # fmt: skip


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


def step_order(run: RunConfig, pipeline_rank: int, micro_batches: int) -> list[tuple[bool, int]]:
    """What a rank of a stage does in one step, in order: (forward?, model chunk).

    megatron-core's schedules: 1F1B, or the interleaved one in groups of as many micro-batches as there are stages.
    """
    stages = run.parallel.pipeline_model_parallel_size
    chunks = run.parallel.virtual_pipeline_model_parallel_size or 1
    forward = [
        chunk
        for start in range(0, micro_batches, stages)
        for chunk in range(chunks)
        for _ in range(start, min(start + stages, micro_batches))
    ]
    backward = [chunks - 1 - chunk for chunk in forward]
    if stages == 1:
        warm_up = 0
    elif chunks == 1:
        warm_up = stages - pipeline_rank - 1
    else:
        warm_up = 2 * (stages - pipeline_rank - 1) + (chunks - 1) * stages
    warm_up = min(warm_up, len(forward))
    order = [(True, chunk) for chunk in forward[:warm_up]]
    for one, other in zip(forward[warm_up:], backward):
        order += [(True, one), (False, other)]
    return order + [(False, chunk) for chunk in backward[len(forward) - warm_up :]]


@dataclass(frozen=True)
class _Peak:
    in_flight: tuple[int, ...]
    recomputed: int
    workspace: int


def _peak(order: list[tuple[bool, int]], chunks: tuple[ChunkActivations, ...]) -> _Peak:
    """The moment of a step at which activations and what is beside them are most: at the beginning of a backward pass."""
    live, most = [0] * len(chunks), -1
    kept, found = [chunk.kept_bytes for chunk in chunks], _Peak((0,) * len(chunks), 0, 0)
    for forward, chunk in order:
        if forward:
            live[chunk] += 1
            continue
        beside = chunks[chunk]
        now = sum(count * size for count, size in zip(live, kept)) + beside.recomputed + beside.workspace
        if now > most:
            most, found = now, _Peak(tuple(live), beside.recomputed, beside.workspace)
        live[chunk] -= 1
    return found


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Storage → its bytes, each once."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage.nbytes()
    return found


def _layer_of(name: str, layers: tuple[int, ...]) -> int:
    """The layer of the whole model that a parameter of a chunk belongs to."""
    return layers[int(name.partition("layers.")[2].partition(".")[0])]


def _fp8_weights(run: RunConfig, elements: int) -> int:
    """Bytes beside BF16 weights: a copy in FP8 and its transpose, or both in the place of BF16 where weights are FP8."""
    scales = 2 * elements * 4 // (128 * 128) if run.fp8.recipe == "blockwise" else 0
    return (0 if run.fp8.param_gather else 2 * elements) + scales


def _pipeline_inputs(run: RunConfig, pipeline_rank: int, in_flight: tuple[int, ...]) -> int:
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
