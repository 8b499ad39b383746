"""The trainable model of one process: chunks wrapped for mixed precision and data parallelism, with their optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer.optimizer_config import ParamKey
from megatron.core.transformer.module import Float16Module

from megatron_native.config.megatron import MegatronConfigs
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.models import fp8_layers
from megatron_native.models.gpt import build_model_chunks


@dataclass
class TrainableModel:
    """Model chunks as the schedule wants them, and the optimizer over them."""

    chunks: list[Any]
    """DistributedDataParallel around (Float16Module around) LanguageModel, one per virtual stage."""
    optimizer: Any
    configs: MegatronConfigs

    @property
    def modules(self) -> list[Any]:
        """The chunks without their wrappers."""
        return [unwrapped(chunk) for chunk in self.chunks]


def unwrapped(chunk: Any) -> Any:
    """The LanguageModel inside its wrappers."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def initialize_parallel_state(run: RunConfig) -> None:
    """Make megatron-core's process groups for the run's layout."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=run.parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=run.parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=run.parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=run.parallel.context_parallel_size,
        num_distributed_optimizer_instances=run.parallel.num_distributed_optimizer_instances,
    )


def build_trainable_model(run: RunConfig, model: ModelConfig, configs: MegatronConfigs, device: Any) -> TrainableModel:
    """Build chunks, wrappers and optimizer, and connect them to the schedule's hooks.

    Weights are random until a checkpoint is loaded; `optimizer.reload_model_params()` must follow a load of weights.
    """
    config = configs.transformer
    fp8_layers.install(config, run.fp8.bf16_layers)
    chunks: list[Any] = list(build_model_chunks(config, model, configs.layer_spec, run.data.seq_length))
    fp8_layers.set_bf16_layers(config, chunks, run.fp8.bf16_layers)
    for chunk in chunks:
        chunk.to(device)
    if config.bf16:
        chunks = [Float16Module(config, chunk) for chunk in chunks]
    chunks = [
        DistributedDataParallel(config, configs.ddp, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    for chunk in chunks:
        chunk.broadcast_params()
    optimizer = get_megatron_optimizer(configs.optimizer, chunks, _parameter_groups(run, configs))
    _connect(chunks, optimizer, configs)
    return TrainableModel(chunks, optimizer, configs)


def _parameter_groups(run: RunConfig, configs: MegatronConfigs) -> Any:
    """megatron-core's own settings of parameters, and the learning rate of embedding and output layer."""
    settings = get_standard_config_overrides(configs.optimizer)
    if run.optimizer.embedding_lr_multiplier != 1.0:
        key = ParamKey(attr="is_embedding_or_output_parameter")
        multiplier: Any = {"lr_mult": run.optimizer.embedding_lr_multiplier}
        settings[key] = multiplier
    return settings


def _connect(chunks: Sequence[Any], optimizer: Any, configs: MegatronConfigs) -> None:
    """Give the schedule the trainer's hooks: gradient finalisation, loss scaling, overlap."""
    config = configs.transformer
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    if configs.ddp.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in chunks]
        config.no_sync_func = no_sync[0] if len(no_sync) == 1 else no_sync
        if config.virtual_pipeline_model_parallel_size:
            config.grad_sync_func = [chunk.start_grad_sync for chunk in chunks]
    else:
        config.no_sync_func = nullcontext
    if configs.ddp.overlap_param_gather:
        param_sync = [chunk.start_param_sync for chunk in chunks]
        config.param_sync_func = param_sync[0] if len(param_sync) == 1 else param_sync
