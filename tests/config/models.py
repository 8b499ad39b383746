"""The shapes of the models that presets are for, from their Hugging Face `config.json`, and a run to put settings on."""

from __future__ import annotations

from typing import Any

from megatron_native.config.merge import merged
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig

LLAMA3_8B = ModelConfig(
    family="llama", num_layers=32, hidden_size=4096, ffn_hidden_size=14336, num_attention_heads=32, num_query_groups=8,
    kv_channels=128, vocab_size=128256, max_position_embeddings=8192, norm_epsilon=1e-5, rotary_base=500000.0,
)  # fmt: skip
LLAMA3_70B = ModelConfig(
    family="llama", num_layers=80, hidden_size=8192, ffn_hidden_size=28672, num_attention_heads=64, num_query_groups=8,
    kv_channels=128, vocab_size=128256, max_position_embeddings=8192, norm_epsilon=1e-5, rotary_base=500000.0,
)  # fmt: skip
QWEN15_32B = ModelConfig(
    family="qwen2", num_layers=64, hidden_size=5120, ffn_hidden_size=27392, num_attention_heads=40, num_query_groups=8,
    kv_channels=128, vocab_size=152064, max_position_embeddings=32768, norm_epsilon=1e-6, rotary_base=1000000.0,
    add_qkv_bias=True,
)  # fmt: skip
MODELS = {"llama3-8b": LLAMA3_8B, "llama3-70b": LLAMA3_70B, "qwen1.5-32b": QWEN15_32B}


def parameters_of(model: ModelConfig) -> int:
    """Weights of a model, by the definition of the architecture."""
    hidden, heads, groups, width = (
        model.hidden_size, model.num_attention_heads, model.num_query_groups, model.kv_channels,
    )  # fmt: skip
    qkv = (heads + 2 * groups) * width
    layer = (
        hidden * qkv + (qkv if model.add_qkv_bias else 0) + heads * width * hidden + 3 * hidden * model.ffn_hidden_size
    )
    return (
        model.num_layers * (layer + 2 * hidden) + (2 - model.tie_word_embeddings) * model.vocab_size * hidden + hidden
    )


def run_of(**sections: Any) -> RunConfig:
    """A run that says no more than it must, with `sections` over it."""
    base = {
        "run_dir": "runs/x", "model": {"checkpoint": "c"}, "data": {"blend": [{"prefix": "p"}]},
        "training": {"steps": 10, "global_batch_size": 64},
    }  # fmt: skip
    return RunConfig.model_validate(merged(base, sections))
