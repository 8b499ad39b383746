"""Which layers compute in FP8, and what has to happen to them between steps; the same calls for CPU and CUDA.

megatron-core keeps a number of layers at the beginning and at the end in BF16. Any other layer is kept so by a set of
layer numbers on its configuration, which `install` makes it look at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fp8_utils import is_first_last_bf16_layer, is_float8tensor
from torch import Tensor
from torch.nn import Parameter

from megatron_native.models.fp8_emulation import Fp8Linear, is_emulated_state

LINEARS = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
"""The matrix products of a layer that FP8 is about."""

_BF16_LAYERS, _BF16_EVERYWHERE = "native_bf16_layers", "native_bf16_everywhere"


def install(config: Any, layers: Collection[int]) -> None:
    """Keep `layers` (from 0) in BF16 in every model built with this TransformerConfig; before it is built."""
    from megatron.core.transformer import transformer_block

    setattr(config, _BF16_LAYERS, frozenset(layers))
    original = transformer_block.get_fp8_context
    if getattr(original, "is_native", False):
        return

    def get_fp8_context(config: Any, layer_no: int = -1, is_init: bool = False) -> Any:
        if not is_init and getattr(config, _BF16_EVERYWHERE, False):
            return nullcontext()
        if layer_no in getattr(config, _BF16_LAYERS, ()):
            return nullcontext()
        return original(config, layer_no, is_init)

    get_fp8_context.is_native = True  # type: ignore[attr-defined]  # a mark, to wrap it once only
    transformer_block.get_fp8_context = get_fp8_context


def bf16_layers(config: Any) -> frozenset[int]:
    """Every layer that stays in BF16, from 0: those at the edges and those named."""
    edges = (layer for layer in range(config.num_layers) if is_first_last_bf16_layer(config, layer))
    return frozenset(edges) | getattr(config, _BF16_LAYERS, frozenset())


def set_bf16_layers(config: Any, modules: Sequence[Any], layers: Collection[int]) -> None:
    """From now on these layers (besides those at the edges) compute in BF16, and no others."""
    setattr(config, _BF16_LAYERS, frozenset(layers))
    _apply(config, modules)


@contextmanager
def bf16_everywhere(config: Any, modules: Sequence[Any]) -> Iterator[None]:
    """Within it nothing is quantised as it is multiplied; weights that are kept in FP8 stay what they are."""
    setattr(config, _BF16_EVERYWHERE, True)
    _apply(config, modules)
    try:
        yield
    finally:
        setattr(config, _BF16_EVERYWHERE, False)
        _apply(config, modules)


def _apply(config: Any, modules: Sequence[Any]) -> None:
    kept = bf16_layers(config)
    everywhere = getattr(config, _BF16_EVERYWHERE, False)
    for layer, _, linear in linears(modules):
        in_fp8 = not everywhere and layer not in kept
        if isinstance(linear, Fp8Linear):
            linear.quantises = in_fp8
        elif is_float8tensor(linear.weight):
            # In BF16 an FP8 weight is multiplied through a copy, which has no `main_grad` to add a gradient to in place.
            linear.fuse_wgrad_accumulation = in_fp8 and config.gradient_accumulation_fusion


def linears(modules: Sequence[Any]) -> Iterator[tuple[int, str, Any]]:
    """Every linear layer of the transformer layers on this rank: the layer's number from 0, its name there, itself."""
    for module in modules:
        for layer in module.decoder.layers:
            for name in LINEARS:
                yield layer.layer_number - 1, name, layer.get_submodule(name)


def rounded_weights(config: Any, modules: Sequence[Any]) -> list[Parameter]:
    """Where weights are kept in FP8: those of every layer's products on this rank, of BF16 layers too; otherwise none.

    In a checkpoint the layers are one tensor, which is described in one way.
    """
    return [linear.weight for _, _, linear in linears(modules)] if config.fp8 and config.fp8_param else []


def is_emulated(modules: Sequence[Any]) -> bool:
    """Whether this rank's layers emulate FP8."""
    return any(isinstance(linear, Fp8Linear) for _, _, linear in linears(modules))


