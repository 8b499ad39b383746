"""How large a run's checkpoints become, and how long writing one may take.

What `training/checkpoints.py` writes: every weight once, in the run's precision, and with the optimizer an FP32 master
weight and two moments for each; replicas are written by one rank only, buffers without their padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median

from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.models.families import model_pieces
from megatron_native.models.weight_map import VOCABULARY_KEYS
from megatron_native.training.line_file import read_json_lines

ASSUMED_GB_S = 10.0
"""GB/s of a parallel file system, over all ranks: a choice."""
SIGNAL_SECONDS = 60
"""Slurm may signal so much earlier than asked; nothing says that it is never late, so it is counted in too (man sbatch)."""
METRICS_TAIL_BYTES = 1 << 22
"""Of a run's `metrics.jsonl`, what is looked through for its last saves and steps."""
RANDOM_STATE_BYTES = 35_400
"""Random generators of one tensor- and pipeline-parallel rank, as pickled: Python's, numpy's, torch's, megatron-core's."""


@dataclass(frozen=True)
class CheckpointSize:
    """Bytes of one checkpoint on disk, all ranks together."""

    parameters: int
    """Weights of the model, vocabulary padding included."""
    weights: int
    optimizer: int
    """Master weights and moments; 0 where `checkpointing.save_optimizer` is off."""
    random_states: int

    @property
    def total(self) -> int:
        """All of it; tokenizer, configuration and index of the tensors come on top, a few megabytes."""
        return self.weights + self.optimizer + self.random_states

    def seconds(self, bytes_per_second: float) -> float:
        """From the beginning of a save until it is whole, at a speed of the file system for all ranks together."""
        return self.total / bytes_per_second


@dataclass(frozen=True)
class Saving:
    """A checkpoint of the run."""

    bytes: int
    gb_a_second: float
    """To the file system, all ranks together."""
    rate_is: str
    """Where the rate is from."""

    @property
    def seconds(self) -> float:
        """Estimate of writing it."""
        return self.bytes / (self.gb_a_second * 1e9)


def checkpoint_size(run: RunConfig, model: ModelConfig) -> CheckpointSize:
    """The size of each of a run's checkpoints."""
    parallel, fp32 = run.parallel, run.training.precision == "fp32"
    parameters = stored_parameters(model, parallel.tensor_model_parallel_size)
    # FP32 weights are their own masters, which only the sharded optimizer writes down a second time.
    states = 2 if fp32 and not parallel.use_distributed_optimizer else 3
    with_optimizer = run.checkpointing.save_optimizer
    ranks = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    return CheckpointSize(
        parameters=parameters,
        weights=parameters * (4 if fp32 else 2),
        optimizer=parameters * 4 * states if with_optimizer else 0,
        random_states=RANDOM_STATE_BYTES * ranks if with_optimizer else 0,
    )


def stop_seconds(save_seconds: float, step_seconds: float) -> float:
    """How long before its end a job has to be told to stop.

    Room for Slurm's own inexactness, the step that is under way, a save that is still being written, and the save itself.
    """
    return SIGNAL_SECONDS + step_seconds + 2 * save_seconds


def stored_parameters(model: ModelConfig, tensor_parallel: int) -> int:
    """Weights in a checkpoint's global tensors: tied ones once, the vocabulary as padded for tensor parallelism."""
    rows = -(-model.vocab_size // tensor_parallel) * tensor_parallel
    total = 0
    for piece in model_pieces(model):
        shape = (rows, *piece.shape[1:]) if piece.key in VOCABULARY_KEYS else piece.shape
        total += prod(shape)
    return total


def speed_of_saves(metrics: Path) -> float | None:
    """Bytes a second of the last saves that a run has noted in its `metrics.jsonl`, in the middle; None where there is none."""
    saves = [record["saved"] for record in read_json_lines(metrics, METRICS_TAIL_BYTES) if "saved" in record]
    speeds = [save["bytes"] / save["seconds"] for save in saves if save["bytes"] and save["seconds"] > 0]
    return median(speeds) if speeds else None
