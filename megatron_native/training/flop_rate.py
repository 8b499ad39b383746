"""How fast a run computes: tokens a second and GPU, model TFLOP/s, and their share of a stated peak.

The FLOP of a token are those of `plan/flops.py` in both conventions. Every token that goes through the model counts, learned
from or not. The peak is `profiling.peak_tflops`, or what the maker states for the GPU in the precision of the run (dense);
where neither is known, and on the CPU without the setting, no utilisation is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.platform import Platform
from megatron_native.training.plan.flops import model_flop_utilisation, token_flops
from megatron_native.training.plan.gpus import gpu_of_device


@dataclass(frozen=True)
class Peak:
    """What utilisation is measured against."""

    tflops: float
    """Dense TFLOP/s of one GPU, or of one process on the CPU."""
    source: str
    """Where the figure is from, in words."""


@dataclass(frozen=True)
class SpeedFigures:
    """One step's speed, on each GPU (or process of the CPU), mean over all."""

    tokens_per_second_per_gpu: float
    """Tokens through the model, whether their loss counts or not."""
    model_tflops: float
    """TFLOP/s with attention counted in full (Megatron-LM's convention); recomputation is not counted."""
    model_tflops_causal: float
    """The same with half of attention (Megatron-Bridge's convention)."""
    mfu: float | None = None
    """`model_tflops` by the peak; None where no peak is known."""
    mfu_causal: float | None = None


def known_peak(precision: Literal["fp32", "bf16", "fp8"], gpu_name: str) -> Peak | None:
    """The maker's peak of a GPU by the name that CUDA gives it, dense, in a run's precision; None where it isn't known."""
    if precision == "fp32":
        return None  # TF32 or not is torch's setting
    gpu = gpu_of_device(gpu_name)
    tflops = None if gpu is None else gpu.fp8_tflops if precision == "fp8" else gpu.bf16_tflops
    return None if gpu is None or tflops is None else Peak(tflops, f"{gpu.name}, dense {precision.upper()}")


def peak_of(run: RunConfig, platform: Platform) -> Peak | None:
    """The peak that a run's utilisation is measured against; None: none is claimed."""
    if run.profiling.peak_tflops is not None:
        return Peak(run.profiling.peak_tflops, "profiling.peak_tflops")
    if platform.name == "cpu":
        return None
    return known_peak(run.training.precision, torch.cuda.get_device_name(platform.device))


def described(peak: Peak | None, run: RunConfig, platform: Platform) -> str | None:
    """A line about what utilisation is measured against, or why there is none; None on the CPU, which has no peak."""
    if peak is not None:
        return f"model FLOP utilisation against {peak.tflops:,g} TFLOP/s ({peak.source})"
    if platform.name == "cpu":
        return None
    name = torch.cuda.get_device_name(platform.device)
    return f"no peak of {name} in {run.training.precision} is known: no utilisation without profiling.peak_tflops"


def speed_figures(
    model: ModelConfig, seq_length: int, tokens: int, seconds: float, world_size: int, peak: Peak | None
) -> SpeedFigures:
    """A step's speed.

    Args:
        model: the model's shape.
        seq_length: tokens of a sequence.
        tokens: of the step, over all processes.
        seconds: that it took.
        world_size: GPUs, or processes of the CPU.
        peak: of one of them.
    """
    rate, flops = tokens / seconds / world_size, token_flops(model, seq_length)
    full, causal = flops.total("full"), flops.total("causal")
    return SpeedFigures(
        rate,
        rate * full / 1e12,
        rate * causal / 1e12,
        None if peak is None else model_flop_utilisation(rate, full, peak.tflops),
        None if peak is None else model_flop_utilisation(rate, causal, peak.tflops),
    )
