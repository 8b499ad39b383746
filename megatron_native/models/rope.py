"""Rotary frequencies of a model, LLaMA-3.1's scaling in full generality.

megatron-core hard-codes the factors 1 and 4 and the length 8192, so the model builder overwrites its frequencies with
these. The operations and their order are those of transformers' `_compute_llama3_parameters`, for equality bit by bit.
"""

from __future__ import annotations

import math

import torch

from megatron_native.config.model import ModelConfig


def inverse_frequencies(config: ModelConfig) -> torch.Tensor:
    """Angle in radians per position, FP32 on the CPU, shape [kv_channels / 2].

    Plain: θ_i = base^(-2i/d). With scaling ("The Llama 3 Herd of Models", section 3.2; meta-llama's `apply_scaling`)
    wavelengths longer than original/low_freq_factor are stretched by `factor`, those shorter than
    original/high_freq_factor stay, and those between are interpolated.
    """
    width = config.kv_channels
    exponents = torch.arange(0, width, 2, dtype=torch.int64, device="cpu").to(torch.float32) / width
    inverse = 1.0 / (config.rotary_base**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    original = scaling.original_max_position_embeddings
    longest_kept = original / scaling.high_freq_factor
    shortest_stretched = original / scaling.low_freq_factor
    wavelength = 2 * math.pi / inverse
    stretched = torch.where(wavelength > shortest_stretched, inverse / scaling.factor, inverse)
    smooth = (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    interpolated = (1 - smooth) * stretched / scaling.factor + smooth * stretched
    between = ~(wavelength < longest_kept) * ~(wavelength > shortest_stretched)
    return torch.where(between, interpolated, stretched)
