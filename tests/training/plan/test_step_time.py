"""The estimate of a step: traffic by hand, the roofline's parts, published speeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_native.config.load import validate_run_config
from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import resolve_phases
from megatron_native.config.run import RunConfig
from megatron_native.training.plan.communication import (
    data_traffic,
    groups_of,
    layer_traffic,
    message_bytes,
    step_volume,
)
from megatron_native.training.plan.flops import layer_matrix_parameters, token_flops
from megatron_native.training.plan.gpus import read_gpu
from megatron_native.training.plan.layer_time import is_fp8_layer, layer_time
from megatron_native.training.plan.stages import split_stages
from megatron_native.training.plan.step_time import StepEstimate, estimate_phases, estimate_step, least_step_seconds
from tests.training.plan.shapes import FP8_70B, LLAMA3_8B, LLAMA3_70B, run_of, settings

H100 = read_gpu("h100-80g")
PUBLISHED = Path(__file__).parents[3] / "benchmarks" / "published_speeds.yaml"


def step_of(run: RunConfig, model: ModelConfig, world_size: int) -> StepEstimate:
    return estimate_step(run, model, H100, world_size, resolve_phases(run)[0])


def test_groups_are_laid_out_tensor_first_and_pipeline_last() -> None:
    groups = groups_of(run_of(parallel={"tensor_model_parallel_size": 4, "pipeline_model_parallel_size": 2,
                                        "context_parallel_size": 2}), 64)  # fmt: skip
    assert (groups.tensor.size, groups.tensor.stride) == (4, 1)
    assert (groups.context.size, groups.context.stride) == (2, 4)
    assert (groups.data.size, groups.data.stride) == (8, 4)
    assert (groups.pipeline.size, groups.pipeline.stride) == (2, 32)


def test_traffic_of_a_layer_by_hand() -> None:
    """TP4 of 8,192 tokens of 8,192 values in BF16: 128 MiB whole, of which a rank sends three quarters at a time."""
    piece = 8192 * 8192 * 2 * 3 / 4
    with_sp = layer_traffic(run_of(FP8_70B), LLAMA3_70B, 8192)
    assert (with_sp.tensor_forward, with_sp.tensor_backward) == (4 * piece, 6 * piece)
    without = layer_traffic(run_of(FP8_70B, parallel={"sequence_parallel": False}), LLAMA3_70B, 8192)
    assert (without.tensor_forward, without.tensor_backward) == (4 * piece, 4 * piece)
    assert message_bytes(run_of(FP8_70B), LLAMA3_70B, 8192) == 8192 * 8192 * 2 // 4
    ring = layer_traffic(
        run_of(parallel={"context_parallel_size": 4, "tensor_model_parallel_size": 2}), LLAMA3_70B, 2048
    )
    assert ring.context_forward == 3 * (
        2 * 2048 * 8 * 128 // 2 * 2
    )  # keys and values of a quarter, passed on three times


@pytest.mark.parametrize("changed, gradients, parameters", [
    ({}, 7 / 8 * 4, 7 / 8 * 2),
    ({"optimizer": {"grad_reduce_in_fp32": False}}, 7 / 8 * 2, 7 / 8 * 2),
    ({"parallel": {"use_distributed_optimizer": False}}, 2 * 7 / 8 * 4, 0.0),
    ({"training": {"precision": "fp8"}, "fp8": {"param_gather": True}}, 7 / 8 * 4, 7 / 8 * (2 - 0.9)),
])  # fmt: skip
def test_data_parallel_traffic_of_eight_copies(changed: dict[str, Any], gradients: float, parameters: float) -> None:
    """Bytes a parameter: FP32 gradients scattered, BF16 weights gathered; nine tenths are layers' matrices here."""
    run = run_of(**changed)
    traffic = data_traffic(run, groups_of(run, 8).data, 1000, 900)
    assert (traffic.gradients, traffic.parameters) == (
        pytest.approx(1000 * gradients),
        pytest.approx(1000 * parameters),
    )


def test_ends_of_the_pipeline_send_less() -> None:
    run = run_of(FP8_70B)
    stages, groups = split_stages(run, LLAMA3_70B), groups_of(run, 512)
    traffic = data_traffic(run, groups.data, 10**9, 0)
    sent = [step_volume(run, LLAMA3_70B, stages, rank, 8192, 64, traffic).pipeline for rank in range(8)]
    message = 8192 * 8192 * 2 // 4
    assert sent[3] == 64 * 5 * 2 * message  # each chunk forward and backward
    assert sent[0] == sent[7] == 64 * (5 * 2 - 1) * message


def test_first_and_last_layers_of_fp8_stay_bf16() -> None:
    run = run_of(FP8_70B, fp8={"bf16_layers": [40]})
    assert [layer for layer in range(80) if not is_fp8_layer(run, LLAMA3_70B, layer)] == [0, 40, 79]


def test_matrix_products_take_their_flop_at_the_rate_that_is_reached() -> None:
    run = run_of(FP8_70B)
    seconds = layer_time(run, LLAMA3_70B, H100, groups_of(run, 512), 8192, 8192, fp8=False)
    flop = 2 * layer_matrix_parameters(LLAMA3_70B) / 4 * 8192
    assert seconds.forward.matmul == pytest.approx(flop / (989.4e12 * H100.shares.bf16_matmul))
    assert seconds.backward.matmul == pytest.approx(2 * seconds.forward.matmul)


