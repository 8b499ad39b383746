"""Values in FP8: scaling factors and rounding, as Transformer Engine's recipes define them.

A tensor is multiplied by a scale that brings its largest value to the format's largest one, rounded to the nearest FP8
value (ties to even) and clipped; a matrix product is divided by both scales afterwards. E4M3 has 4 significant bits,
448 as its largest value and 2⁻⁹ as its smallest; E5M2 has 3 significant bits, 57344 and 2⁻¹⁶.

Sources: Micikevicius et al., "FP8 Formats for Deep Learning" (2022); the recipes of Transformer Engine 2.9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST: dict[torch.dtype, float] = {E4M3: 448.0, E5M2: 57344.0}
"""The largest finite value of each format."""
_SPACING: dict[torch.dtype, float] = {E4M3: 32.0, E5M2: 8192.0}
"""From the second largest value to the largest."""
BLOCK = 128
"""Rows or columns that share a scale in the block-wise recipe."""


@dataclass(frozen=True)
class Fp8Tensor:
    """A matrix in FP8 with what it was multiplied by."""

    values: Tensor
    """[rows, columns] in a float8 type: the matrix times its scale, rounded and clipped."""
    scale: Tensor
    """One number, or one a block: [⌈rows / block rows⌉, ⌈columns / block columns⌉]. FP32."""
    block: tuple[int, int] | None = None
    """Rows and columns of a block; None where there is one scale."""

    def scales(self) -> Tensor:
        """The scale of every value, fit to divide by."""
        if self.block is None:
            return self.scale
        rows, columns = self.values.shape
        every = self.scale.repeat_interleave(self.block[0], 0)[:rows]
        return every.repeat_interleave(self.block[1], 1)[:, :columns]

    def dequantised(self) -> Tensor:
        """The matrix that FP8 stands for, in FP32."""
        return self.values.float() / self.scales()


def amax_of(tensor: Tensor) -> Tensor:
    """The largest magnitude, as one FP32 number; 0 of an empty tensor."""
    return tensor.detach().abs().amax().float() if tensor.numel() else torch.zeros((), device=tensor.device)


def scale_for(amax: Tensor, dtype: torch.dtype, margin: int = 0, power_of_two: bool = False) -> Tensor:
    """What a tensor with this largest magnitude is multiplied by: largest value / amax / 2^margin, in FP32.

    1 where there is no magnitude to go by (0, infinite, not a number). `power_of_two` rounds it down to one.
    """
    scale = LARGEST[dtype] / amax / 2.0**margin
    scale = scale.clamp(max=torch.finfo(torch.float32).max)
    scale = torch.where((amax > 0) & amax.isfinite(), scale, torch.ones_like(scale))
    if power_of_two:
        mantissa, exponent = torch.frexp(scale)  # scale = mantissa · 2^exponent, mantissa in [0.5, 1)
        scale = torch.ldexp(torch.ones_like(mantissa), exponent - 1)
    return scale


def quantise(matrix: Tensor, scale: Tensor, dtype: torch.dtype) -> Fp8Tensor:
    """A matrix in FP8 under one scale; what is beyond the largest value is clipped to it."""
    largest = LARGEST[dtype]
    return Fp8Tensor((matrix.detach().float() * scale).clamp(-largest, largest).to(dtype), scale)


def quantise_blocks(matrix: Tensor, dtype: torch.dtype, block: tuple[int, int]) -> Fp8Tensor:
    """A matrix [rows, columns] in FP8 with one power-of-two scale for each block of (rows, columns)."""
    rows, columns = matrix.shape
    high, wide = block
    padded = functional.pad(matrix.detach().float(), (0, -columns % wide, 0, -rows % high))
    blocks = padded.view(padded.shape[0] // high, high, padded.shape[1] // wide, wide)
    scale = scale_for(blocks.abs().amax(dim=(1, 3)), dtype, power_of_two=True)
    largest = LARGEST[dtype]
    scaled = (blocks * scale[:, None, :, None]).clamp(-largest, largest).view_as(padded)[:rows, :columns]
    return Fp8Tensor(scaled.to(dtype), scale, block)


def clipped_share(matrix: Tensor, quantised: Fp8Tensor) -> float:
    """Share of the values that FP8 clips: times the scale they would round to more than the largest value."""
    dtype = quantised.values.dtype
    beyond = (matrix.detach().float().abs() * quantised.scales()) > LARGEST[dtype] + _SPACING[dtype] / 2
    return float(beyond.float().mean()) if matrix.numel() else 0.0


def underflow_share(matrix: Tensor, quantised: Fp8Tensor) -> float:
    """Share of the values other than zero that become zero."""
    there = matrix != 0
    lost = there & (quantised.values.float() == 0)
    return float(lost.sum()) / max(1, int(there.sum()))
