"""Which layers, and whether the embedding and the output layer, stand in which model chunk of which pipeline rank.

The split is worked out as megatron-core does it, without building anything; tests compare it with what is built.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_native.config.model import ModelConfig
from megatron_native.config.pipeline_layout import layers_of_chunks, pipeline_findings
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.training.plan.flops import layer_matrix_parameters


@dataclass(frozen=True)
class Chunk:
    """One model chunk of one pipeline rank."""

    layers: tuple[int, ...]
    """Counted from 0 over the whole model."""
    embedding: bool
    output: bool
    """Final norm, output layer and loss."""


def split_stages(run: RunConfig, model: ModelConfig) -> list[list[Chunk]]:
    """Chunks by pipeline rank and, in it, by virtual stage: `stages[pipeline_rank][chunk]`.

    Raises:
        UserError: the layers cannot be split so.
    """
    ranks = run.parallel.pipeline_model_parallel_size
    finding = next(pipeline_findings(run.parallel, model), None)
    if finding is not None:
        raise UserError(f"impossible layout: {finding}.")
    by_rank = layers_of_chunks(run.parallel, model.num_layers)
    counts = [by_rank[rank][virtual] for virtual in range(len(by_rank[0])) for rank in range(ranks)]
    offsets = [sum(counts[:stage]) for stage in range(len(counts))]
    last = len(counts) - 1
    return [
        [
            Chunk(tuple(range(offsets[stage], offsets[stage] + counts[stage])), stage == 0, stage == last)
            for stage in range(rank, len(counts), ranks)
        ]
        for rank in range(ranks)
    ]


def chunk_parameters(run: RunConfig, model: ModelConfig, chunk: Chunk) -> int:
    """Parameters of a chunk on one tensor-parallel rank."""
    tp = run.parallel.tensor_model_parallel_size
    heads = (model.num_attention_heads + 2 * model.num_query_groups) * model.kv_channels
    layer = layer_matrix_parameters(model) // tp + 2 * model.hidden_size
    layer += (heads // tp if model.add_qkv_bias else 0) + (2 * model.kv_channels if model.qk_layernorm else 0)
    rows = -(-model.vocab_size // tp) * model.hidden_size
    tied_here = chunk.embedding and chunk.output and model.tie_word_embeddings
    total = len(chunk.layers) * layer + (rows if chunk.embedding else 0)
    return total + ((0 if tied_here else rows) + model.hidden_size if chunk.output else 0)
