"""Which layers stay in BF16 where Transformer Engine decides by a context: what megatron-core asks for, layer by layer."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer import transformer_block
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_native.models import fp8_layers
from megatron_native.models.fp8_emulation import AmaxHistory, Recipe
from megatron_native.models.fp8_numbers import E4M3, E5M2


class Asked:
    """Stands where megatron-core's function stands when Transformer Engine is installed, and notes what it is asked."""

    def __init__(self) -> None:
        self.layers: list[tuple[int, bool]] = []

    def __call__(self, config: Any, layer_no: int = -1, is_init: bool = False) -> Any:
        self.layers.append((layer_no, is_init))
        return nullcontext("fp8")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What megatron-core's own function was asked for."""
    own = Asked()
    monkeypatch.setattr(transformer_block, "get_fp8_context", own)
    return own


def config(**fields: Any) -> TransformerConfig:
    return TransformerConfig(
        num_layers=6, hidden_size=64, num_attention_heads=4, fp8="hybrid", fp8_recipe="tensorwise",
        first_last_layers_bf16=True, num_layers_at_start_in_bf16=1, num_layers_at_end_in_bf16=1, **fields,
    )  # fmt: skip


def test_named_layers_get_no_fp8_context_and_others_do(asked: Asked) -> None:
    ours, other = config(), config()
    fp8_layers.install(ours, [2, 4])
    fp8_layers.install(other, [])
    context = transformer_block.get_fp8_context
    for layer in range(6):
        with context(ours, layer) as found, context(ours, layer, is_init=True) as built:
            assert (found == "fp8") == (built == "fp8") == (layer not in (2, 4))
        with context(other, layer) as found:
            assert found == "fp8", "another model's configuration is not touched"
    assert [entry for entry in asked.layers if entry[0] in (2, 4)] == [(2, False), (4, False)], "of the other model alone"


def test_bf16_everywhere_reaches_the_context_of_delayed_scaling_too(asked: Asked) -> None:
    ours = config()
    fp8_layers.install(ours, [])
    context = transformer_block.get_fp8_context
    with fp8_layers.bf16_everywhere(ours, []), context(ours) as found:  # delayed scaling asks once for all layers
        assert found is None
    with context(ours) as found:
        assert found == "fp8"


def test_layers_in_bf16_are_those_at_the_edges_and_those_named() -> None:
    ours = config()
    assert fp8_layers.bf16_layers(ours) == {0, 5}
    fp8_layers.set_bf16_layers(ours, [], [3])
    assert fp8_layers.bf16_layers(ours) == {0, 3, 5}


def test_transformer_engine_is_not_given_states_of_the_emulation() -> None:
    module = SimpleNamespace(decoder=SimpleNamespace(layers=[]))
    emulated = AmaxHistory(Recipe("delayed", E4M3, E5M2, history=2)).state()
    engine = torch.zeros(3, dtype=torch.uint8)
    state = {"a._extra_state": emulated, "b._extra_state": engine, "c.weight": engine}
    found = fp8_layers.without_foreign_states(module, state)
    assert found["a._extra_state"] is None
    assert found["b._extra_state"] is engine and found["c.weight"] is engine


def test_an_fp8_weight_in_bf16_gets_its_gradient_by_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine then multiplies a copy, which has no `main_grad`; in FP8 it adds in place where Apex's kernel is."""
    monkeypatch.setattr(fp8_layers, "is_float8tensor", lambda weight: weight == "fp8")

    def layer(number: int, weight: str) -> Any:
        found = SimpleNamespace(weight=weight, fuse_wgrad_accumulation=True)
        return SimpleNamespace(layer_number=number, get_submodule=lambda name: found, found=found)

    layers = [layer(1, "bf16"), *(layer(number, "fp8") for number in range(2, 6)), layer(6, "bf16")]
    modules = [SimpleNamespace(decoder=SimpleNamespace(layers=layers))]

    def fused() -> list[bool]:
        return [one.found.fuse_wgrad_accumulation for one in layers]

    ours = config(gradient_accumulation_fusion=True)
    fp8_layers.install(ours, [])
    with fp8_layers.bf16_everywhere(ours, modules):
        assert fused() == [True, False, False, False, False, True]
    assert fused() == [True] * 6
    fp8_layers.set_bf16_layers(ours, modules, [3])  # moved by the conscience
    assert fused() == [True, True, True, False, True, True]
    without_apex = config(gradient_accumulation_fusion=False)
    fp8_layers.set_bf16_layers(without_apex, modules, [])
    assert not any(fused()[1:5])
