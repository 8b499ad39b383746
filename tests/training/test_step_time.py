"""Where a step's time went: every moment in one part, the parts adding up to the step."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.step_time import StepClock, timed
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config, write_token_dataset

CPU = torch.device("cpu")


class HandClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_moment_belongs_to_the_innermost_part() -> None:
    now = HandClock()
    clock = StepClock(CPU, now=now)
    clock.begin(7)
    now.seconds += 1  # other
    with clock.part("data"):
        now.seconds += 2
    clock("forward-backward", log_level=1).start(barrier=False)
    now.seconds += 3  # schedule
    clock("forward-recv", log_level=2).start()
    now.seconds += 4
    clock("forward-recv").stop()
    clock("forward-compute", log_level=2).start()
    now.seconds += 5
    clock("forward-compute").stop()
    clock("backward-compute", log_level=2).start()
    now.seconds += 6
    clock("backward-compute").stop()
    clock("all-grads-sync", log_level=1).start(barrier=False)
    now.seconds += 7
    clock("all-grads-sync").stop()
    clock("forward-backward").stop()
    with timed(clock, "optimizer"):
        now.seconds += 8
        clock("params-all-gather", log_level=1).start()
        now.seconds += 9
        clock("params-all-gather").stop()
    found = clock.end()
    assert (found.step, found.seconds, found.remainder) == (7, 45, 0)
    assert found.parts == {
        "data": 2, "forward": 5, "backward": 6, "communication": 4 + 7 + 9, "optimizer": 8, "schedule": 3, "other": 1,
    }  # fmt: skip


def test_what_an_evaluation_does_is_evaluation() -> None:
    now = HandClock()
    clock = StepClock(CPU, now=now)
    clock.begin(1)
    with clock.part("evaluation"):
        now.seconds += 1
        clock("forward-compute").start()
        now.seconds += 2
        clock("forward-compute").stop()
    assert clock.end().parts == {"evaluation": 3, "other": 0}


def test_a_part_that_was_open_before_the_measurement_counts_from_its_beginning() -> None:
    now = HandClock()
    clock = StepClock(CPU, now=now)
    clock.enter("checkpoint")
    now.seconds += 10
    clock.begin(1)
    now.seconds += 1
    clock.leave("checkpoint")
    assert clock.end().parts["checkpoint"] == 1


def test_a_part_never_ends_inside_another() -> None:
    clock = StepClock(CPU)
    clock.enter("forward")
    clock.enter("communication")
    with pytest.raises(RuntimeError, match="innermost is communication"):
        clock.leave("forward")


def test_a_part_ends_where_an_error_leaves_it() -> None:
    clock = StepClock(CPU)
    with pytest.raises(ZeroDivisionError), timed(clock, "optimizer"):
        _ = 1 / 0
    with timed(clock, "data"), timed(None, "optimizer"):
        pass


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two stages, plain and observed: breakdowns every second step, traces of step 3 and, by request, of steps 4 and 5."""
    folder = tmp_path_factory.mktemp("observed")
    prefix = write_token_dataset(folder / "tokens_text_document", seed=7)
    import_hf(make_tiny_model(folder / "hf", "llama3.1"), folder / "imported", reference_logits=False)
    observed: dict[str, Any] = {
        "profiling": {"breakdown_interval": 2, "steps": [3], "ranks": [0, 1], "peak_tflops": 0.5, "nvtx": True},
        "training": {"steps": 6, "gc_interval": 2},
    }
    common = {
        "parallel": {"pipeline_model_parallel_size": 2},
        "checkpointing": {"save_interval": 4, "save_optimizer": False},
    }
    (folder / "observed").mkdir()
    (folder / "observed" / "profile.request").write_text("1-5000\n")
    (folder / "asked").mkdir()
    (folder / "asked" / "profile.request").write_text("4, 5\n")
    jobs = [
        run_config(folder / "plain", folder / "imported", prefix, training={"steps": 6}, **common),
        run_config(folder / "observed", folder / "imported", prefix, **observed, **common),
        run_config(folder / "asked", folder / "imported", prefix, training={"steps": 6}, **common),
    ]
    run_jobs(folder, 2, [{"train": job} for job in jobs])
    yield folder


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_json_lines(run / "metrics.jsonl") if kind in record]


def test_measured_steps_add_up_and_hold_the_step(runs: Path) -> None:
    measured = {record["step"]: record["step_time"] for record in lines(runs / "observed", "step_time")}
    steps = {record["step"]: record for record in lines(runs / "observed", "loss")}
    assert sorted(measured) == [2, 4, 6]
    for step, times in measured.items():
        parts = times["parts"]
        assert sum(parts.values()) + times["remainder"] == pytest.approx(times["seconds"], rel=1e-9)
        assert abs(times["remainder"]) <= 1e-6, "nothing is left out on the CPU"
        assert times["seconds"] >= steps[step]["seconds"], "by another clock: the step is in the time it is part of"
        for part in ("data", "forward", "backward", "communication", "optimizer", "garbage", "schedule"):
            assert parts[part] > 0, part
            assert times["slowest"][part] >= parts[part]
    assert measured[4]["parts"]["checkpoint"] > measured[2]["parts"]["checkpoint"], "step 4 is saved"


def test_observation_changes_nothing_that_is_computed(runs: Path) -> None:
    losses = {
        name: [record["loss"] for record in lines(runs / name, "loss")] for name in ("plain", "observed", "asked")
    }
    assert len(losses["plain"]) == 6
    assert losses["plain"] == losses["observed"] == losses["asked"]
    assert not lines(runs / "plain", "step_time")


def test_chosen_steps_and_ranks_leave_traces_with_the_parts_in_them(runs: Path) -> None:
    folder = runs / "observed" / "profile"
    assert sorted(path.name for path in folder.iterdir()) == [f"step_00000003.rank_{rank}.json" for rank in (0, 1)]
    events = json.loads((folder / "step_00000003.rank_0.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"data", "forward-compute", "backward-compute", "optimizer", "aten::mm"} <= names


def test_a_request_in_the_run_folder_is_followed_by_the_profiling_rank(runs: Path) -> None:
    names = sorted(path.name for path in (runs / "asked" / "profile").iterdir())
    assert names == ["step_00000004.rank_0.json", "step_00000005.rank_0.json"]


def test_what_does_nothing_on_the_cpu_is_said(runs: Path) -> None:
    said = (runs / "jobs_2.rank_0.log").read_text()
    assert "without effect on the CPU: profiling.nvtx" in said
    assert "1-5000' must go upwards, over at most 1000 steps" in said


def test_utilisation_is_claimed_against_a_given_peak_only(runs: Path) -> None:
    assert all("mfu" not in record for record in lines(runs / "plain", "loss"))
    for record in lines(runs / "observed", "loss"):
        assert record["mfu"] == pytest.approx(record["model_tflops"] / 0.5)
        tokens = record["batch"] * 48
        assert record["tokens_per_second_per_gpu"] == pytest.approx(tokens / record["seconds"] / 2)


def test_real_time_is_measured() -> None:
    clock = StepClock(CPU)
    before = time.perf_counter()
    clock.begin(1)
    with clock.part("data"):
        time.sleep(0.05)
    found = clock.end()
    assert 0.05 <= found.parts["data"] <= found.seconds <= time.perf_counter() - before
