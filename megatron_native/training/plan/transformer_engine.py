"""What Transformer Engine's layers keep for the backward pass: rules, by the tensors that its modules save.

Never measured: Transformer Engine was not run where these were written. They follow the modules that megatron-core's
Transformer Engine spec is made of (`LayerNormLinear`, `DotProductAttention`, `Linear`) and megatron-core's fused SwiGLU and
rope; `qualify` compares them with a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import ResolvedPhase
from megatron_native.config.run import RunConfig
from megatron_native.config.user_buffers import quantization_modes
from megatron_native.training.plan.layer_time import is_fp8_layer

_BLOCK = 128  # values of a block that share a scale, with the block-wise recipe
_SCALE = 4  # bytes of a scale, a norm's inverse deviation, a row's sum in the attention


@dataclass(frozen=True)
class Layer:
    """One transformer layer and one micro-batch, in bytes."""

    kept: dict[str, int]
    """Component → what stays from the forward pass until the backward pass."""
    recomputed: int
    """What is computed again beside it, at its most."""


class TransformerEngineRules:
    """Bytes that one micro-batch of a phase leaves in a layer.

    Args:
        run: layout, precision, recomputation.
        model: the model's shape.
        phase: sequence length and micro-batch.
    """

    def __init__(self, run: RunConfig, model: ModelConfig, phase: ResolvedPhase) -> None:
        self.run, self.model = run, model
        parallel = run.parallel
        self._tensor_parallel = parallel.tensor_model_parallel_size
        self._tokens = phase.micro_batch_size * phase.seq_length // parallel.context_parallel_size
        self._value = 4 if run.training.precision == "fp32" else 2
        divisor = self._tensor_parallel if parallel.sequence_parallel else 1
        self._outside = self._tokens // divisor
        """Tokens of a rank outside of the matrices."""

    @property
    def norm(self) -> int:
        """A norm's input and its inverse deviations."""
        return self._outside * (self.model.hidden_size * self._value + _SCALE)

    @property
    def plain_norm(self) -> int:
        """What a norm of plain torch keeps on the CPU: its input and its result before the weight, in FP32."""
        return self._outside * (self.model.hidden_size * 8 + _SCALE)

    @property
    def hidden(self) -> int:
        """A hidden state between layers, as a pipeline stage sends it."""
        return self._outside * self.model.hidden_size * self._value

    def deferred(self, micro_batches: int) -> int:
        """The output layer's inputs and gradients of micro-batches whose weight gradient waits for the end of the step."""
        limit = self.run.parallel.wgrad_deferral_limit or micro_batches
        columns = -(-self.model.vocab_size // self._tensor_parallel)
        return min(limit, micro_batches) * (self._tokens * columns * self._value + self.hidden)

    @property
    def keys_and_values(self) -> int:
        """Keys and values of one rank's tokens in one layer, as context parallelism passes them around."""
        groups = self.model.num_query_groups * self.model.kv_channels // self._tensor_parallel
        return self._tokens * 2 * groups * self._value

    @property
    def user_buffers(self) -> int:
        """Transformer Engine's buffers for overlapping tensor parallelism: a gathered hidden state for each of ten products.

        With FP8 six of them are of bytes; layers that are computed in BF16 need a second set.
        """
        values = self._tokens * self.model.hidden_size
        plain = 10 * values * self._value
        if self.run.training.precision != "fp8":
            return plain
        fp8 = 6 * values + 4 * values * self._value
        return fp8 + (plain if "none" in quantization_modes(self.run) else 0)

    def layer(self, number: int, position: int, layers: int) -> Layer:
        """Layer `number` of the model, the `position`-th of the `layers` of its chunk; both from 0."""
        training, whole = self.run.training, self._whole(number)
        if training.recompute == "full":
            group = training.recompute_num_layers
            if training.recompute_method == "uniform":
                starts = position % group == 0
                again = min(group, layers - position) * sum(whole.values()) if starts else 0
                return Layer({"recomputed from": self.hidden} if starts else {}, again)
            if position < group:
                return Layer({"recomputed from": self.hidden}, sum(whole.values()))
            return Layer(whole, 0)
        again = 0
        modules = training.recompute_modules if training.recompute == "selective" else []
        if "core_attn" in modules:  # its inputs and its output are kept for others
            again = max(again, self._row_sums)
            whole["attention core"] -= self._row_sums
        if "mlp" in modules:
            parts = ("fc1", "activation", "fc2")
            again = max(again, sum(whole.pop(name) for name in parts))
        return Layer(whole, again)

    @property
    def _row_sums(self) -> int:
        return self._tokens * self.model.num_attention_heads // self._tensor_parallel * _SCALE

    def _input(self, tokens: int, width: int, fp8: bool) -> int:
        """A matrix product's input as it is kept: quantised where the product is."""
        values = tokens * width
        if not fp8:
            return values * self._value
        return values + (values // _BLOCK * _SCALE if self.run.fp8.recipe == "blockwise" else 0)

    def _whole(self, number: int) -> dict[str, int]:
        """A layer of which nothing is recomputed."""
        model, share, fp8 = self.model, self._tensor_parallel, is_fp8_layer(self.run, self.model, number)
        heads = model.num_attention_heads * model.kv_channels // share
        groups = model.num_query_groups * model.kv_channels // share
        ffn = model.ffn_hidden_size // share
        return {
            "norms": 2 * self.norm,
            "qkv": self._input(self._outside, model.hidden_size, fp8),
            # Rotated queries and keys, values; the output, which the projection keeps too where it is not quantised.
            "attention core": self._tokens * (2 * heads + 2 * groups) * self._value + self._row_sums,
            "projection": self._input(self._tokens, heads, True) if fp8 else 0,
            "fc1": self._input(self._outside, model.hidden_size, fp8),
            "activation": self._tokens * 2 * ffn * self._value,
            "fc2": self._input(self._tokens, ffn, fp8),
        }
