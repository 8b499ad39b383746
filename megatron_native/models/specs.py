"""Layer specs: which modules megatron-core assembles a transformer layer from.

On GPUs they are Transformer Engine's. The plain-torch spec is for the CPU and for GPUs without Transformer Engine:
megatron-core's own parallel linear layers with torch's `scaled_dot_product_attention` as core attention and an RMSNorm
that allows sequence parallelism (megatron-core's torch norm refuses it).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional

from megatron_native.models.fp8_emulation import Fp8ColumnParallelLinear, Fp8RowParallelLinear


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension (Zhang and Sennrich, 2019), computed in FP32 inside torch.

    With sequence parallelism each process sees a part of the sequence, so the weight's gradient must be summed over
    the tensor-parallel group: the `sequence_parallel` mark on the weight asks megatron-core for that.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] → the same, normalised."""
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class TorchCausalAttention(MegatronModule):
    """Core attention by `scaled_dot_product_attention`: causal, grouped-query, no dropout.

    Every query sees itself and what stands before it in its sequence, or in its document where megatron-core's
    `PackedSeqParams` say where documents begin. No mask tensor is made or read.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        if config.attention_dropout:
            raise ValueError("TorchCausalAttention has no dropout; set attention_dropout to 0")
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels or 0)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Query [s, b, heads, channels], key and value [s, b, groups, channels] → [s, b, heads · channels].

        With `packed_seq_params` in THD format the inputs are [t, heads or groups, channels], documents one after another,
        and the result is [t, heads, channels].

        Raises:
            ValueError: a bias or another packed format is given, which this attention does not apply.
        """
        if attention_bias is not None:
            raise ValueError("TorchCausalAttention applies no attention bias")
        if packed_seq_params is not None:
            return self._by_document(query, key, value, packed_seq_params)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        return self._attend(query, key, value).permute(2, 0, 1, 3).flatten(2).contiguous()

    def _by_document(self, query: Tensor, key: Tensor, value: Tensor, packed: Any) -> Tensor:
        if packed.qkv_format != "thd" or packed.cu_seqlens_q is not packed.cu_seqlens_kv:
            raise ValueError("TorchCausalAttention takes packed sequences in THD format, queries and keys of the same length")
        lengths = packed.cu_seqlens_q.diff().tolist()
        documents = zip(*(tensor.split(lengths) for tensor in (query, key, value)))
        contexts = [
            self._attend(*(tensor.transpose(0, 1)[None] for tensor in document))[0].transpose(0, 1) for document in documents
        ]
        return torch.cat(contexts)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[b, heads, s, channels] each, keys and values with a head a group → the same shape as the query."""
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.softmax_scale)


def torch_layer_spec(fp8: bool = False) -> ModuleSpec:
    """One layer of megatron-core's own modules with this file's norm and core attention.

    Its distributed checkpoints have the same keys as the Transformer Engine spec's. With `fp8` the four linear layers
    emulate FP8 products.
    """
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.input_layernorm = RMSNorm
    spec.submodules.pre_mlp_layernorm = RMSNorm
    spec.submodules.self_attention.submodules.core_attention = TorchCausalAttention
    if fp8:
        spec.submodules.self_attention.submodules.linear_qkv = Fp8ColumnParallelLinear
        spec.submodules.self_attention.submodules.linear_proj = Fp8RowParallelLinear
        spec.submodules.mlp.submodules.linear_fc1 = Fp8ColumnParallelLinear
        spec.submodules.mlp.submodules.linear_fc2 = Fp8RowParallelLinear
    return spec


def block_spec(
    config: TransformerConfig, kind: Literal["transformer_engine", "torch"], vp_stage: int | None
) -> TransformerBlockSubmodules:
    """The layers of this process's pipeline stage (and virtual stage) and the final norm."""
    norm: Any
    if kind == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        layer, norm = get_gpt_layer_with_transformer_engine_spec(), TENorm
    else:
        layer, norm = torch_layer_spec(fp8=config.fp8 is not None), RMSNorm
    layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=norm)
