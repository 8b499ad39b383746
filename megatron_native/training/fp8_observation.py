"""What FP8 does to the matrices of linear layers, seen by hooks as they are multiplied.

Works on emulated layers and on Transformer Engine's: of those nothing is asked but their inputs, weights, outputs and,
with delayed scaling, their scales; the rounding is done again here. Never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from megatron.core.fp8_utils import dequantize_fp8_tensor, is_float8tensor
from torch import Tensor
from torch.nn import functional

from megatron_native.models.fp8_emulation import Fp8Linear, Recipe, Role
from megatron_native.models.fp8_layers import LINEARS, bf16_layers, linears
from megatron_native.models.fp8_numbers import (
    BLOCK,
    Fp8Tensor,
    amax_of,
    clipped_share,
    quantise,
    quantise_blocks,
    scale_for,
    underflow_share,
)

FIGURES = ("output_error", "saturation", "underflow")


@contextmanager
def observing(config: Any, modules: Sequence[Any], figures: Tensor) -> Iterator[None]:
    """Within it every forward and backward pass of layers in FP8 raises `figures` to the largest that it sees.

    Args:
        config: megatron-core's TransformerConfig.
        modules: unwrapped model chunks.
        figures: [layers, linear layers in the order of `LINEARS`, figures in the order of `FIGURES`].
    """
    kept, recipe, handles = bf16_layers(config), Recipe.of(config), []
    for layer, name, linear in linears(modules):
        if layer not in kept:
            row = figures[layer, LINEARS.index(name)]
            handles.append(linear.register_forward_hook(_hook(recipe, row)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(recipe: Recipe, row: Tensor) -> Any:
    def observe(role: Role, linear: Any, matrix: Tensor) -> None:
        matrix = matrix.detach().reshape(-1, matrix.shape[-1])
        rounded = _rounded(linear, recipe, role, matrix)
        row[1] = max(float(row[1]), clipped_share(matrix, rounded))
        row[2] = max(float(row[2]), underflow_share(matrix, rounded))

    def hook(linear: Any, arguments: tuple[Any, ...], outputs: Any) -> None:
        if not torch.is_grad_enabled():  # the pass before a recomputation
            return
        output = outputs[0] if isinstance(outputs, tuple) else outputs
        with torch.no_grad():
            observe("input", linear, _multiplied(linear, arguments[0]))
            observe("weight", linear, _weight(linear))
            reference = _in_bf16(linear, arguments)
            row[0] = max(float(row[0]), _relative_error(output.detach(), reference))
        if output.requires_grad:
            output.register_hook(lambda gradient: observe("gradient", linear, gradient))

    return hook


def _relative_error(output: Tensor, reference: Tensor) -> float:
    difference = (output.float() - reference.float()).norm()
    size = reference.float().norm()
    return float(difference / size) if float(size) > 0 else float(difference > 0)


def _multiplied(linear: Any, input: Tensor) -> Tensor:
    """What is multiplied with the weight: Transformer Engine has a norm and a product in one module."""
    weight = getattr(linear, "layer_norm_weight", None)
    return input if weight is None else functional.rms_norm(input, weight.shape, weight, linear.eps)


def _weight(linear: Any) -> Tensor:
    weight: Tensor = linear.weight
    return dequantize_fp8_tensor(weight) if is_float8tensor(weight) else weight


def _in_bf16(linear: Any, arguments: tuple[Any, ...]) -> Tensor:
    """The layer's output from the same arguments without FP8."""
    if isinstance(linear, Fp8Linear):
        linear.quantises = False
        try:
            return linear.forward(*arguments)[0]  # type: ignore[attr-defined]  # of the class after Fp8Linear
        finally:
            linear.quantises = True
    with import_module("transformer_engine.pytorch").fp8_autocast(enabled=False):
        outputs = linear.forward(*arguments)
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _rounded(linear: Any, recipe: Recipe, role: Role, matrix: Tensor) -> Fp8Tensor:
    """The matrix as the layer rounds it, or, of Transformer Engine's, as its recipe says."""
    if isinstance(linear, Fp8Linear):
        return linear.quantised(role, matrix)[0]
    dtype = recipe.dtype(role)
    if recipe.scaling == "blockwise":
        return quantise_blocks(matrix, dtype, (BLOCK if role == "weight" else 1, BLOCK))
    if recipe.scaling == "delayed":
        meta = linear.fp8_meta["scaling_bwd" if role == "gradient" else "scaling_fwd"]
        return quantise(matrix, meta.scale[1 if role == "weight" else 0], dtype)
    return quantise(matrix, scale_for(amax_of(matrix), dtype), dtype)
