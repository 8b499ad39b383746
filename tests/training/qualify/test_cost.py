"""What the plan promised against what was measured: the verdicts, on figures by hand."""

from __future__ import annotations

import pytest

from megatron_native.training.plan.gpus import gpu_of_device
from megatron_native.training.qualify.cost import judge_memory, judge_speed

GIB = 2**30


def test_memory_is_judged_by_the_worst_rank_of_every_stage() -> None:
    measured = [(0, 20 * GIB), (0, 21 * GIB), (1, 30 * GIB), (1, 30 * GIB)]
    assert judge_memory(measured, [20 * GIB, 30 * GIB]).verdict == "passed"
    more = judge_memory([*measured, (0, 24 * GIB)], [20 * GIB, 30 * GIB])
    assert more.verdict == "failed" and [measure.holds for measure in more.measures] == [False, True]
    assert judge_memory(measured, [20 * GIB, 40 * GIB]).verdict == "failed", (
        "a plan that is a third too high is wrong too"
    )


def test_speed_is_judged_by_the_share_of_the_plan() -> None:
    assert judge_speed(8192, 1.0, 0.8).verdict == "passed"
    slow = judge_speed(8192, 2.0, 1.0)
    assert slow.verdict == "failed" and slow.message == "4,096 tokens/s/GPU, planned 8,192"


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80g"), ("NVIDIA H200", "h200-141g"), ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA B200", "b200-180g"), ("NVIDIA L40S", None),
        ("NVIDIA A100-SXM4-40GB", None), ("NVIDIA H100 PCIe", None), ("NVIDIA H100 NVL", None),  # other rates, which no row has
    ],
)  # fmt: skip
def test_the_plan_is_made_for_the_gpu_that_is_there(device: str, key: str | None) -> None:
    found = gpu_of_device(device)
    assert (None if found is None else found.key) == key
