"""How long before its time limit a job is told to save."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.slurm.cluster import Cluster, seconds_of
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.plan.checkpoint_size import (
    ASSUMED_GB_S,
    METRICS_TAIL_BYTES,
    checkpoint_size,
    stop_seconds,
)

UNMEASURED_SECONDS = 600
UNMEASURED_STEP_SECONDS = 60
_LATEST = 20


@dataclass(frozen=True)
class Margin:
    """A margin and where it comes from."""

    seconds: int
    reason: str


def signal_margin(cluster: Cluster, run: RunConfig, model: ModelConfig | None) -> Margin:
    """The setting; or from the run's own saves; or from the checkpoint's size; or ten minutes.

    It is `stop_seconds` of the longest of the last saves and steps, up to a multiple of 30.

    Raises:
        UserError: it leaves nothing of the time limit.
    """
    margin = _margin(cluster, run, model)
    if margin.seconds >= seconds_of(cluster.time):
        raise UserError(
            f"the run would be told to save {margin.seconds} s before its end ({margin.reason}), and time {cluster.time} "
            "of the cluster's file is no more than that: give jobs more time, or set signal_margin."
        )
    return margin


def _margin(cluster: Cluster, run: RunConfig, model: ModelConfig | None) -> Margin:
    if cluster.signal_margin is not None:
        return Margin(cluster.signal_margin, "signal_margin of the cluster's file")
    records = read_json_lines(run.run_dir / "metrics.jsonl", METRICS_TAIL_BYTES)
    saves = [float(record["saved"]["seconds"]) for record in records if "saved" in record][-_LATEST:]
    steps = [float(record["seconds"]) for record in records if "loss" in record and "seconds" in record][-_LATEST:]
    if saves:
        save, step = max(saves), max(steps, default=0.0)
        return Margin(
            _rounded(stop_seconds(save, step)),
            f"measured: the longest of the last {len(saves)} saves took {save:.0f} s, of the last steps {step:.0f} s",
        )
    if model is None:
        return Margin(UNMEASURED_SECONDS, "nothing measured yet, and the model's size is not known here")
    size, rate = checkpoint_size(run, model), cluster.checkpoint_gb_per_second
    seconds = stop_seconds(size.seconds((rate or ASSUMED_GB_S) * 1e9), UNMEASURED_STEP_SECONDS)
    if rate is None:
        return Margin(
            max(UNMEASURED_SECONDS, _rounded(seconds)),
            "nothing measured yet, and no checkpoint_gb_per_second in the cluster's file",
        )
    return Margin(
        _rounded(seconds),
        f"estimated: {size.total / 1e9:,.0f} GB of {size.parameters / 1e9:.1f} billion parameters at {rate:g} GB/s",
    )


def _rounded(seconds: float) -> int:
    return math.ceil(seconds / 30) * 30
