"""Fits or does not: pairs of configurations at the boundary; the schedule and the memory agree."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_native.config.model import ModelConfig
from megatron_native.training.plan.gpus import read_gpu
from megatron_native.training.plan.memory import rank_memory
from megatron_native.training.plan.rough_memory import rough_peak
from megatron_native.training.plan.run_plan import peak_if_fits, plan_run, with_settings
from megatron_native.training.plan.schedule import fullest_moment, rank_order
from tests.training.plan.shapes import FP8_70B, LLAMA3_70B, run_of

H100 = read_gpu("h100-80g")
WIDE: ModelConfig = LLAMA3_70B.model_copy(update={"num_layers": 6})
"""LLAMA3-70B's width on eight GPUs, without tensor parallelism: just fits."""
LONG: dict[str, Any] = {"data": {"seq_length": 8192}}
RECOMPUTED: dict[str, Any] = {**LONG, "training": {"micro_batch_size": 2, "recompute": "full"}}


@pytest.mark.parametrize("base, model, gpus, change, largest", [
    (LONG, WIDE, 8, {"training.micro_batch_size": 2}, "activations"),
    (LONG, WIDE, 8, {"parallel.use_distributed_optimizer": False}, "optimizer state"),
    (RECOMPUTED, WIDE, 8, {"training.recompute": "none"}, "activations"),
    (FP8_70B, LLAMA3_70B, 512, {"parallel.tensor_model_parallel_size": 2}, "activations"),
])  # fmt: skip
def test_one_setting_flips_from_fits_to_does_not(
    base: dict[str, Any], model: ModelConfig, gpus: int, change: dict[str, Any], largest: str
) -> None:
    fitting = run_of(base)
    last = fitting.parallel.pipeline_model_parallel_size - 1
    assert all(rank_memory(fitting, model, gpus, rank).total <= H100.usable_bytes for rank in {0, last})
    first = rank_memory(with_settings(fitting, change), model, gpus, 0)
    assert first.total > H100.usable_bytes
    assert first.largest[0] == largest


def test_remedies_are_single_settings_that_fit() -> None:
    run = run_of(LONG, training={"micro_batch_size": 2})
    plan = plan_run(run, WIDE, H100, 8)
    assert not plan.fits and plan.fullest.largest[0] == "activations"
    texts = [remedy.text for remedy in plan.remedies]
    assert "training.micro_batch_size=1" in texts and "training.recompute=full" in texts
    assert "parallel.tensor_model_parallel_size=2 parallel.sequence_parallel=true" in texts
    assert all(remedy.peak <= H100.usable_bytes for remedy in plan.remedies)
    speeds = [remedy.tokens_a_second for remedy in plan.remedies]
    assert speeds == sorted(speeds, reverse=True)


def test_a_smaller_micro_batch_takes_that_of_evaluation_with_it_where_buffers_have_one_size() -> None:
    overlapped = run_of(
        LONG, training={"micro_batch_size": 2}, evaluation={"micro_batch_size": 2, "heldout": [{"name": "a", "path": "a"}]},
        parallel={"tensor_model_parallel_size": 2, "sequence_parallel": True, "tp_comm_overlap": True},
    )  # fmt: skip
    small = read_gpu("h100-80g").model_copy(update={"memory_gib": 50.0})
    plan = plan_run(overlapped, WIDE, small, 8)
    assert not plan.fits
    halved = {"training.micro_batch_size": 1, "evaluation.micro_batch_size": 1}
    assert halved in [remedy.settings for remedy in plan.remedies]


def test_micro_batches_in_flight_are_those_of_the_schedule() -> None:
    """Equal layers: the fullest moment is when most passes are in flight."""
    run = run_of(FP8_70B, fp8={"first_layers_bf16": 0, "last_layers_bf16": 0})
    moment = fullest_moment(rank_order(8, 1, 5, 64), [1] * 5)
    assert sum(rank_memory(run, LLAMA3_70B, 512, 1).in_flight) == sum(moment.in_flight)


TP, PP, VPP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"
ENDS = {"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True}
PHASES = [
    {"name": "short", "tokens": 10**9},
    {"name": "long", "tokens": 10**9, "seq_length": 4096, "global_batch_size": 8},
]


@pytest.mark.parametrize("sections, layers, gpus, least", [
    ({}, 80, 512, 0.8),
    ({"parallel": {VPP: None, "num_layers_in_first_pipeline_stage": 3, "num_layers_in_last_pipeline_stage": 5}}, 80, 512, 0.8),
    ({"parallel": {PP: 2, VPP: 41, **ENDS}}, 80, 64, 0.8),
    # most micro-batches are in flight in the chunk that has fewest layers
    ({"training": {"micro_batch_size": 4}, "parallel": {PP: 2, VPP: 2, "pipeline_layout": "Et|t*5|t*5|tL"}}, 12, 8, 0.8),
    # FP32 weights are their own masters
    ({"data": {"seq_length": 1024}, "training": {"precision": "fp32"}, "parallel": {
        PP: 2, VPP: None, "use_distributed_optimizer": False, "overlap_param_gather": False}}, 40, 8, 0.9),
    ({"training": {"precision": "fp32"}, "parallel": {PP: 2, VPP: None}}, 8, 64, 0.8),
    ({"training": {"precision": "bf16", "recompute": "full"}, "parallel": {PP: 2, VPP: None}}, 16, 64, 0.7),
    ({"training": {"precision": "bf16", "recompute": "selective", "recompute_modules": ["mlp"]},
      "parallel": {PP: 2, VPP: None, "num_distributed_optimizer_instances": 2}}, 16, 64, 0.7),
    ({"data": {"seq_length": 2048}, "training": {"steps": None}, "phases": PHASES,
      "parallel": {PP: 4, VPP: None}}, 16, 16, 0.8),
])  # fmt: skip
def test_the_rough_count_is_a_lower_bound_and_not_far_off(
    sections: dict[str, Any], layers: int, gpus: int, least: float
) -> None:
    run = run_of(FP8_70B, **sections)
    model = LLAMA3_70B.model_copy(update={"num_layers": layers})
    last = run.parallel.pipeline_model_parallel_size - 1
    exact = max(rank_memory(run, model, gpus, rank).total for rank in (0, last))
    rough = rough_peak(run, model, gpus)
    print(f"{rough / exact:.3f} of the exact {exact / 2**30:.1f} GiB")
    assert least * exact < rough <= exact


def test_the_fullest_stage_is_found_between_the_ends_too() -> None:
    """Eleven layers in stage 3, as the published layout has it, are most where the ends have few."""
    layout = "Et|t*2|t*11|t*2|t*2|t*2|t*2|tL"
    run = run_of(FP8_70B, parallel={VPP: None, "pipeline_layout": layout}, training={"recompute": "full"})
    model = LLAMA3_70B.model_copy(update={"num_layers": 23})
    totals = [rank_memory(run, model, 512, rank).total for rank in range(8)]
    assert totals.index(max(totals)) == 2
    assert peak_if_fits(run, model, H100, 512) == totals[2]
    small = H100.model_copy(update={"memory_gib": totals[2] / 2**30})
    assert max(totals[:2] + totals[3:]) < small.usable_bytes < totals[2]
    assert peak_if_fits(run, model, small, 512) is None
