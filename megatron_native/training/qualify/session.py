"""Models and short runs inside one process group: built, looked at, and taken down again, one after another."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.platform import Platform
from megatron_native.training.batches import MicroBatch, pack, positions_of
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.masters import masters_of
from megatron_native.training.model import TrainableModel
from megatron_native.training.parameter_names import named_parameters
from megatron_native.training.trainer import Trainer


@dataclass(frozen=True)
class Built:
    """A model with the weights of its run's checkpoint, as the trainer builds it."""

    run: RunConfig
    shape: ModelConfig
    model: TrainableModel
    platform: Platform


@contextlib.contextmanager
def built(run: RunConfig, platform: Platform) -> Iterator[Built]:
    """Build what `run` would train, with its checkpoint's weights; process groups and memory are given back."""
    try:
        with _quiet(run, platform):
            trainer = Trainer(run, platform)
        yield Built(run, trainer.model_config, trainer.model, platform)
    finally:
        leave_groups()


def train(run: RunConfig, platform: Platform) -> dict[int, float]:
    """Train `run` to its end, quietly; the loss of every step by its number, on every rank."""
    try:
        with _quiet(run, platform):
            Trainer(run, platform).fit()
        dist.barrier()
        return losses_of(run.run_dir)
    finally:
        leave_groups()


@contextlib.contextmanager
def _quiet(run: RunConfig, platform: Platform) -> Iterator[None]:
    """What the trainer says goes to a file of its run."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    console = run.run_dir / f"console.{platform.rank}.txt"
    with console.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def losses_of(run_dir: Path) -> dict[int, float]:
    """The loss of every step that a run's `metrics.jsonl` has."""
    records = read_json_lines(run_dir / "metrics.jsonl")
    return {int(record["step"]): float(record["loss"]) for record in records if "loss" in record}


def leave_groups() -> None:
    """Take down every process group but that of all processes, and give memory back."""
    parallel_state.destroy_model_parallel()
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
    gc.collect()
    torch.cuda.empty_cache()


def random_micro_batches(one: Built, count: int) -> list[MicroBatch]:
    """`count` micro-batches of random tokens for this rank, in documents where the run keeps them apart.

    Ranks of one data-parallel copy get the same, copies different ones.
    """
    length, device = one.run.data.seq_length, one.platform.device
    generator = np.random.default_rng([one.run.seed, parallel_state.get_data_parallel_rank()])
    batches = []
    for _ in range(count):
        ids = torch.from_numpy(generator.integers(0, one.shape.vocab_size, (1, length + 1))).to(device)
        tokens, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        batch = MicroBatch(tokens, labels, torch.ones(tokens.shape, device=device), positions_of(tokens))
        parts = [length * 3 // 8, length - length * 3 // 8]
        batches.append(pack(batch, np.array(parts)) if one.run.data.document_boundaries else batch)
    return batches


def gradients_of(model: TrainableModel) -> dict[str, Tensor]:
    """Copies of the gradients that this rank's optimizer would use, by parameter: shards with a distributed optimizer.

    `compute_gradients` comes before.
    """
    weights = named_parameters(model.modules)
    names = {id(weight): name for weight, name in weights.items()}
    names |= {id(master): weights[weight] for weight, _, master in masters_of(model.optimizer)}
    found = {}
    for inner in getattr(model.optimizer, "chained_optimizers", [model.optimizer]):
        for group in inner.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    found[names[id(parameter)]] = parameter.grad.detach().float().cpu().clone()
    return found


@dataclass(frozen=True)
class GradientComparison:
    """Two sets of gradients, over all ranks."""

    worst: float
    """Largest relative error (by norms) of a parameter's gradient."""
    parameter: str
    """Whose it is."""
    cosine: float
    """Of all gradients as one vector."""


_NEGLIGIBLE = 1e-3
"""A gradient with less than this share of the whole norm is compared with that much: some vanish by nature."""


def compare_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> GradientComparison:
    """Compare this rank's gradients with others of the same model and layout. Collective."""
    sums = {
        name: [
            float((found[name] - other).double().square().sum()),
            float(other.double().square().sum()),
            float((found[name].double() * other.double()).sum()),
            float(found[name].double().square().sum()),
        ]
        for name, other in expected.items()
    }
    gathered: list[dict[str, list[float]] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, sums)
    total: dict[str, list[float]] = {}
    for part in gathered:
        for name, values in (part or {}).items():
            total[name] = [one + other for one, other in zip(total.get(name, [0.0] * 4), values)]
    whole = math.fsum(values[1] for values in total.values())
    if not whole > 0:
        return GradientComparison(math.nan, "all, which are zero", math.nan)
    relative = {name: math.sqrt(values[0] / max(values[1], _NEGLIGIBLE**2 * whole)) for name, values in total.items()}
    worst = max(relative, key=lambda name: math.inf if math.isnan(relative[name]) else relative[name])
    cosine = math.fsum(values[2] for values in total.values()) / math.sqrt(
        whole * max(math.fsum(values[3] for values in total.values()), 1e-300)
    )
    return GradientComparison(relative[worst], worst, cosine)
