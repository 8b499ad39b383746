"""The qwen2 family: Qwen1.5, Qwen2 and Qwen2.5 (model_type `qwen2`), from and to a `config.json`.

LLaMA's shape with biases on the query, key and value projections. Sliding-window attention is refused where it acts: the
published base models carry `sliding_window` and `max_window_layers` with `use_sliding_window` false.
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
        "decoder.layers.self_attention.linear_qkv.bias",
        (
            "model.layers.{layer}.self_attn.q_proj.bias",
            "model.layers.{layer}.self_attn.k_proj.bias",
            "model.layers.{layer}.self_attn.v_proj.bias",
        ),
        "qkv",
        shape=("qkv",),
    ),
)


def to_model_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The model's shape from a `config.json` of model_type qwen2; `UserError` names a setting not computed here."""
    refuse_unless(hf, "hidden_act", ("silu",), "the feed-forward layer is SwiGLU")
    refuse_unless(hf, "use_sliding_window", (False, None), "attention here always sees the whole sequence")
    refuse_unless(hf, "use_mrope", (False, None), "rotary positions here have one axis")
    refuse_unless(hf, "quantization_config", (None,), "weights must be plain BF16, FP16 or FP32")
    refuse_sliding_layers(hf)
    # transformers' default for an absent num_key_value_heads is 32, whatever the model: it has to be stated.
    return shape_of(hf, "qwen2", required_count(hf, "num_key_value_heads"), add_qkv_bias=True)


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` for a qwen2 model that was not imported from one."""
    return hf_config_of(config, "Qwen2ForCausalLM", use_sliding_window=False)


QWEN2 = Family("qwen2", ("qwen2",), to_model_config, to_hf_config, WEIGHT_RULES)
