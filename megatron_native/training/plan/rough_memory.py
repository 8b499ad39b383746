"""The memory of a rank by counting alone, nothing built: a lower bound that tells quickly which layouts can't fit."""

from __future__ import annotations

from megatron_native.config.layout import data_parallel_size
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.training.plan.communication import groups_of
from megatron_native.training.plan.memory import largest_phase
from megatron_native.training.plan.schedule import fullest_moment, rank_order
from megatron_native.training.plan.stages import chunk_parameters, split_stages
from megatron_native.training.plan.transformer_engine import TransformerEngineRules


def rough_peak(run: RunConfig, model: ModelConfig, world_size: int) -> int:
    """Bytes that the fullest stage needs at least: parameters and kept activations counted, nothing built."""
    parallel, phase, fp32 = run.parallel, largest_phase(run), run.training.precision == "fp32"
    stages, rules = split_stages(run, model), TransformerEngineRules(run, model, phase)
    shards = groups_of(run, world_size).data.size if parallel.use_distributed_optimizer else 1
    # FP32 weights are their own masters
    weight, state = (4, 8) if fp32 else (2, 12)
    gradient = 4 if run.optimizer.grad_reduce_in_fp32 or fp32 else 2
    micro_batches = phase.global_batch_size // (phase.micro_batch_size * data_parallel_size(run, world_size))
    most = 0
    for rank in {0, len(stages) - 1}:
        chunks = stages[rank]
        parameters = sum(chunk_parameters(run, model, chunk) for chunk in chunks)
        kept = [
            sum(
                sum(rules.layer(number, position, len(chunk.layers)).kept.values())
                for position, number in enumerate(chunk.layers)
            )
            for chunk in chunks
        ]
        in_flight, _ = fullest_moment(rank_order(len(stages), rank, len(chunks), micro_batches), kept)
        held = int(parameters * (weight + gradient + state / shards))
        most = max(most, held + sum(count * size for count, size in zip(in_flight, kept)))
    return most
