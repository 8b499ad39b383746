"""The llama family: LLaMA 2, 3, 3.1–3.3 and models of their shape (SmolLM2), from and to a `config.json`.

RMSNorm, rotary positions with or without LLaMA-3.1's scaling, grouped-query attention, SwiGLU, no biases, embeddings
tied or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_native.config.model import FamilyName, ModelConfig
from megatron_native.models.family import Family, head_counts, refuse_unless, required_count
from megatron_native.models.rope_settings import read_rope_settings, rope_fields
from megatron_native.models.weight_map import WeightRule

WEIGHT_RULES = (
    WeightRule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), shape=("vocab", "hidden")),
    WeightRule(
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
        ("model.layers.{layer}.input_layernorm.weight",),
        shape=("hidden",),
    ),
    WeightRule(
        "decoder.layers.self_attention.linear_qkv.weight",
        (
            "model.layers.{layer}.self_attn.q_proj.weight",
            "model.layers.{layer}.self_attn.k_proj.weight",
            "model.layers.{layer}.self_attn.v_proj.weight",
        ),
        "qkv",
        shape=("qkv", "hidden"),
    ),
    WeightRule(
        "decoder.layers.self_attention.linear_proj.weight",
        ("model.layers.{layer}.self_attn.o_proj.weight",),
        shape=("hidden", "query"),
    ),
    WeightRule(
        "decoder.layers.mlp.linear_fc1.layer_norm_weight",
        ("model.layers.{layer}.post_attention_layernorm.weight",),
        shape=("hidden",),
    ),
    WeightRule(
        "decoder.layers.mlp.linear_fc1.weight",
        ("model.layers.{layer}.mlp.gate_proj.weight", "model.layers.{layer}.mlp.up_proj.weight"),
        "gate_up",
        shape=("ffn", "hidden"),
    ),
    WeightRule(
        "decoder.layers.mlp.linear_fc2.weight",
        ("model.layers.{layer}.mlp.down_proj.weight",),
        shape=("hidden", "ffn"),
    ),
    WeightRule("decoder.final_layernorm.weight", ("model.norm.weight",), shape=("hidden",)),
    WeightRule("output_layer.weight", ("lm_head.weight",), shape=("vocab", "hidden"), unless_tied=True),
)


def to_model_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The model's shape from a `config.json` of model_type llama.

    Raises `UserError` naming the field for anything the llama family here does not compute: biases, another
    activation, another rope type, quantised weights.
    """
    refuse_unless(hf, "hidden_act", ("silu",), "the feed-forward layer is SwiGLU")
    refuse_unless(hf, "attention_bias", (False, None), "LLaMA's projections have no biases")
    refuse_unless(hf, "mlp_bias", (False, None), "LLaMA's feed-forward layer has no biases")
    refuse_unless(hf, "quantization_config", (None,), "weights must be plain BF16, FP16 or FP32")
    key_value_heads = required_count(hf, "num_attention_heads")
    if hf.get("num_key_value_heads") is not None:
        key_value_heads = required_count(hf, "num_key_value_heads")
    return shape_of(hf, "llama", key_value_heads)


def shape_of(
    hf: Mapping[str, Any],
    family: FamilyName,
    key_value_heads: int,
    add_qkv_bias: bool = False,
    qk_layernorm: bool = False,
) -> ModelConfig:
    """The fields that llama-shaped families have in common; absent optional ones mean transformers' defaults."""
    heads, groups, width = head_counts(hf, key_value_heads)
    rotary_base, rope_scaling = read_rope_settings(hf)
    return ModelConfig(
        family=family,
        num_layers=required_count(hf, "num_hidden_layers"),
        hidden_size=required_count(hf, "hidden_size"),
        ffn_hidden_size=required_count(hf, "intermediate_size"),
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=width,
        vocab_size=required_count(hf, "vocab_size"),
        max_position_embeddings=required_count(hf, "max_position_embeddings"),
        norm_epsilon=hf.get("rms_norm_eps", 1e-6),
        rotary_base=rotary_base,
        rope_scaling=rope_scaling,
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
        add_qkv_bias=add_qkv_bias,
        qk_layernorm=qk_layernorm,
        initializer_range=hf.get("initializer_range", 0.02),
    )


def hf_config_of(config: ModelConfig, architecture: str, **own: Any) -> dict[str, Any]:
    """A `config.json` for a model of a llama-shaped family that was not imported from one.

    Args:
        config: the model's shape; its family is transformers' `model_type`.
        architecture: transformers' class.
        own: what the family says beside the fields that `shape_of` reads.
    """
    return {
        "architectures": [architecture],
        "model_type": config.family,
        **own,
        "head_dim": config.kv_channels,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.ffn_hidden_size,
        "max_position_embeddings": config.max_position_embeddings,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_query_groups,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_word_embeddings,
        "vocab_size": config.vocab_size,
        **rope_fields(config),
    }


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` for a llama model that was not imported from one."""
    return hf_config_of(config, "LlamaForCausalLM", attention_bias=False, mlp_bias=False)


LLAMA = Family("llama", ("llama",), to_model_config, to_hf_config, WEIGHT_RULES)
