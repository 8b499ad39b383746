"""Rotary frequencies equal transformers' bit for bit, for every factor and not only LLaMA-3.1's."""

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_native.models.families import to_model_config
from megatron_native.models.rope import inverse_frequencies

SHAPE = {
    "vocab_size": 64, "hidden_size": 512, "num_attention_heads": 4, "num_hidden_layers": 1, "num_key_value_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 131072, "model_type": "llama",
}  # fmt: skip


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 10000.0, "rope_type": "default"},
        {"rope_theta": 1000000, "rope_type": "default"},
        {"rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        {"rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        {"rope_theta": 100000.0, "factor": 3.0, "low_freq_factor": 1.5, "high_freq_factor": 7.0,
         "original_max_position_embeddings": 64, "rope_type": "llama3"},
    ],
)  # fmt: skip
def test_frequencies_equal_transformers_bit_for_bit(settings, head_dim):
    hf = {**SHAPE, "head_dim": head_dim, "rope_parameters": settings}
    expected = LlamaRotaryEmbedding(transformers.LlamaConfig(**hf)).inv_freq
    assert torch.equal(inverse_frequencies(to_model_config(hf)), expected)


def test_scaling_keeps_short_wavelengths_and_stretches_long_ones_by_the_factor():
    scaled = {"rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192, "rope_type": "llama3"}  # fmt: skip
    plain = inverse_frequencies(to_model_config({**SHAPE, "rope_parameters": {"rope_theta": 500000.0}}))
    frequencies = inverse_frequencies(to_model_config({**SHAPE, "rope_parameters": scaled}))
    wavelengths = 2 * torch.pi / plain
    assert torch.equal(frequencies[wavelengths < 2048], plain[wavelengths < 2048])
    assert torch.equal(frequencies[wavelengths > 8192], plain[wavelengths > 8192] / 8)
    between = (wavelengths > 2048) & (wavelengths < 8192)
    assert between.any() and (frequencies[between] < plain[between]).all()
