"""How long before its time limit a job is told to save."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from megatron_native.config.model import ModelConfig
from megatron_native.errors import UserError
from megatron_native.slurm.cluster import Cluster, seconds_of
from megatron_native.training.line_file import read_json_lines

SLURM_SECONDS = 60
"""Slurm may signal so much earlier than asked; nothing says that it is never late, so it is counted in too (man sbatch)."""
BYTES_PER_PARAMETER = 14
"""Of a checkpoint: BF16 weights 2, and of the optimizer FP32 masters 4 and two moments 4 + 4."""
UNMEASURED_SECONDS = 600
_TAIL_BYTES = 1 << 22
_LATEST = 20


@dataclass(frozen=True)
class Margin:
    """A margin and where it comes from."""

    seconds: int
    reason: str


def signal_margin(cluster: Cluster, run_dir: Path, model: ModelConfig | None) -> Margin:
    """The setting; or from the run's own saves; or from the checkpoint's size; or ten minutes.

    A margin has room for Slurm's own inexactness, the step that is under way, a save that is still being written, and the
    save itself: 60 s + the longest of the last steps + twice the longest of the last saves.

    Raises:
        UserError: it leaves nothing of the time limit.
    """
    margin = _margin(cluster, run_dir, model)
    if margin.seconds >= seconds_of(cluster.time):
        raise UserError(
            f"the run would be told to save {margin.seconds} s before its end ({margin.reason}), and time {cluster.time} "
            "of the cluster's file is no more than that: give jobs more time, or set signal_margin."
        )
    return margin


def _margin(cluster: Cluster, run_dir: Path, model: ModelConfig | None) -> Margin:
    if cluster.signal_margin is not None:
        return Margin(cluster.signal_margin, "signal_margin of the cluster's file")
    records = read_json_lines(run_dir / "metrics.jsonl", _TAIL_BYTES)
    saves = [float(record["saved"]["seconds"]) for record in records if "saved" in record][-_LATEST:]
    steps = [float(record["seconds"]) for record in records if "loss" in record and "seconds" in record][-_LATEST:]
    if saves:
        save, step = max(saves), max(steps, default=0.0)
        return Margin(
            _rounded(SLURM_SECONDS + step + 2 * save),
            f"measured: the longest of the last {len(saves)} saves took {save:.0f} s, of the last steps {step:.0f} s",
        )
    if model is not None and cluster.checkpoint_gb_per_second is not None:
        parameters = parameter_count(model)
        size = parameters * BYTES_PER_PARAMETER / 1e9
        save = size / cluster.checkpoint_gb_per_second
        return Margin(
            _rounded(SLURM_SECONDS + 2 * save + UNMEASURED_SECONDS / 10),
            f"estimated: {size:,.0f} GB ({parameters / 1e9:.1f} billion parameters × {BYTES_PER_PARAMETER} bytes) at "
            f"{cluster.checkpoint_gb_per_second:g} GB/s",
        )
    return Margin(UNMEASURED_SECONDS, "nothing measured yet, and no checkpoint_gb_per_second in the cluster's file")


def parameter_count(model: ModelConfig) -> int:
    """Parameters of a model: embedding, output layer, and in a layer attention, three matrices of SwiGLU and two norms."""
    hidden, width = model.hidden_size, model.kv_channels
    queries, keys = model.num_attention_heads * width, model.num_query_groups * width
    attention = hidden * (queries + 2 * keys) + queries * hidden + (queries + 2 * keys if model.add_qkv_bias else 0)
    layer = attention + 3 * hidden * model.ffn_hidden_size + 2 * hidden
    embeddings = model.vocab_size * hidden * (1 if model.tie_word_embeddings else 2)
    return embeddings + model.num_layers * layer + hidden


def _rounded(seconds: float) -> int:
    return math.ceil(seconds / 30) * 30
