"""The qwen3 family: dense Qwen3 models (model_type `qwen3`), from and to a `config.json`.

LLaMA's shape with an RMSNorm over each query head and each key head before rotation, one weight of a head's width for
all heads of a layer; heads whose width is stated and need not be hidden_size / num_attention_heads; no biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_native.config.model import ModelConfig
from megatron_native.models.family import Family, refuse_sliding_layers, refuse_unless, required_count
from megatron_native.models.llama import WEIGHT_RULES as LLAMA_WEIGHT_RULES
from megatron_native.models.llama import hf_config_of, shape_of
from megatron_native.models.weight_map import WeightRule

WEIGHT_RULES = (
    *LLAMA_WEIGHT_RULES,
    WeightRule(
        "decoder.layers.self_attention.q_layernorm.weight",
        ("model.layers.{layer}.self_attn.q_norm.weight",),
        shape=("head",),
    ),
    WeightRule(
        "decoder.layers.self_attention.k_layernorm.weight",
        ("model.layers.{layer}.self_attn.k_norm.weight",),
        shape=("head",),
    ),
)


def to_model_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The model's shape from a `config.json` of model_type qwen3; `UserError` names a setting not computed here."""
    refuse_unless(hf, "hidden_act", ("silu",), "the feed-forward layer is SwiGLU")
    refuse_unless(hf, "attention_bias", (False, None), "Qwen3's projections have no biases")
    refuse_unless(hf, "use_sliding_window", (False, None), "attention here always sees the whole sequence")
    refuse_unless(hf, "quantization_config", (None,), "weights must be plain BF16, FP16 or FP32")
    refuse_sliding_layers(hf)
    # transformers' defaults for these are 128 and 32, whatever the model: they have to be stated.
    required_count(hf, "head_dim")
    return shape_of(hf, "qwen3", required_count(hf, "num_key_value_heads"), qk_layernorm=True)


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` for a qwen3 model that was not imported from one."""
    return hf_config_of(config, "Qwen3ForCausalLM", attention_bias=False, use_sliding_window=False)


QWEN3 = Family("qwen3", ("qwen3",), to_model_config, to_hf_config, WEIGHT_RULES)
