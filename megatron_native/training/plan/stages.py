"""Which layers, and whether the embedding and the output layer, stand in which model chunk of which pipeline rank.

The split is worked out as megatron-core does it, without building anything; tests compare it with what is built.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError


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
    parallel = run.parallel
    ranks = parallel.pipeline_model_parallel_size
    if parallel.pipeline_layout is not None:
        stages = expand_layout(parallel.pipeline_layout)
        if len(stages) % ranks:
            raise UserError(
                f"parallel.pipeline_layout has {len(stages)} stages, no multiple of "
                f"parallel.pipeline_model_parallel_size {ranks}: change one of them."
            )
        counts = [stage.count("t") for stage in stages]
        if sum(counts) != model.num_layers:
            raise UserError(
                f"parallel.pipeline_layout places {sum(counts)} layers, and the model has {model.num_layers}: change "
                "the layout."
            )
        virtual = len(stages) // ranks
    else:
        virtual = parallel.virtual_pipeline_model_parallel_size or 1
        counts = _even_counts(run, model, ranks, virtual)
    offsets = [sum(counts[:stage]) for stage in range(len(counts))]
    last = len(counts) - 1
    return [
        [
            Chunk(tuple(range(offsets[stage], offsets[stage] + counts[stage])), stage == 0, stage == last)
            for stage in range(rank, len(counts), ranks)
        ]
        for rank in range(ranks)
    ]


def expand_layout(layout: str) -> list[str]:
    """megatron-core's notation spelled out, one string of `E`, `t`, `L` for each stage: `Et*2|(t|)*2,tL` → Ett, t, t, tL."""
    text = layout.replace(",", "").replace(" ", "")
    while True:
        shorter = re.sub(r"\(([^()]*)\)\*(\d+)", lambda found: found[1] * int(found[2]), text)
        if shorter == text:
            break
        text = shorter
    text = re.sub(r"(\w)\*(\d+)", lambda found: found[1] * int(found[2]), text)
    return text.split("|")


def _even_counts(run: RunConfig, model: ModelConfig, ranks: int, virtual: int) -> list[int]:
    """Layers of every stage, virtual ones after one another."""
    parallel = run.parallel
    first, last = parallel.num_layers_in_first_pipeline_stage, parallel.num_layers_in_last_pipeline_stage
    embedding, loss = parallel.account_for_embedding_in_pipeline_split, parallel.account_for_loss_in_pipeline_split
    per_rank: list[float] = [(model.num_layers + embedding + loss) / ranks] * ranks
    if first is not None or last is not None:
        others = ranks - (first is not None) - (last is not None)
        left = model.num_layers - (first or 0) - (last or 0)
        per_rank = [left / others if others else 0.0] * ranks
        if first is not None:
            per_rank[0] = first
        if last is not None:
            per_rank[-1] = last
    counts = [per_rank[stage % ranks] / virtual for stage in range(ranks * virtual)]
    counts[0] -= embedding
    counts[-1] -= loss
    if any(count != int(count) or count < 0 for count in counts) or sum(counts) != model.num_layers:
        raise UserError(
            f"{model.num_layers} layers cannot be split over parallel.pipeline_model_parallel_size {ranks}"
            + (f" × virtual_pipeline_model_parallel_size {virtual}" if virtual > 1 else "")
            + " with the layers of the first and last stage that are set: change one of these numbers."
        )
    return [int(count) for count in counts]


def chunk_parameters(run: RunConfig, model: ModelConfig, chunk: Chunk) -> int:
    """Parameters of a chunk on one tensor-parallel rank."""
    tp = run.parallel.tensor_model_parallel_size
    heads = (model.num_attention_heads + 2 * model.num_query_groups) * model.kv_channels
    width = model.num_attention_heads * model.kv_channels
    matrices = model.hidden_size * (heads + width + 3 * model.ffn_hidden_size)
    layer = matrices // tp + 2 * model.hidden_size + (heads // tp if model.add_qkv_bias else 0)
    rows = -(-model.vocab_size // tp) * model.hidden_size
    tied_here = chunk.embedding and chunk.output and model.tie_word_embeddings
    total = len(chunk.layers) * layer + (rows if chunk.embedding else 0)
    return total + ((0 if tied_here else rows) + model.hidden_size if chunk.output else 0)
