"""The real model, buffers and optimizer of one rank of a run, without storage: what a plan counts.

Nothing is modelled here. The trainer's own builder makes megatron-core's model chunks, their data-parallel wrappers with the
padded buffers, and the optimizer with this rank's shards, on the meta device under a fake process group.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from megatron_native.config.megatron import PlatformKind, megatron_configs, transformer_fields
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.platform.fake import fake_platform

if TYPE_CHECKING:
    from megatron_native.training.model import TrainableModel


@dataclass
class RankModel:
    """One rank of a run, built on the meta device; it lives as long as the context that made it."""

    rank: int
    pipeline_rank: int
    layers: tuple[tuple[int, ...], ...]
    """Transformer layers of each model chunk, counted from 0 over the whole model."""
    fields: dict[str, Any]
    """megatron-core's settings that it is built with, by name."""
    trainable: TrainableModel
    device: torch.device

    @property
    def parameter_count(self) -> int:
        """Parameters of the rank, exactly; an output layer tied to an embedding of the same rank is the embedding."""
        return sum(parameter.numel() for module in self.trainable.modules for parameter in module.parameters())


def rank_of_stage(run: RunConfig, world_size: int, pipeline_rank: int) -> int:
    """The first rank of a pipeline stage: stages are the outermost order of megatron-core's ranks."""
    return pipeline_rank * (world_size // run.parallel.pipeline_model_parallel_size)


@contextmanager
def rank_model(
    run: RunConfig, model: ModelConfig, world_size: int, pipeline_rank: int, platform: PlatformKind = "cpu"
) -> Iterator[RankModel]:
    """Build the first rank of a pipeline stage; the others of its stage hold as much.

    Layers are of the plain-torch spec: parameters, buffers and optimizer have the same shapes under Transformer Engine's. The
    layout must have passed `config.layout.check_layout`.

    Args:
        run: the run.
        model: the model's shape.
        world_size: processes.
        pipeline_rank: the stage.
        platform: whose fusions the model is built with; they change what a forward pass keeps, and no parameter.
    """
    rank = rank_of_stage(run, world_size, pipeline_rank)
    built = as_built(run)
    if torch.cuda.is_available():
        # megatron-core compiles functions when it is imported, as a run in this process would want them.
        importlib.import_module("megatron_native.training.model")
    with fake_platform(rank, world_size) as device:
        from megatron.core import tensor_parallel

        from megatron_native.training.model import build_trainable_model, initialize_parallel_state

        initialize_parallel_state(built)
        tensor_parallel.model_parallel_cuda_manual_seed(built.seed)
        configs = megatron_configs(built, model, platform, "torch")
        trainable = build_trainable_model(built, model, configs, device)
        modules = trainable.modules
        layers = tuple(tuple(layer.layer_number - 1 for layer in module.decoder.layers) for module in modules)
        fields = transformer_fields(built, model, platform, "torch")
        yield RankModel(rank, pipeline_rank, layers, fields, trainable, device)


def as_built(run: RunConfig) -> RunConfig:
    """The run as it can be built and run on meta; no shape of a parameter, a buffer or an optimizer's share changes.

    FP8 becomes BF16. Weights are not gathered in hooks of the forward pass (`overlap_grad_reduce`, which decides how buffers
    are cut and padded, stays). Context parallelism becomes data parallelism, whose group shards the optimizer in either
    case; a micro-batch is given with a rank's share of every sequence instead. A norm's recomputation, which Transformer
    Engine's fused norms ignore and plain torch can't do, is left out.
    """
    parallel = run.parallel.model_copy(
        update={"overlap_param_gather": False, "context_parallel_size": 1, "tp_comm_overlap": False}
    )
    modules = [module for module in run.training.recompute_modules if module != "layernorm"]
    training = run.training.model_copy(
        update={
            "precision": "bf16" if run.training.precision == "fp8" else run.training.precision,
            "recompute": run.training.recompute if modules or run.training.recompute != "selective" else "none",
            "recompute_modules": modules,
        }
    )
    return run.model_copy(update={"parallel": parallel, "training": training})
