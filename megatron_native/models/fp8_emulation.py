"""FP8 matrix products where there are none: megatron-core's parallel linear layers with operands rounded to FP8.

For the plain-torch layer spec. Inputs and weights are rounded to E4M3, gradients of outputs to E5M2 (`hybrid`) or E4M3,
with the scales of the recipe; what is rounded is multiplied in BF16 with FP32 accumulation, which holds every FP8 value
exactly, and divided by the scales. Forward, input gradient and weight gradient all multiply rounded operands.

This is an emulation: it shows which layers are quantised and what the rounding does, and nothing about speed or memory.
It differs from Transformer Engine on purpose in one respect: the largest value of a matrix that tensor parallelism
splits is that of the whole matrix, so that every layout computes the same; and a history has one entry a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from megatron_native.models.fp8_numbers import (
    BLOCK,
    E4M3,
    E5M2,
    Fp8Tensor,
    amax_of,
    quantise,
    quantise_blocks,
    scale_for,
)

Role = Literal["input", "weight", "gradient"]
"""What a matrix is to a linear layer; `gradient` is that of its output."""
ROLES: tuple[Role, ...] = ("input", "weight", "gradient")

_STATE_FORMAT = "megatron-native emulated fp8"


@dataclass(frozen=True)
class Recipe:
    """How a linear layer's matrices are rounded."""

    scaling: Literal["tensorwise", "delayed", "blockwise"]
    forward: torch.dtype
    """Of inputs and weights."""
    backward: torch.dtype
    """Of gradients."""
    margin: int = 0
    history: int = 1
    """With `delayed`: entries of the amax history."""
    algorithm: Literal["max", "most_recent"] = "max"
    rounded_weights: bool = False
    """Whether the weights themselves are kept as FP8 values."""

    @classmethod
    def of(cls, config: Any) -> Recipe:
        """The recipe that megatron-core's TransformerConfig asks for."""
        backward = E5M2 if config.fp8 == "hybrid" else E4M3
        return cls(
            config.fp8_recipe, E4M3, backward, config.fp8_margin, config.fp8_amax_history_len,
            config.fp8_amax_compute_algo, config.fp8_param,
        )  # fmt: skip

    def dtype(self, role: Role) -> torch.dtype:
        """The format of a matrix."""
        return self.backward if role == "gradient" else self.forward