def described(config: Any, modules: Sequence[Any]) -> str:
    """What the run says of its FP8."""
    kept = ", ".join(str(layer) for layer in sorted(bf16_layers(config)))
    parts = [str(config.fp8_recipe), str(config.fp8), f"BF16 in layers {kept}" if kept else "no layer in BF16"]
    parts += ["weights kept in FP8"] if config.fp8_param else []
    parts += ["EMULATED: rounding only, computed in BF16"] if is_emulated(modules) else []
    return f"fp8 ({'; '.join(parts)})"


def begin_step(config: Any, modules: Sequence[Any]) -> None:
    """Before gradients are computed, perhaps again: nothing of an earlier attempt stays in the amax histories."""
    for history in _histories(config, modules):
        history.forget()


def end_step(config: Any, modules: Sequence[Any], chunks: Sequence[Any]) -> None:
    """After an update: amax histories agree on the step and go on, weights kept in FP8 are rounded to it. Collective.

    Emulation only; Transformer Engine does both by itself. `chunks` are `modules` in megatron-core's data-parallel
    wrappers.
    """
    histories = list(_histories(config, modules))
    if histories:
        group = parallel_state.get_amax_reduction_group(
            with_context_parallel=True, tp_only_amax_red=config.tp_only_amax_red
        )
        together = torch.stack([history.current for history in histories]).to(_device(modules))
        dist.all_reduce(together, op=dist.ReduceOp.MAX, group=group)
        for history, agreed in zip(histories, together.cpu()):
            history.current.copy_(agreed)
            history.roll()
    if config.fp8_param and is_emulated(modules):
        for chunk in chunks:
            if chunk.ddp_config.overlap_param_gather:  # the scale is a whole weight's, so all of it has to be there
                chunk.start_param_sync(force_sync=True)
    round_weights(config, modules)


def unround_moved(config: Any, modules: Sequence[Any], chunks: Sequence[Any], optimizer: Any) -> None:
    """After layers were moved to BF16: where this is emulated, their weights are the masters again. Collective.

    Transformer Engine's stay FP8 values: what kind a weight is was decided when the model was built.
    """
    if not (config.fp8_param and is_emulated(modules)):
        return
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner._copy_main_params_to_model_params()
    for chunk in chunks:
        chunk.start_param_sync(force_sync=True)
    round_weights(config, modules)


def round_weights(config: Any, modules: Sequence[Any]) -> None:
    """Where weights are kept in FP8 and this is emulated: round those of the FP8 layers. Collective."""
    if not config.fp8_param:
        return
    for _, _, linear in linears(modules):
        if isinstance(linear, Fp8Linear) and linear.quantises:
            linear.round_weight()


def without_foreign_states(module: Any, state: dict[str, Any]) -> dict[str, Any]:
    """A chunk's loaded state without amax histories of emulation where its layers don't emulate.

    Transformer Engine refuses an `_extra_state` that is not its own, and none at all is what an import gives it.
    """
    if is_emulated([module]):
        return state
    return {name: None if is_emulated_state(value) else value for name, value in state.items()}


@contextmanager
def unrecorded(modules: Sequence[Any]) -> Iterator[None]:
    """Within it no matrix product leaves a trace in amax histories or scales, on either platform."""
    emulated = [linear for _, _, linear in linears(modules) if isinstance(linear, Fp8Linear)]
    saved = [(tensor, tensor.clone()) for tensor in _transformer_engine_amaxes(modules)]
    for linear in emulated:
        linear.recording = False
    try:
        yield
    finally:
        for linear in emulated:
            linear.recording = True
        for tensor, before in saved:
            tensor.copy_(before)


def _transformer_engine_amaxes(modules: Sequence[Any]) -> Iterator[Tensor]:
    for _, _, linear in linears(modules):
        meta = getattr(linear, "fp8_meta", {})
        for direction in ("scaling_fwd", "scaling_bwd"):
            for name in ("amax_history", "scale"):
                tensor = getattr(meta.get(direction), name, None)
                if isinstance(tensor, Tensor):
                    yield tensor


def _histories(config: Any, modules: Sequence[Any]) -> Iterator[Any]:
    if not config.fp8 or config.fp8_recipe != "delayed":
        return
    for _, _, linear in linears(modules):
        if isinstance(linear, Fp8Linear) and linear.amax_history is not None:
            yield linear.amax_history


def _device(modules: Sequence[Any]) -> torch.device:
    return next(modules[0].parameters()).device
