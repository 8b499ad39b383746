"""The buffers that Transformer Engine is asked for, where tensor-parallel communication overlaps."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_native.config.user_buffers import user_buffers
from tests.config.models import LLAMA3_8B, LLAMA3_70B, run_of

# The products of a transformer layer that Transformer Engine overlaps with communication, and how it can (initialize_ub).
ALL_GATHER = {"qkv_fprop", "fc1_fprop", "proj_dgrad", "fc2_dgrad", "qkv_dgrad", "fc1_dgrad"}
REDUCE_SCATTER = {"proj_fprop", "fc2_fprop", "qkv_wgrad", "fc1_wgrad"}


def overlapping(tp: int = 4, **sections: Any) -> Any:
    parallel = {"tensor_model_parallel_size": tp, "sequence_parallel": True, "tp_comm_overlap": True}
    return run_of(**{**sections, "parallel": {**parallel, **sections.get("parallel", {})}})


def test_nothing_where_nothing_overlaps() -> None:
    assert user_buffers(run_of(), LLAMA3_70B) is None
    assert user_buffers(overlapping(training={"mode": "exact"}), LLAMA3_70B) is None


def test_a_buffer_holds_a_micro_batch_of_one_context_parallel_process() -> None:
    run = overlapping(
        data={"seq_length": 8192}, training={"micro_batch_size": 2}, parallel={"context_parallel_size": 2}
    )
    buffers = user_buffers(run, LLAMA3_70B)
    assert buffers is not None
    assert (buffers.shape, buffers.tp_size) == ([8192 * 2 // 2, 8192], 4)


@pytest.mark.parametrize(
    ("precision", "fp8", "modes"),
    [
        ("bf16", {}, ["none"]),
        ("fp8", {}, ["fp8", "none"]),  # first and last layer in BF16
        ("fp8", {"first_layers_bf16": 0, "last_layers_bf16": 0}, ["fp8"]),
        ("fp8", {"first_layers_bf16": 0, "last_layers_bf16": 0, "bf16_layers": [7]}, ["fp8", "none"]),
        ("fp8", {"recipe": "delayed"}, ["fp8"]),
    ],
)
def test_both_kinds_of_layers_have_buffers(precision: str, fp8: dict[str, Any], modes: list[str]) -> None:
    buffers = user_buffers(overlapping(training={"precision": precision}, fp8=fp8), LLAMA3_70B)
    assert buffers is not None and buffers.quantization_modes == modes
    watched = user_buffers(
        overlapping(training={"precision": precision}, fp8=fp8, conscience={"interval": 500}), LLAMA3_70B
    )  # a replay computes every layer in BF16 as well
    assert watched is not None and watched.quantization_modes == (["none"] if precision == "bf16" else ["fp8", "none"])


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_published_settings_name_every_product_and_a_way_it_can_go(precision: str) -> None:
    buffers = user_buffers(overlapping(training={"precision": precision}), LLAMA3_70B)
    assert buffers is not None
    assert buffers.ub_cfgs.keys() == ALL_GATHER | REDUCE_SCATTER
    for name, settings in buffers.ub_cfgs.items():
        # Transformer Engine pipelines reduce-scatters alone, and overlaps gradients with whole transfers.
        assert settings["method"] != "pipeline" or name in REDUCE_SCATTER
        assert (settings["method"] == "bulk") == (name in {"qkv_dgrad", "qkv_wgrad", "fc1_dgrad", "fc1_wgrad"})
    bf16 = precision == "bf16"
    assert buffers.ub_cfgs["fc2_fprop"]["method"] == ("pipeline" if bf16 else "ring_exchange")
    assert buffers.ub_cfgs["qkv_wgrad"] == {"method": "bulk", "num_sm": 24, "cga_size": 2, "set_sm_margin": False}


def test_other_shapes_take_transformer_engines_own() -> None:
    for run, model in ((overlapping(8), LLAMA3_70B), (overlapping(4), LLAMA3_8B)):
        buffers = user_buffers(run, model)
        assert buffers is not None and buffers.ub_cfgs == {}
