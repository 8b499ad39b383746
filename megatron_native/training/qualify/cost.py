"""The rungs about cost, on CUDA: the memory and the speed of a step against what the plan says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_native.config.load import dump_run_config
from megatron_native.config.run import RunConfig
from megatron_native.training.launch import with_this_package
from megatron_native.training.qualify.numerics import with_sections
from megatron_native.training.qualify.session import built, random_micro_batches
from megatron_native.training.qualify.task import Task
from megatron_native.training.qualify.verdict import Measure, RungResult, judged, not_run
from megatron_native.training.step import apply_update, compute_gradients

MEMORY_LIMIT = 0.15
"""Relative difference of a rank's peak from the plan's."""
SPEED_LIMIT = 0.75
"""Share of the plan's tokens a second that has to be reached, at least."""
WARM_UP, TIMED = 3, 10


def memory(task: Task) -> RungResult:
    """The peak of allocated memory in a step of every pipeline stage against the plan's."""
    _, peak, stage = _timed_steps(task)
    planned = _plan(task)
    if isinstance(planned, str):
        return not_run("memory", planned)
    gathered: list[tuple[int, int]] = [(0, 0)] * task.platform.world_size
    dist.all_gather_object(gathered, (stage, peak))
    return judge_memory(gathered, planned["peak_bytes"])


def judge_memory(measured: Sequence[tuple[int, int]], planned: Sequence[int]) -> RungResult:
    """Peaks (pipeline stage, bytes) of every rank against the planned peak of every stage."""
    measures = []
    for stage, expected in enumerate(planned):
        worst = max(found for at, found in measured if at == stage)
        measures.append(Measure(f"stage {stage}: |measured / planned − 1|", abs(worst / expected - 1), MEMORY_LIMIT))
    most = max(found for _, found in measured)
    return judged("memory", measures, f"peak {most / 2**30:.2f} GiB, planned {max(planned) / 2**30:.2f} GiB")


def speed(task: Task) -> RungResult:
    """Tokens a second and GPU of a few steps against the plan's estimate for this GPU."""
    seconds, _, _ = _timed_steps(task)
    planned = _plan(task)
    if isinstance(planned, str):
        return not_run("speed", planned)
    if planned.get("step_seconds") is None:
        return not_run("speed", f"the plan knows no GPU like {torch.cuda.get_device_name()}")
    slowest = torch.tensor(seconds, device=task.platform.device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    tokens = task.overlapped.training.global_batch_size * task.overlapped.data.seq_length / task.platform.world_size
    return judge_speed(tokens, float(slowest), planned["step_seconds"])


def judge_speed(tokens: float, measured: float, planned: float) -> RungResult:
    """Seconds a step, measured and planned, of so many tokens a GPU."""
    message = f"{tokens / measured:,.0f} tokens/s/GPU, planned {tokens / planned:,.0f}"
    return judged("speed", [Measure("measured / planned", planned / measured, SPEED_LIMIT, at_least=True)], message)


def _timed_run(task: Task) -> RunConfig:
    """The slice as the run will train: its overlaps, and FP8 where it is to be FP8."""
    return with_sections(task.overlapped, "timed", training={"precision": "fp8"} if task.fp8 else {})


def _timed_steps(task: Task) -> tuple[float, int, int]:
    """Seconds a step, peak bytes of a step after the first ones, and this rank's pipeline stage."""
    run = _timed_run(task)
    with built(run, task.platform) as one:
        copies = parallel_state.get_data_parallel_world_size()
        batches = random_micro_batches(one, run.training.global_batch_size // copies)
        for chunk in one.model.chunks:
            chunk.train()
        started = 0.0
        for step in range(WARM_UP + TIMED):
            if step == WARM_UP:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                started = time.monotonic()
            result = compute_gradients(one.model.chunks, one.model.optimizer, batches, task.platform.device)
            apply_update(one.model.optimizer, result, 1e-5, 0.1)
        torch.cuda.synchronize()
        seconds = (time.monotonic() - started) / TIMED
        return seconds, torch.cuda.max_memory_allocated(), parallel_state.get_pipeline_model_parallel_rank()


def _plan(task: Task) -> dict[str, Any] | str:
    """The plan of the slice's run, or why there is none; made by a process without devices, as on a laptop. Collective."""
    found: list[dict[str, Any] | str] = [""]
    if task.platform.is_main:
        run = _timed_run(task)
        path = task.folder / "planned.yaml"
        path.write_text(dump_run_config(run), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        environment["CUDA_VISIBLE_DEVICES"] = ""
        gpu = torch.cuda.get_device_name(task.platform.device)
        module = "megatron_native.training.qualify.plan_process"
        command = [sys.executable, "-m", module, str(path), str(task.platform.world_size), gpu]
        answer = subprocess.run(command, env=with_this_package(environment), capture_output=True, text=True)
        lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
        if answer.returncode == 0 and lines:
            found = [json.loads(lines[-1])]
        else:
            said = (answer.stderr.strip().splitlines() or ["nothing"])[-1]
            found = [f"no plan could be made: {said}"]
    dist.broadcast_object_list(found, src=0)
    return found[0]
