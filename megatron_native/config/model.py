"""The shape of a model, read from a Hugging Face `config.json` and never typed by hand.

`models/` fills it in (one family, one file); the trainer, the checkpoint code and the plan read it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FamilyName = Literal["llama", "qwen2", "qwen3", "mistral"]


class RopeScaling(BaseModel):
    """LLaMA-3.1's frequency scaling, with the names and meaning of transformers' `rope_type: llama3`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


class ModelConfig(BaseModel):
    """A decoder-only transformer with RMSNorm, rotary positions, SwiGLU and grouped-query attention."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: FamilyName
    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    ffn_hidden_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_query_groups: int = Field(gt=0)
    """Key/value heads; equal to `num_attention_heads` without grouped-query attention."""
    kv_channels: int = Field(gt=0)
    """Width of one head (`head_dim`)."""
    vocab_size: int = Field(gt=0)
    """Rows of the embedding as the checkpoint has them; tensor-parallel padding comes on top and never leaves."""
    max_position_embeddings: int = Field(gt=0)
    norm_epsilon: float = Field(gt=0)
    rotary_base: float = Field(gt=0)
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    add_qkv_bias: bool = False
    """Biases on query, key and value projections (the qwen2 family)."""
    qk_layernorm: bool = False
    """RMSNorm over every query and key head before rotation (the qwen3 family)."""
    initializer_range: float = 0.02
