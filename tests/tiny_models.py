"""Tiny Hugging Face folders for tests: whole models of every supported shape, with nothing left at a default.

Norm weights and biases are random, so that a swapped norm or a forgotten bias changes the logits, and weights are
large enough that logits spread (standard deviation ≥ 1, asserted): a fault can't hide in near-uniform outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

VOCAB_SIZE = 384
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXTS = (
    "اللغة العربية لغة جميلة وغنية بالمفردات والمعاني.",
    "ذهب الولد إلى المدرسة في الصباح الباكر مع أخته.",
    "The quick brown fox jumps over the lazy dog near the river.",
    "Language models learn from text, one token after another.",
)


@dataclass(frozen=True)
class Shape:
    """What sets one tiny model apart; `config` holds fields of its transformers configuration."""

    model_type: str
    config: dict[str, Any]


BASE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}

SHAPES: dict[str, Shape] = {
    "llama3.1": Shape("llama", {**BASE, "num_key_value_heads": 4, "rope_parameters": LLAMA3_ROPE}),
    "llama2": Shape("llama", {**BASE, "rope_parameters": PLAIN_ROPE, "rms_norm_eps": 1e-6}),
    "tied-llama": Shape(
        "llama", {**BASE, "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_parameters": PLAIN_ROPE}
    ),
    "qwen1.5": Shape(
        "qwen2",
        {**BASE, "num_key_value_heads": 4, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}},
    ),
    "qwen3": Shape(
        "qwen3",
        {
            **BASE,
            "num_key_value_heads": 4,
            "head_dim": 32,  # twice hidden_size / num_attention_heads
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        },
    ),
    "mistral": Shape(
        "mistral",
        {**BASE, "num_key_value_heads": 2, "head_dim": 24, "sliding_window": None, "rope_parameters": PLAIN_ROPE},
    ),
}
"""Heads, layers and vocabulary divide by 4 and key/value heads by 2, so each splits TP2, PP2, PP4 and PP2 × VPP2.
Llama-3.1's frequencies fall in all three of its bands: kept, interpolated and stretched."""


def make_tiny_model(
    folder: Path,
    shape: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tokenizer: bool = True,
    max_shard_size: str | int = "5GB",
    **config: Any,
) -> Path:
    """Write a tiny model of `SHAPES[shape]` (and a tokenizer of the same vocabulary size) to `folder`; return it.

    `config` overrides fields of the configuration; `max_shard_size` splits the safetensors, as in transformers.
    """
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    described = SHAPES[shape]
    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    }
    make_config, make_model = classes[described.model_type]
    settings = make_config(**{**described.config, **config})
    model = make_model(settings)
    randomise(model, seed)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        make_tiny_tokenizer(folder, settings.vocab_size)
    return folder


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter random values with a spread that shows in the logits (standard deviation ≥ 1)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.copy_(1.0 + 0.3 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.5 * noise)
        elif "embed_tokens" in name or "lm_head" in name:
            parameter.copy_(0.3 * noise)
        else:
            parameter.copy_(noise * 1.2 / parameter.shape[1] ** 0.5)
    ids = torch.randint(0, model.config.vocab_size, (2, 32), generator=generator)
    spread = model(input_ids=ids).logits.std().item()
    assert spread >= 1.0, f"logits spread by only {spread:.3f}; faults would hide"


def make_tiny_tokenizer(folder: Path, vocab_size: int = VOCAB_SIZE) -> Path:
    """Train a byte-level BPE of at most `vocab_size` entries on a few sentences and save it, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL_TOKENS[0],
        bos_token=SPECIAL_TOKENS[1],
        pad_token=SPECIAL_TOKENS[0],
    )
    fast.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    )
    fast.save_pretrained(folder)
    return folder
