"""Speed by hand: tokens, FLOP, and the peak they are measured against."""

from __future__ import annotations

from typing import Literal

import pytest

from megatron_native.config.model import ModelConfig
from megatron_native.training.flop_rate import Peak, known_peak, speed_figures
from megatron_native.training.plan.flops import token_flops


def model() -> ModelConfig:
    return ModelConfig(
        family="llama", num_layers=2, hidden_size=8, ffn_hidden_size=16, num_attention_heads=4, num_query_groups=2,
        kv_channels=2, vocab_size=32, max_position_embeddings=64, norm_epsilon=1e-5, rotary_base=10000.0,
        tie_word_embeddings=False, add_qkv_bias=False, initializer_range=0.02,
    )  # fmt: skip


# A layer: query 8·8, key and value 2·8·4, projection 8·8, gate, up and down 3·8·16: 576 weights. Two layers, output 8·32.
WEIGHTS = 2 * 576 + 256
# Scores and their use, forward: 2·s·8 each; three times that with the backward pass; two layers; s = 10.
ATTENTION = 2 * 3 * (2 * 2 * 10 * 8)


def test_figures_by_hand() -> None:
    flops = 6 * WEIGHTS + ATTENTION
    assert token_flops(model(), 10).total("full") == flops
    found = speed_figures(model(), 10, tokens=4000, seconds=2.0, world_size=4, peak=Peak(1e-5, "by hand"))
    assert found.tokens_per_second_per_gpu == 500
    assert found.model_tflops == pytest.approx(500 * flops / 1e12)
    assert found.model_tflops_causal == pytest.approx(500 * (6 * WEIGHTS + ATTENTION / 2) / 1e12)
    assert found.mfu == pytest.approx(500 * flops / 1e7)
    assert found.mfu_causal is not None
    assert found.mfu_causal < found.mfu


def test_without_a_peak_there_is_no_utilisation() -> None:
    found = speed_figures(model(), 10, tokens=4000, seconds=2.0, world_size=4, peak=None)
    assert found.mfu is None
    assert found.mfu_causal is None


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4), ("NVIDIA H100 80GB HBM3", "fp8", 1978.9), ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0), ("NVIDIA A100-SXM4-80GB", "fp8", None), ("NVIDIA H100 PCIe", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "fp32", None), ("Tesla T4", "bf16", None),
    ],
)  # fmt: skip
def test_peaks_are_the_makers_of_that_form_of_the_gpu(
    name: str, precision: Literal["fp32", "bf16", "fp8"], tflops: float | None
) -> None:
    peak = known_peak(precision, name)
    assert (None if peak is None else peak.tflops) == tflops
