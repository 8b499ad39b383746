"""A roofline of one layer, and of the ends of the model: seconds of one micro-batch, forward and backward.

A matrix product takes what its FLOP need at the rate that is reached, or its bytes at the memory's bandwidth, whichever is
longer. What computes little (norms, residual sums, SwiGLU, rotary positions, casts to FP8, the loss) takes what its bytes
need. Attention is that of a causal kernel over whole sequences, with no document masks. Transformer Engine's kernels are
assumed; time between kernels is not counted, so a model of small matrices is in truth slower.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.training.plan.communication import Groups, ends_traffic, layer_traffic
from megatron_native.training.plan.gpus import Gpu
from megatron_native.training.plan.stages import Chunk


@dataclass(frozen=True)
class Seconds:
    """Time by what takes it; all add up."""

    matmul: float = 0.0
    attention: float = 0.0
    memory: float = 0.0
    """Bound by the memory's bandwidth."""
    tensor_exposed: float = 0.0
    """Tensor-parallel communication that is waited for."""
    context_exposed: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.matmul + self.attention + self.memory + self.tensor_exposed + self.context_exposed

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Seconds)))

    def times(self, factor: float) -> Seconds:
        """So many times as long."""
        return Seconds(*(getattr(self, field.name) * factor for field in fields(Seconds)))


@dataclass(frozen=True)
class LayerTime:
    """One layer and one micro-batch."""

    forward: Seconds
    backward: Seconds
    """With what is recomputed by `selective`."""


def is_fp8_layer(run: RunConfig, model: ModelConfig, layer: int) -> bool:
    """Whether the matrix products of a layer are in FP8."""
    if run.training.precision != "fp8":
        return False
    fp8 = run.fp8
    return fp8.bf16_at_start() <= layer < model.num_layers - fp8.bf16_at_end() and layer not in fp8.bf16_layers


def layer_time(
    run: RunConfig, model: ModelConfig, gpu: Gpu, groups: Groups, tokens: int, seq_length: int, fp8: bool
) -> LayerTime:
    """The time of one layer.

    Args:
        run: layout and precision.
        model: the shape.
        gpu: rates.
        groups: who talks to whom.
        tokens: of a micro-batch on this context-parallel rank.
        seq_length: of a whole sequence.
        fp8: whether this layer's products are in FP8.
    """
    tp = groups.tensor.size
    h, d = model.hidden_size, model.kv_channels
    q, kv, f = model.num_attention_heads * d / tp, model.num_query_groups * d / tp, model.ffn_hidden_size / tp
    products = [(h, q + 2 * kv), (q, h), (h, 2 * f), (f, h)]  # inputs, outputs of: qkv, projection, gate and up, down
    mlp = products[2:]
    around = tokens / tp if run.parallel.sequence_parallel else tokens
    hbm = gpu.hbm_bytes_s

    def product(shapes: list[tuple[float, float]], backward: bool) -> float:
        return sum(_product_seconds(run, gpu, tokens, inputs, outputs, fp8, backward) for inputs, outputs in shapes)

    def casts(shapes: list[tuple[float, float]], backward: bool) -> float:
        if not fp8:
            return 0.0
        # read for the largest value (current scaling alone), read again, written as it is and transposed
        bytes_a_value = 6 if run.fp8.recipe == "tensorwise" else 4
        return sum(tokens * (outputs if backward else inputs) * bytes_a_value for inputs, outputs in shapes) / hbm

    norms, sums = 2 * 4 * h * around / hbm, 2 * 6 * h * around / hbm
    swiglu, rotary = 6 * f * tokens / hbm, 4 * (q + kv) * tokens / hbm
    attention_flop = 2 * tokens * seq_length * q  # two products of 2·t·s·q each, half of them behind the causal mask
    attention = attention_flop / gpu.attention_flops(backward=False)
    attention_back = 2.5 * attention_flop / gpu.attention_flops(backward=True)  # five products, where forward has two
    traffic = layer_traffic(run, model, tokens)
    tensor = gpu.link_bytes_s(tp, groups.tensor.stride)
    share = gpu.shares.tp_exposed if run.parallel.tp_comm_overlap and run.training.mode == "fast" else 1.0
    hidden = traffic.tensor_backward_hidden if run.parallel.sequence_parallel else traffic.tensor_backward / 2
    forward = Seconds(
        matmul=product(products, False),
        attention=attention,
        memory=norms + sums + swiglu + rotary + casts(products, False),
        tensor_exposed=share * traffic.tensor_forward / tensor,
        context_exposed=_context_exposed(run, gpu, groups, traffic.context_forward, attention),
    )
    backward = Seconds(
        matmul=product(products, True),
        attention=attention_back,
        memory=1.5 * norms + sums / 2 + swiglu * 10 / 6 + rotary + casts(products, True),
        tensor_exposed=(
            share * (traffic.tensor_backward - hidden) + min(share, gpu.shares.tp_exposed) * hidden
        ) / tensor,
        context_exposed=_context_exposed(run, gpu, groups, traffic.context_backward, attention_back),
    )  # fmt: skip
    if run.training.recompute == "selective":
        modules = run.training.recompute_modules
        if "core_attn" in modules:
            backward += Seconds(attention=attention, context_exposed=forward.context_exposed)
        if "mlp" in modules:
            again = product(mlp, False), swiglu + casts(mlp, False), forward.tensor_exposed / 2
            backward += Seconds(matmul=again[0], memory=again[1], tensor_exposed=again[2])
        if "layernorm" in modules:
            backward += Seconds(memory=norms)
    return LayerTime(forward, backward)