def test_fp8_is_faster_and_casts_cost_something() -> None:
    run = run_of(FP8_70B)
    bf16, fp8 = (layer_time(run, LLAMA3_70B, H100, groups_of(run, 512), 8192, 8192, fp8=fp8) for fp8 in (False, True))
    assert fp8.forward.matmul < bf16.forward.matmul and fp8.forward.memory > bf16.forward.memory
    assert fp8.backward.total < bf16.backward.total


def test_a_tiny_batch_is_bound_by_memory() -> None:
    """One token: every weight is read, whatever the FLOP."""
    run = run_of()
    seconds = layer_time(run, LLAMA3_8B, H100, groups_of(run, 8), 1, 8192, fp8=False)
    assert seconds.forward.matmul == pytest.approx(2 * layer_matrix_parameters(LLAMA3_8B) / H100.hbm_bytes_s, rel=0.01)


@pytest.mark.parametrize("slower", [
    {"training": {"recompute": "full"}},
    {"training": {"recompute": "selective", "recompute_modules": ["mlp"]}},
    {"parallel": {"overlap_grad_reduce": False, "overlap_param_gather": False}},
    {"parallel": {"virtual_pipeline_model_parallel_size": None}},
    {"training": {"precision": "bf16"}},
    {"parallel": {"sequence_parallel": False}},
])  # fmt: skip
def test_what_costs_time_costs_time_in_the_estimate(slower: dict[str, Any]) -> None:
    assert (
        step_of(run_of(FP8_70B, **slower), LLAMA3_70B, 512).seconds > step_of(run_of(FP8_70B), LLAMA3_70B, 512).seconds
    )


def test_tensor_parallel_overlap_saves_time() -> None:
    overlapped = run_of(FP8_70B, parallel={"tp_comm_overlap": True})
    assert step_of(overlapped, LLAMA3_70B, 512).seconds < step_of(run_of(FP8_70B), LLAMA3_70B, 512).seconds


def test_parts_of_a_step_add_up() -> None:
    step = step_of(run_of(FP8_70B), LLAMA3_70B, 512)
    assert sum(step.parts().values()) == pytest.approx(step.seconds)
    assert min(step.parts().values()) >= 0
    assert step.tokens == 1024 * 8192
    assert step.tokens_a_second == pytest.approx(step.tokens / step.seconds / 512)
    flop = token_flops(LLAMA3_70B, 8192).total("causal")
    assert step.utilisation["causal"] == pytest.approx(step.tokens_a_second * flop / 1978.9e12)


def test_the_quick_bound_is_close_to_the_simulation() -> None:
    for changed in ({}, {"virtual_pipeline_model_parallel_size": None}, {"pipeline_model_parallel_size": 4}):
        run = run_of(FP8_70B, parallel=changed)
        bound = least_step_seconds(run, LLAMA3_70B, H100, 512, resolve_phases(run)[0])
        assert bound == pytest.approx(step_of(run, LLAMA3_70B, 512).seconds, rel=0.1)


def test_phases_have_their_own_length_and_batch() -> None:
    phases = [
        {"name": "native", "tokens": 10**9},
        {"name": "long", "tokens": 10**8, "seq_length": 8192, "global_batch_size": 32},
        {"name": "growing", "tokens": 10**8, "batch_ramp": {"start": 32, "increment": 16, "tokens": 5 * 10**7}},
    ]
    raw = settings(phases=phases)
    raw["training"].pop("steps")
    run = validate_run_config(raw, "test")
    native, long, growing = estimate_phases(run, LLAMA3_8B, H100, 8)
    assert native.steps == -(-(10**9) // (64 * 4096))
    assert native.seconds == pytest.approx(10**9 / (64 * 4096) * native.step.seconds)
    assert native.gpu_hours == pytest.approx(native.days * 24 * 8)
    assert long.step.flops_a_token["full"] > native.step.flops_a_token["full"]
    assert growing.seconds > 10**8 / (64 * 4096) * growing.step.seconds  # smaller batches are less efficient


@pytest.mark.parametrize("row", yaml.safe_load(PUBLISHED.read_text())["rows"], ids=lambda row: row["source"][:30])
def test_estimates_of_published_rows(row: dict[str, Any]) -> None:
    """The rows that a share was fitted to within 1 %; those of 2025 and later within 10 %, older software within 25 %."""
    raw = {"run_dir": "r", "model": {"hf_config": "c"}, **row["settings"]}
    raw["data"] = {"seq_length": 8192, "blend": [{"prefix": "tokens"}], **raw.get("data", {})}
    raw["training"] = {"steps": 50, **raw["training"]}
    step = step_of(validate_run_config(raw, "row"), ModelConfig(**row["model"]), row["gpus"])
    tolerance = 0.01 if row.get("fitted") else 0.25 if "24.12" in row["source"] else 0.1
    assert step.tokens_a_second == pytest.approx(row["tokens_a_second_a_gpu"], rel=tolerance)
