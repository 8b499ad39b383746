"""The split of the layers, against the model that megatron-core builds."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_native.config.model import ModelConfig
from megatron_native.errors import UserError
from megatron_native.models.families import to_model_config
from megatron_native.training.plan.rank_model import rank_model
from megatron_native.training.plan.stages import chunk_parameters, split_stages
from tests.training.plan.shapes import LLAMA3_70B, LLAMA3_70B_HF, run_of

SMALL_HF = {
    **LLAMA3_70B_HF, "vocab_size": 1001, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 10,
    "num_attention_heads": 8, "num_key_value_heads": 4,
}  # fmt: skip
SMALL = to_model_config(SMALL_HF)
TIED = SMALL.model_copy(update={"tie_word_embeddings": True})
BIASED = SMALL.model_copy(update={"add_qkv_bias": True})
NORMED = SMALL.model_copy(update={"qk_layernorm": True})


@pytest.mark.parametrize(
    "model, world_size, parallel",
    [
        (SMALL, 4, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}),
        (TIED, 2, {"pipeline_model_parallel_size": 1}),
        (BIASED, 4, {"tensor_model_parallel_size": 4, "sequence_parallel": True}),
        (NORMED, 2, {"tensor_model_parallel_size": 2}),
        (SMALL, 4, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 5}),
        (SMALL, 4, {
            "pipeline_model_parallel_size": 4, "account_for_embedding_in_pipeline_split": True,
            "account_for_loss_in_pipeline_split": True,
        }),
        (TIED, 2, {"pipeline_model_parallel_size": 2, "num_layers_in_first_pipeline_stage": 6}),
        (SMALL, 4, {"pipeline_model_parallel_size": 4, "num_layers_in_first_pipeline_stage": 1,
                    "num_layers_in_last_pipeline_stage": 1}),
        (SMALL, 2, {
            "pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2,
            "pipeline_layout": "Et*2|(t*3|)*2,t*2,L",
        }),
    ],
)  # fmt: skip
def test_layers_and_parameters_are_those_of_the_built_model(
    model: ModelConfig, world_size: int, parallel: dict[str, Any]
) -> None:
    run = run_of(parallel=parallel, data={"seq_length": 16})
    for rank, chunks in enumerate(split_stages(run, model)):
        with rank_model(run, model, world_size, rank) as built:
            assert tuple(chunk.layers for chunk in chunks) == built.layers
            assert sum(chunk_parameters(run, model, chunk) for chunk in chunks) == built.parameter_count


def test_the_published_layout_of_llama3_70b() -> None:
    run = run_of(parallel={
        "pipeline_model_parallel_size": 8, "virtual_pipeline_model_parallel_size": 5,
        "pipeline_layout": "Et*2|(t*2|)*34,t*3|(t*2|)*3,tL",
    })  # fmt: skip
    stages = split_stages(run, LLAMA3_70B)
    counts = [[len(chunk.layers) for chunk in chunks] for chunks in stages]
    assert sum(map(sum, counts)) == 80
    assert counts[0] == [2] * 5 and counts[3] == [2, 2, 2, 2, 3] and counts[7] == [2, 2, 2, 2, 1]
    assert stages[0][0].embedding and stages[7][4].output and not stages[7][0].output
    assert stages[1][0].layers == (2, 3) and stages[0][1].layers == (16, 17)


def test_a_layout_that_does_not_fit_the_model() -> None:
    run = run_of(parallel={"pipeline_model_parallel_size": 2, "pipeline_layout": "Et*4|t*4L"})
    with pytest.raises(UserError, match="8 layers, and the model has 10"):
        split_stages(run, SMALL)
    with pytest.raises(UserError, match="10 layers cannot be split"):
        split_stages(run_of(parallel={"pipeline_model_parallel_size": 4}), SMALL)
