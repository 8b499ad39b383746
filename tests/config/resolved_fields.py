"""Every field that megatron-core would see of a run on CUDA, in plain values, with no Transformer Engine needed."""

from __future__ import annotations

import dataclasses
import enum
import functools
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_native.config.environment import cuda_environment
from megatron_native.config.megatron import ddp_fields, optimizer_fields, transformer_fields
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.config.user_buffers import user_buffers

# TransformerConfig refuses this one where Transformer Engine is not installed; nothing else of it depends on the field.
NEEDS_TRANSFORMER_ENGINE = "apply_rope_fusion"


def resolved_fields(run: RunConfig, model: ModelConfig) -> dict[str, dict[str, Any]]:
    """Section → field → value, defaults and derived fields included.

    The sections are `transformer`, `ddp`, `optimizer`, `environment`, `user_buffers` and `batch`; megatron-core's own classes
    fill in what the project does not decide, and what they derive from it.
    """
    fields = transformer_fields(run, model, "cuda", "transformer_engine", has_apex=True)
    transformer = TransformerConfig(**{**fields, NEEDS_TRANSFORMER_ENGINE: False})
    buffers = user_buffers(run, model)
    return {
        "transformer": {**plain(transformer), NEEDS_TRANSFORMER_ENGINE: fields[NEEDS_TRANSFORMER_ENGINE]},
        "ddp": plain(DistributedDataParallelConfig(**ddp_fields(run))),
        "optimizer": plain(OptimizerConfig(**optimizer_fields(run))),
        "environment": dict(cuda_environment(run)),
        "user_buffers": {} if buffers is None else dataclasses.asdict(buffers),
        "batch": {
            "global_batch_size": run.training.global_batch_size,
            "micro_batch_size": run.training.micro_batch_size,
            "seq_length": run.data.seq_length,
            "gc_interval": run.training.gc_interval,
        },
    }


def plain(config: Any) -> dict[str, Any]:
    """Every field of a dataclass as YAML would have it."""
    return {field.name: plain_value(getattr(config, field.name)) for field in dataclasses.fields(config)}


def plain_value(value: Any) -> Any:
    """A value as YAML would have it: types and functions by name, distributions with their deviation."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, functools.partial):
        return f"{value.func.__name__} {value.keywords['std']:.6f}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return getattr(value, "__name__", str(value))
