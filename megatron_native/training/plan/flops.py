"""Floating-point operations of a training step, in the two conventions that published figures use.

A matrix product of [m, k] and [k, n] is 2·m·k·n; the backward pass has two such products for each of the forward pass. Counted
are the products of the layers, attention's two, and the output layer; not counted are embedding, norms, softmax and rotary
positions, and nothing that recomputation does a second time. Document masks spare attention that is counted here all the same.

* `full`, Megatron-LM's: attention multiplies every position with every other.
* `causal`, Megatron-Bridge's: with half of them, which is what a causal kernel does.

LLaMA3-70B at 8,192 tokens has 3.94e15 and 3.68e15 a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_native.config.model import ModelConfig

Convention = Literal["full", "causal"]

FORMULA = (
    "FLOP a token = 6·L·[h·(q + 2·kv)·d + q·d·h + 3·h·f] + 6·h·V + 12·L·q·d·s·c   (L layers, h hidden, q heads, kv key/value "
    "heads, d head width, f feed-forward, V vocabulary, s sequence; c = 1 full attention as Megatron-LM counts, 1/2 causal as "
    "Megatron-Bridge; recomputation, norms and embedding not counted)"
)


@dataclass(frozen=True)
class TokenFlops:
    """FLOP of one token of training: forward and backward."""

    layers: float
    """Matrix products of all layers with weights."""
    attention_full: float
    """Attention's two products, every position with every other."""
    output: float
    """The output layer."""

    def total(self, convention: Convention) -> float:
        """FLOP a token in a convention."""
        attention = self.attention_full if convention == "full" else self.attention_full / 2
        return self.layers + attention + self.output


def layer_matrix_parameters(model: ModelConfig) -> int:
    """Weights of one layer's matrices: query, key, value, projection, gate, up, down."""
    heads = (model.num_attention_heads + 2 * model.num_query_groups) * model.kv_channels
    projection = model.num_attention_heads * model.kv_channels
    return model.hidden_size * (heads + projection + 3 * model.ffn_hidden_size)


def token_flops(model: ModelConfig, seq_length: int) -> TokenFlops:
    """FLOP of one token in a sequence of `seq_length` tokens; the formula is `FORMULA`."""
    width = model.num_attention_heads * model.kv_channels
    return TokenFlops(
        layers=6.0 * model.num_layers * layer_matrix_parameters(model),
        attention_full=12.0 * model.num_layers * width * seq_length,
        output=6.0 * model.hidden_size * model.vocab_size,
    )


def model_flop_utilisation(tokens_a_second: float, flops_a_token: float, peak_tflops: float) -> float:
    """Share of a peak: `tokens_a_second` of one GPU, `peak_tflops` dense and of the precision that is said with it."""
    return tokens_a_second * flops_a_token / (peak_tflops * 1e12)
