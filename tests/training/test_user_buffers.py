"""What Transformer Engine is asked for, and that other forward passes than training's go without buffers.

Transformer Engine is not on the CPU: the interface that it has from 2.9 on stands in for it.
"""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from megatron_native.config.user_buffers import UserBuffers
from megatron_native.errors import UserError
from megatron_native.training.user_buffers import make_user_buffers, without_user_buffers


class Mode(enum.Enum):
    NONE = "none"
    FP8 = "fp8"


def engine(refusal: str | None = None) -> tuple[Any, list[dict[str, Any]]]:
    asked: list[dict[str, Any]] = []

    def initialize_ub(
        shape: Any, tp_size: Any, use_fp8: Any = False, quantization_modes: Any = None, dtype: Any = None,
        ub_cfgs: Any = None, bootstrap_backend: Any = None,
    ) -> None:  # fmt: skip
        assert refusal is None, refusal
        asked.append({
            "shape": shape, "tp_size": tp_size, "modes": quantization_modes, "ub_cfgs": ub_cfgs, "by": bootstrap_backend,
        })  # fmt: skip

    return SimpleNamespace(UserBufferQuantizationMode=Mode, initialize_ub=initialize_ub), asked


BUFFERS = UserBuffers([8192, 4096], 4, ["fp8", "none"], {"qkv_fprop": {"method": "ring_exchange"}}, "nccl")


def test_both_kinds_of_buffers_are_made_where_some_layers_stay_bf16() -> None:
    base, asked = engine()
    make_user_buffers(BUFFERS, base)
    assert asked == [{
        "shape": [8192, 4096], "tp_size": 4, "modes": [Mode.FP8, Mode.NONE],
        "ub_cfgs": {"qkv_fprop": {"method": "ring_exchange"}}, "by": "nccl",
    }]  # fmt: skip


def test_a_refusal_says_the_setting() -> None:
    base, _ = engine("Launch app with UB_SKIPMC=1 to try CUDA IPC instead.")
    with pytest.raises(UserError, match=r"UB_SKIPMC=1.*parallel\.tp_comm_overlap=false"):
        make_user_buffers(BUFFERS, base)


def test_without_transformer_engine_the_setting_is_refused() -> None:
    with pytest.raises(UserError, match="needs Transformer Engine"):
        make_user_buffers(BUFFERS)


def test_layers_go_without_buffers_inside_and_with_them_after() -> None:
    plain = nn.Linear(2, 2)
    layer: Any = nn.Linear(2, 2)
    layer.ub_overlap_ag_fprop, layer.ub_bulk_wgrad, layer.ub_overlap_rs_fprop = True, True, False
    chunk = nn.Sequential(layer, plain)
    with pytest.raises(ZeroDivisionError), without_user_buffers([chunk]):
        assert (layer.ub_overlap_ag_fprop, layer.ub_bulk_wgrad, layer.ub_overlap_rs_fprop) == (False, False, False)
        with without_user_buffers([chunk]):
            pass
        assert not layer.ub_overlap_ag_fprop, "an inner one doesn't switch them on for the outer"
        _ = 1 / 0
    assert (layer.ub_overlap_ag_fprop, layer.ub_bulk_wgrad, layer.ub_overlap_rs_fprop) == (True, True, False)
    assert not hasattr(plain, "ub_bulk_wgrad")
