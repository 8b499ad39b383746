"""FP8 by its definition: a table of every value each format has, decoded from bits, and the nearest of them."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch

from megatron_native.models.fp8_emulation import AmaxHistory, Recipe
from megatron_native.models.fp8_numbers import (
    E4M3,
    E5M2,
    amax_of,
    clipped_share,
    quantise,
    quantise_blocks,
    scale_for,
    underflow_share,
)

ONE = torch.ones(())
FORMATS = {E4M3: (4, 3, 7), E5M2: (5, 2, 15)}


def values_of(dtype: torch.dtype) -> np.ndarray:
    """The finite magnitudes of a format in the order of their bits: exponent bits, mantissa bits and bias as published."""
    exponent_bits, mantissa_bits, bias = FORMATS[dtype]
    magnitudes = []
    for bits in range(2 ** (exponent_bits + mantissa_bits)):
        exponent, mantissa = bits >> mantissa_bits, bits & (2**mantissa_bits - 1)
        top = exponent == 2**exponent_bits - 1
        if top and (dtype == E5M2 or mantissa == 2**mantissa_bits - 1):
            continue  # E5M2 keeps its last exponent for infinity and NaN, E4M3 its last value alone for NaN
        fraction = mantissa / 2**mantissa_bits
        magnitudes.append(math.ldexp(1 + fraction, exponent - bias) if exponent else math.ldexp(fraction, 1 - bias))
    return np.array(magnitudes)


def nearest(numbers: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The nearest value of the table, the one with an even last bit where two are as near."""
    table = values_of(dtype)
    distance = np.abs(np.abs(numbers)[:, None] - table[None])
    best = distance.min(1, keepdims=True)
    candidates = distance == best
    index = [max(np.flatnonzero(row), key=lambda place: place % 2 == 0) for row in candidates]
    return np.sign(numbers) * table[index]


@pytest.mark.parametrize("dtype", FORMATS)
def test_rounding_is_to_the_nearest_value_and_ties_to_even(dtype: torch.dtype) -> None:
    table = values_of(dtype)
    generator = np.random.default_rng(0)
    spread = generator.standard_normal(2000) * np.exp2(generator.uniform(-20, 15, 2000))
    between = (table[1:] + table[:-1]) / 2  # exact ties
    numbers = np.concatenate([spread, between, -between, table, -table]).astype(np.float32)
    numbers = numbers[np.abs(numbers) <= table[-1]]
    ours = quantise(torch.from_numpy(numbers), ONE, dtype).dequantised().numpy()
    np.testing.assert_array_equal(ours, nearest(numbers.astype(np.float64), dtype))


@pytest.mark.parametrize(("dtype", "smallest_normal", "bound"), [(E4M3, 2.0**-6, 2.0**-4), (E5M2, 2.0**-14, 2.0**-3)])
def test_relative_error_of_normals(dtype: torch.dtype, smallest_normal: float, bound: float) -> None:
    numbers = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    scale = scale_for(amax_of(numbers), dtype)
    back = quantise(numbers, scale, dtype).dequantised()
    normal = (numbers * scale).abs() >= smallest_normal
    error = ((back - numbers).abs() / numbers.abs())[normal]
    assert normal.float().mean() > 0.99
    assert bound / 2 < float(error.max()) <= bound


def test_scales_by_hand() -> None:
    def scale(amax: float, dtype: torch.dtype = E4M3, **more: int) -> float:
        return float(scale_for(torch.tensor(amax), dtype, **more))

    assert scale(2.0) == 224.0  # 448 / 2
    assert scale(2.0, E5M2) == 28672.0  # 57344 / 2
    assert scale(2.0, margin=1) == 112.0
    assert scale(3.0, power_of_two=True) == 128.0  # 149.3, down
    assert scale(3.5, power_of_two=True) == 128.0  # exactly 128
    assert scale(900.0, power_of_two=True) == 0.25  # 0.4978, down
    for nothing in (0.0, math.inf, math.nan):
        assert scale(nothing) == 1.0


def test_zero_tensors_stay_zero_and_nan_is_not_hidden() -> None:
    zeros = torch.zeros(4, 4)
    assert torch.equal(quantise(zeros, scale_for(amax_of(zeros), E4M3), E4M3).dequantised(), zeros)
    assert torch.equal(quantise_blocks(zeros, E4M3, (1, 128)).dequantised(), zeros)
    assert float(amax_of(torch.zeros(0, 4))) == 0.0
    assert quantise(torch.tensor([math.nan, 1.0]), ONE, E4M3).dequantised().isnan().tolist() == [True, False]


