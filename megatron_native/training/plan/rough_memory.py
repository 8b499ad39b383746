"""The memory of a rank by counting alone, nothing built: a lower bound that tells quickly which layouts can't fit."""

from __future__ import annotations

from megatron_native.config.layout import data_parallel_size
from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import resolve_phases
from megatron_native.config.run import RunConfig
from megatron_native.training.plan.schedule import in_flight, rank_order
from megatron_native.training.plan.stages import chunk_parameters, split_stages
from megatron_native.training.plan.transformer_engine import TransformerEngineRules


def rough_peak(run: RunConfig, model: ModelConfig, world_size: int) -> int:
    """Bytes that the fullest stage needs at least: parameters and kept activations counted, nothing built."""
    parallel, phase = run.parallel, resolve_phases(run)[0]
    stages, rules = split_stages(run, model), TransformerEngineRules(run, model, phase)
    data = data_parallel_size(run, world_size)
    shards = data * parallel.context_parallel_size if parallel.use_distributed_optimizer else 1
    gradient = 4 if run.optimizer.grad_reduce_in_fp32 or run.training.precision == "fp32" else 2
    micro_batches = phase.global_batch_size // (phase.micro_batch_size * data)
    most = 0
    for rank in {0, len(stages) - 1}:
        chunks = stages[rank]
        parameters = sum(chunk_parameters(run, model, chunk) for chunk in chunks)
        layers = [
            sum(rules.layer(number, position, len(chunk.layers)).kept.values())
            for chunk in chunks for position, number in enumerate(chunk.layers)
        ]  # fmt: skip
        passes = in_flight(rank_order(len(stages), rank, len(chunks), micro_batches))
        most = max(most, int(parameters * (2 + gradient + 12 / shards) + sum(layers) / len(chunks) * passes))
    return most
