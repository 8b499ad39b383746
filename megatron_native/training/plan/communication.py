"""What the ranks of a run send one another in a step, by kind, and over which links.

Bytes are those that one rank sends: a gather or a scatter of a whole of `B` bytes over n ranks sends (n - 1)/n · B from each,
a reduction to all twice that.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.training.plan.stages import Chunk

_BF16 = 2


@dataclass(frozen=True)
class Group:
    """A process group as megatron-core lays it out: tensor, context, data, pipeline, from the inside out."""

    size: int
    stride: int
    """Distance between the ranks of two neighbours in it."""


@dataclass(frozen=True)
class Groups:
    """The groups that a rank belongs to."""

    tensor: Group
    context: Group
    data: Group
    """Data-parallel copies and context-parallel shares together: they reduce gradients as one."""
    pipeline: Group


def groups_of(run: RunConfig, world_size: int) -> Groups:
    """The groups of a run on `world_size` processes."""
    parallel = run.parallel
    tp, pp, cp = (
        parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, parallel.context_parallel_size,
    )  # fmt: skip
    both = world_size // (tp * pp)
    return Groups(Group(tp, 1), Group(cp, tp), Group(both, tp), Group(pp, tp * both))


@dataclass(frozen=True)
class LayerTraffic:
    """Bytes that a rank sends for one layer and one micro-batch."""

    tensor_forward: float
    tensor_backward: float
    tensor_backward_hidden: float
    """Of `tensor_backward`, what is always computed beside: the input gathered again, and the input's gradient scattered."""
    context_forward: float
    context_backward: float


def layer_traffic(run: RunConfig, model: ModelConfig, tokens: int) -> LayerTraffic:
    """The traffic of one layer.

    Args:
        run: the layout.
        model: the shape.
        tokens: of a micro-batch on this context-parallel rank.

    With sequence parallelism each of the two column-parallel products gathers its input and each of the two row-parallel ones
    scatters its sum; backward, a row-parallel product gathers the gradient, a column-parallel one gathers its input again and
    scatters the input's gradient. Without it there are two reductions to all in each direction. Counted in BF16, also with FP8.
    """
    parallel = run.parallel
    tp, cp = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    piece = (tp - 1) / tp * tokens * model.hidden_size * _BF16
    keys_values: float = 2 * tokens * model.num_query_groups * model.kv_channels // tp * _BF16
    if parallel.cp_comm_type in ("p2p", "all_gather"):
        context = float(cp - 1) * keys_values
    else:  # by heads: queries, keys, values and the output, each once
        queries = 2 * tokens * model.num_attention_heads * model.kv_channels // tp * _BF16
        context = (cp - 1) / cp * (queries + keys_values)
    backward = 2 * context if parallel.cp_comm_type in ("p2p", "all_gather") else context
    if parallel.sequence_parallel:
        return LayerTraffic(4 * piece, 6 * piece, 4 * piece, context, backward)
    return LayerTraffic(4 * piece, 4 * piece, 4 * piece, context, backward)


def ends_traffic(run: RunConfig, model: ModelConfig, tokens: int, chunk: Chunk) -> tuple[float, float]:
    """Bytes for embedding and output layer of a chunk and one micro-batch: forward, backward."""
    tp = run.parallel.tensor_model_parallel_size
    piece = (tp - 1) / tp * tokens * model.hidden_size * _BF16
    forward = backward = 0.0
    once = 1 if run.parallel.sequence_parallel else 2
    if chunk.embedding:
        forward += once * piece
        backward += piece if run.parallel.sequence_parallel else 0.0
    if chunk.output:
        forward += (piece if run.parallel.sequence_parallel else 0.0) + 3 * 2 * (tp - 1) / tp * tokens * 4
        backward += 2 * piece
    return forward, backward


def message_bytes(run: RunConfig, model: ModelConfig, tokens: int) -> int:
    """Bytes of one message between two pipeline stages."""
    share = run.parallel.tensor_model_parallel_size if run.parallel.sequence_parallel else 1
    return tokens * model.hidden_size * _BF16 // share


@dataclass(frozen=True)
class DataTraffic:
    """Bytes that a rank sends in a step to agree on gradients and parameters."""

    gradients: float
    parameters: float


def data_traffic(run: RunConfig, data: Group, parameters: int, layer_matrices: int) -> DataTraffic:
    """The traffic of data parallelism.

    Args:
        run: the layout and precision.
        data: the group.
        parameters: of this rank.
        layer_matrices: of them, weights of the layers' matrices, which FP8 gathers as bytes.
    """
    parallel, size = run.parallel, data.size
    if size == 1:
        return DataTraffic(0.0, 0.0)
    width = 4 if run.optimizer.grad_reduce_in_fp32 and not parallel.reduce_scatter_with_fp32_accumulation else 2
    if run.training.precision == "fp32":
        width = 4
    gradients = parameters * width
    if not parallel.use_distributed_optimizer:
        return DataTraffic(2 * (size - 1) / size * gradients, 0.0)
    instances = parallel.num_distributed_optimizer_instances
    inner = max(1, size // instances)
    across = 2 * (instances - 1) / instances * gradients / inner
    weights = parameters * (4 if run.training.precision == "fp32" else 2)
    if run.training.precision == "fp8" and run.fp8.param_gather:
        weights -= layer_matrices
    return DataTraffic((inner - 1) / inner * gradients + across, (inner - 1) / inner * weights)


@dataclass(frozen=True)
class StepVolume:
    """Bytes that a rank sends in a step, by kind."""

    tensor: float
    context: float
    pipeline: float
    gradients: float
    parameters: float

    def by_kind(self) -> dict[str, float]:
        """Kind → bytes, in words."""
        return {
            "tensor parallel": self.tensor, "context parallel": self.context, "pipeline": self.pipeline,
            "gradients": self.gradients, "parameters": self.parameters,
        }  # fmt: skip


def step_volume(
    run: RunConfig,
    model: ModelConfig,
    stages: list[list[Chunk]],
    rank: int,
    tokens: int,
    micro_batches: int,
    data: DataTraffic,
) -> StepVolume:
    """What a rank of pipeline stage `rank` sends in a step of `micro_batches` of `tokens` tokens each."""
    layer = layer_traffic(run, model, tokens)
    chunks, last = stages[rank], len(stages) * len(stages[0]) - 1
    again = recomputed_layers(run, chunks) if run.training.recompute == "full" else 0
    tensor = context = 0.0
    messages = 0
    for index, chunk in enumerate(chunks):
        stage, layers = index * len(stages) + rank, len(chunk.layers)
        tensor += layers * (layer.tensor_forward + layer.tensor_backward) + sum(ends_traffic(run, model, tokens, chunk))
        context += layers * (layer.context_forward + layer.context_backward)
        messages += ((stage < last) + (stage > 0)) if len(stages) > 1 else 0
    tensor += again * layer.tensor_forward
    context += again * layer.context_forward
    pipeline = messages * message_bytes(run, model, tokens)
    return StepVolume(
        tensor * micro_batches, context * micro_batches, pipeline * micro_batches, data.gradients, data.parameters
    )


def recomputed_layers(run: RunConfig, chunks: list[Chunk]) -> int:
    """Layers of a rank whose forward pass is done again, with `training.recompute` `full`."""
    if run.training.recompute_method == "uniform":
        return sum(len(chunk.layers) for chunk in chunks)
    return sum(min(run.training.recompute_num_layers, len(chunk.layers)) for chunk in chunks)