def test_what_is_too_large_is_clipped_and_counted() -> None:
    matrix = torch.tensor([[448.0, 463.0, 465.0, -1000.0], [1.0, 0.0, 2.0**-10, 2.0**-11]])
    rounded = quantise(matrix, ONE, E4M3)
    assert rounded.dequantised()[0].tolist() == [448.0, 448.0, 448.0, -448.0]
    assert clipped_share(matrix, rounded) == 2 / 8  # 463 would round to 448 anyway
    assert underflow_share(matrix, rounded) == 2 / 7  # half of 2^-9 goes to zero, the even one; the zero was zero


def test_every_block_has_its_own_power_of_two() -> None:
    matrix = torch.randn(200, 300, generator=torch.Generator().manual_seed(2))
    matrix[0, 0] = 1e6
    for block, shape in (((1, 128), (200, 3)), ((128, 1), (2, 300)), ((128, 128), (2, 3))):
        rounded = quantise_blocks(matrix, E4M3, block)
        assert tuple(rounded.scale.shape) == shape
        exponents = rounded.scale.log2()
        assert torch.equal(exponents, exponents.round())
        for row in range(0, shape[0], 19):
            for column in range(0, shape[1], 19 if shape[1] > 3 else 1):
                here = slice(row * block[0], (row + 1) * block[0]), slice(column * block[1], (column + 1) * block[1])
                scaled = float(matrix[here].abs().max() * rounded.scale[row, column])
                assert 224 < scaled <= 448
                own = quantise(matrix[here], rounded.scale[row, column], E4M3).dequantised()
                assert torch.equal(rounded.dequantised()[here], own)
    # the outlier spoils its own block of 128 alone
    rows = quantise_blocks(matrix, E4M3, (1, 128)).dequantised()
    assert (rows[0, 1:128] - matrix[0, 1:128]).abs().max() > 0.5
    assert torch.equal(rows[1:], quantise_blocks(matrix[1:], E4M3, (1, 128)).dequantised())


def history(length: int, algorithm: Literal["max", "most_recent"] = "max", margin: int = 0) -> AmaxHistory:
    return AmaxHistory(Recipe("delayed", E4M3, E5M2, margin, length, algorithm))


def follow(amaxes: AmaxHistory, largest: list[float]) -> list[float]:
    """The scale of inputs after each step with these largest values."""
    scales = []
    for value in largest:
        amaxes.observe("input", torch.tensor(value / 2))  # two micro-batches: the larger counts
        amaxes.observe("input", torch.tensor(value))
        amaxes.roll()
        scales.append(float(amaxes.scale[0]))
    return scales


def test_amax_history_by_hand() -> None:
    assert float(history(3).scale[0]) == 1.0  # nothing known yet
    # 448/7=64, then max(7, 14), then 14 twice more while it is among the last three, then max(3.5, 1.75)
    assert follow(history(3), [7.0, 14.0, 3.5, 1.75, 3.5]) == [64.0, 32.0, 32.0, 32.0, 128.0]
    assert follow(history(3, "most_recent"), [7.0, 14.0, 3.5]) == [64.0, 32.0, 128.0]
    assert follow(history(3, "max", margin=2), [7.0]) == [16.0]
    # zero and what is not finite leave the scale as it is
    assert follow(history(1), [7.0, 0.0, math.inf, math.nan, 14.0]) == [64.0, 64.0, 64.0, 64.0, 32.0]


def test_an_attempt_that_is_computed_again_does_not_count_twice() -> None:
    amaxes = history(4)
    amaxes.observe("gradient", torch.tensor(1e4))
    amaxes.forget()
    amaxes.observe("gradient", torch.tensor(7.0))
    amaxes.roll()
    assert float(amaxes.scale[2]) == 8192.0  # 57344 / 7: gradients are E5M2


def test_a_saved_history_goes_on_and_fits_another_length() -> None:
    whole, first = history(4), history(4)
    follow(whole, [7.0, 14.0, 3.5, 1.75])
    follow(first, [7.0, 14.0])
    second = history(4)
    second.restore(first.state())
    assert follow(second, [3.5, 1.75])[-1] == float(whole.scale[0])
    assert torch.equal(second.history, whole.history)
    shorter = history(2)
    shorter.restore(whole.state())
    assert follow(shorter, [0.5]) == [256.0]  # of the four only 1.75 is still known: 448 / 1.75
