"""Fits or does not: pairs of configurations at the boundary; the schedule and the memory agree."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_native.config.model import ModelConfig
from megatron_native.training.plan.gpus import read_gpu
from megatron_native.training.plan.memory import rank_memory, step_order
from megatron_native.training.plan.rough_memory import rough_peak
from megatron_native.training.plan.run_plan import plan_run, with_settings
from megatron_native.training.plan.schedule import in_flight, rank_order
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


@pytest.mark.parametrize("ranks, chunks, micro_batches", [(4, 1, 8), (4, 1, 2), (4, 3, 8), (1, 1, 4), (8, 5, 16)])
def test_the_order_that_memory_counts_with_is_the_schedules(ranks: int, chunks: int, micro_batches: int) -> None:
    run = run_of(parallel={
        "pipeline_model_parallel_size": ranks, "virtual_pipeline_model_parallel_size": chunks if chunks > 1 else None,
    })  # fmt: skip
    for rank in range(ranks):
        ours = [(one.direction == "forward", one.chunk) for one in rank_order(ranks, rank, chunks, micro_batches)]
        assert ours == step_order(run, rank, micro_batches)


def test_micro_batches_in_flight_are_those_of_the_schedule() -> None:
    """Equal layers: the fullest moment is when most passes are in flight."""
    run = run_of(FP8_70B, fp8={"first_layers_bf16": 0, "last_layers_bf16": 0})
    assert sum(rank_memory(run, LLAMA3_70B, 512, 1).in_flight) == in_flight(rank_order(8, 1, 5, 64))


def test_the_rough_count_is_a_lower_bound_and_not_far_off() -> None:
    run = run_of(FP8_70B)
    exact = max(rank_memory(run, LLAMA3_70B, 512, rank).total for rank in (0, 7))
    assert 0.8 * exact < rough_peak(run, LLAMA3_70B, 512) <= exact