class AmaxHistory:
    """Largest values of the last steps and the scales that follow from them, for delayed scaling.

    As in Transformer Engine, scales are 1 until a largest value is known, entry 0 is that of the step under way, and a
    scale stays as it is where the history says nothing (0) or nothing finite.

    Args:
        recipe: gives length, algorithm, margin and formats.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.history = torch.zeros(recipe.history, len(ROLES))
        self.scale = torch.ones(len(ROLES))
        self.current = torch.zeros(len(ROLES))
        """Largest values since the last `roll`, in the order of `ROLES`."""

    def observe(self, role: Role, amax: Tensor) -> None:
        """Take note of a matrix's largest value."""
        index = ROLES.index(role)
        self.current[index] = torch.maximum(self.current[index], amax.to(self.current.device))

    def roll(self) -> None:
        """End a step: its largest values enter the history, and the next step has new scales."""
        self.history[0] = self.current
        amax = self.history.amax(0) if self.recipe.algorithm == "max" else self.history[0]
        for index, role in enumerate(ROLES):
            if bool(amax[index] > 0) and bool(amax[index].isfinite()):
                self.scale[index] = scale_for(amax[index], self.recipe.dtype(role), self.recipe.margin)
        self.history = self.history.roll(-1, 0)
        self.history[0] = 0
        self.forget()

    def forget(self) -> None:
        """Drop what was observed since the last `roll`."""
        self.current.zero_()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"format": _STATE_FORMAT, "history": self.history.clone(), "scale": self.scale.clone()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a saved state; of a history of another length the newest entries."""
        saved = state["history"]
        kept = min(len(saved), len(self.history)) - 1
        self.history.zero_()
        if kept:
            self.history[-kept:] = saved[-kept:]
        self.scale = state["scale"].clone()
        self.forget()


def is_emulated_state(state: Any) -> bool:
    """Whether an `_extra_state` is this emulation's and not Transformer Engine's."""
    return isinstance(state, dict) and state.get("format") == _STATE_FORMAT


class Fp8Linear:
    """What the emulated parallel linear layers have in common; megatron-core's class comes after it.

    `quantises` is False where the layer is to compute in BF16: then it is megatron-core's own in every bit. `recording`
    is False while nothing may enter the amax history.
    """

    quantises: bool = True
    recording: bool = True
    split_roles: frozenset[Role]
    """Matrices of which each tensor-parallel rank has a part."""
    config: Any
    weight: Any
    tp_group: Any
    training: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe = Recipe.of(self.config)
        self.amax_history = AmaxHistory(self.recipe) if self.recipe.scaling == "delayed" else None

    def amax(self, role: Role, matrix: Tensor) -> Tensor:
        """The largest magnitude of the whole matrix, of which this rank may have a part; collective if so."""
        amax = amax_of(matrix)
        if role in self.split_roles and self.tp_group is not None and self.tp_group.size() > 1:
            dist.all_reduce(amax, op=dist.ReduceOp.MAX, group=self.tp_group)
        return amax

    def quantised(self, role: Role, matrix: Tensor, record: bool = False) -> tuple[Fp8Tensor, Fp8Tensor]:
        """A matrix [rows, columns] in FP8: as it is multiplied along its columns, and as along its rows.

        They are the same but for the blocks of inputs and gradients, which lie along the sum of a product.
        """
        recipe, dtype = self.recipe, self.recipe.dtype(role)
        if recipe.scaling == "blockwise":
            if role == "weight":
                both = quantise_blocks(matrix, dtype, (BLOCK, BLOCK))
                return both, both
            return quantise_blocks(matrix, dtype, (1, BLOCK)), quantise_blocks(matrix, dtype, (BLOCK, 1))
        if self.amax_history is None or (role == "weight" and recipe.rounded_weights):
            one = quantise(matrix, scale_for(self.amax(role, matrix), dtype), dtype)
            return one, one
        if record:
            self.amax_history.observe(role, amax_of(matrix))
        scale = self.amax_history.scale[ROLES.index(role)].to(matrix.device)
        one = quantise(matrix, scale, dtype)
        return one, one

    @torch.no_grad()
    def round_weight(self) -> None:
        """Replace the weight by the FP8 values that stand for it; doing so again changes nothing."""
        rounded = self.quantised("weight", self.weight)[0].dequantised()
        self.weight.copy_(rounded)

    def _forward_impl(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.quantises:
            return super()._forward_impl(input, weight, *args, **kwargs)  # type: ignore[misc]  # of the class after it
        if kwargs["sequence_parallel"]:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True, group=self.tp_group)
        elif kwargs["allreduce_dgrad"]:
            input = copy_to_tensor_model_parallel_region(input, group=self.tp_group)
        record = self.recording and self.training and torch.is_grad_enabled()
        output: Tensor = _Fp8Product.apply(input, weight, self, record)
        bias = kwargs["bias"]
        return output if bias is None else output + bias

    def get_extra_state(self) -> Any:
        """The amax history, where there is one: as Transformer Engine does, in `_extra_state`."""
        return None if self.amax_history is None else self.amax_history.state()

    def set_extra_state(self, state: Any) -> None:
        """Take over a saved history; anything else (an import's empty state, Transformer Engine's) is no history."""
        if self.amax_history is not None:
            self.amax_history = AmaxHistory(self.recipe)
            if is_emulated_state(state):
                self.amax_history.restore(state)


class Fp8ColumnParallelLinear(Fp8Linear, ColumnParallelLinear):
    """ColumnParallelLinear with emulated FP8 products: weight and gradient are split, the input is whole."""

    split_roles = frozenset({"weight", "gradient"})


class Fp8RowParallelLinear(Fp8Linear, RowParallelLinear):
    """RowParallelLinear with emulated FP8 products: weight and input are split, the gradient is whole."""

    split_roles = frozenset({"weight", "input"})


class _Fp8Product(torch.autograd.Function):
    """Input [..., k] times weight [n, k] transposed, all three products of a step with operands in FP8."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, linear: Fp8Linear, record: bool) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        along, across = linear.quantised("input", rows, record)
        weight_along, weight_across = linear.quantised("weight", weight, record)
        ctx.linear, ctx.record, ctx.input_shape = linear, record, input.shape
        ctx.input_block, ctx.weight_block = across.block, weight_across.block
        ctx.save_for_backward(across.values, across.scale, weight_across.values, weight_across.scale)
        product = _product(along, weight_along, input.dtype, transpose=(False, True))
        return product.view(*input.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        input_values, input_scale, weight_values, weight_scale = ctx.saved_tensors
        input = Fp8Tensor(input_values, input_scale, ctx.input_block)
        weight = Fp8Tensor(weight_values, weight_scale, ctx.weight_block)
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        along, across = ctx.linear.quantised("gradient", gradient, ctx.record)
        to_input = to_weight = None
        if ctx.needs_input_grad[0]:
            to_input = _product(along, weight, gradient.dtype, transpose=(False, False)).view(ctx.input_shape)
        if ctx.needs_input_grad[1]:
            to_weight = _product(across, input, gradient.dtype, transpose=(True, False))
        return to_input, to_weight, None, None


def _product(left: Fp8Tensor, right: Fp8Tensor, dtype: torch.dtype, transpose: tuple[bool, bool]) -> Tensor:
    """The matrix product of two FP8 matrices, accumulated in FP32, divided by their scales."""
    matrices = []
    for matrix, flipped in zip((left, right), transpose):
        # scales of blocks are powers of two, so BF16 holds the quotients exactly
        exact = (matrix.values if matrix.block is None else matrix.dequantised()).to(torch.bfloat16)
        matrices.append(exact.t() if flipped else exact)
    product = (matrices[0] @ matrices[1]).float()
    for matrix in (left, right):  # one after the other: the product of two scales may be beyond FP32
        if matrix.block is None:
            product = product / matrix.scale
    return product.to(dtype)