def ends_time(run: RunConfig, model: ModelConfig, gpu: Gpu, groups: Groups, tokens: int, chunk: Chunk) -> LayerTime:
    """The time of embedding, output layer and loss, where a chunk has them; always BF16."""
    tp, hbm = groups.tensor.size, gpu.hbm_bytes_s
    forward = backward = Seconds()
    if chunk.embedding:
        bytes_moved = 4 * model.hidden_size * tokens
        forward, backward = Seconds(memory=bytes_moved / hbm), Seconds(memory=2 * bytes_moved / hbm)
    if chunk.output:
        outputs, inputs = model.vocab_size / tp, model.hidden_size
        logits = tokens * outputs
        # logits to FP32, largest value, differences, exponentials and their sum; backward the probabilities once more
        forward += Seconds(
            matmul=_product_seconds(run, gpu, tokens, inputs, outputs, False, backward=False), memory=16 * logits / hbm
        )
        backward += Seconds(
            matmul=_product_seconds(run, gpu, tokens, inputs, outputs, False, backward=True), memory=8 * logits / hbm
        )
    there, back = ends_traffic(run, model, tokens, chunk)
    link = gpu.link_bytes_s(tp, groups.tensor.stride)
    return LayerTime(forward + Seconds(tensor_exposed=there / link), backward + Seconds(tensor_exposed=back / link))


def _product_seconds(
    run: RunConfig, gpu: Gpu, tokens: float, inputs: float, outputs: float, fp8: bool, backward: bool
) -> float:
    """Seconds of [tokens, inputs] · [inputs, outputs]; `backward`: of the gradients of its input and of its weight."""
    rate, width = (gpu.fp8_flops, 1) if fp8 else (gpu.bf16_flops, 2)
    if run.training.precision == "fp32":
        rate, width = gpu.fp32_flops, 4
    flop_seconds = 2 * tokens * inputs * outputs / rate
    moved = width * (tokens * inputs + inputs * outputs) + 2 * tokens * outputs
    if not backward:
        return max(flop_seconds, moved / gpu.hbm_bytes_s)
    gradient = 2 * (4 if run.optimizer.grad_reduce_in_fp32 else 2) * inputs * outputs  # read, added to, written
    weight_bytes = width * tokens * (inputs + outputs) + gradient
    return max(flop_seconds, moved / gpu.hbm_bytes_s) + max(flop_seconds, weight_bytes / gpu.hbm_bytes_s)


def _context_exposed(run: RunConfig, gpu: Gpu, groups: Groups, sent: float, attention: float) -> float:
    """Seconds of context-parallel communication that attention does not hide: around a ring each piece hides behind the one
    before; a gather or an exchange of heads comes first.
    """
    size = groups.context.size
    if size == 1:
        return 0.0
    seconds = sent / gpu.link_bytes_s(size, groups.context.stride)
    if run.parallel.cp_comm_type != "p2p":
        return seconds
    pieces = size - 1
    return pieces * max(0.0, seconds / pieces - attention / size)
