"""How layers are put on pipeline stages: against megatron-core's own parser and its own count of layers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from megatron_native.config.parallel import ParallelSection
from megatron_native.config.pipeline_layout import layers_of_chunks, parse_pipeline_layout, pipeline_findings
from megatron_native.errors import UserError
from tests.config.models import LLAMA3_8B, LLAMA3_70B

PUBLISHED = "Et*2|(t*2|)*34,t*3|(t*2|)*3,tL"


def section(pp: int, vpp: int | None = None, **settings: Any) -> ParallelSection:
    return ParallelSection.model_validate(
        {"pipeline_model_parallel_size": pp, "virtual_pipeline_model_parallel_size": vpp, **settings}
    )


@pytest.mark.parametrize("text", [PUBLISHED, "Ettt|(tt|)*29,t|L", "E|(tt|t)*2|L", "Et*3,L", "E|t|t|L"])
def test_the_notation_is_megatrons(text: str) -> None:
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    letters = {"embedding": "E", "decoder": "t", "loss": "L"}
    core = PipelineParallelLayerLayout.parse_str_to_list(text)
    assert parse_pipeline_layout(text) == ["".join(letters[layer.name] for layer in chunk) for chunk in core]


@pytest.mark.parametrize(("text", "sign"), [("Et|xL", "x"), ("E(t|*3L", r"\("), ("Em|tL", "m")])
def test_a_wrong_sign_is_named(text: str, sign: str) -> None:
    with pytest.raises(UserError, match=f"has '{sign}' where none can be"):
        parse_pipeline_layout(text)


@pytest.mark.parametrize(
    "parallel",
    [
        section(8, 5, pipeline_layout=PUBLISHED),
        section(4),
        section(4, 5),
        section(4, num_layers_in_first_pipeline_stage=17, num_layers_in_last_pipeline_stage=15),
        section(4, 4, num_layers_in_first_pipeline_stage=12, num_layers_in_last_pipeline_stage=20),
        section(3, num_layers_in_last_pipeline_stage=20),
        section(2, num_layers_in_first_pipeline_stage=39),
        section(9, account_for_embedding_in_pipeline_split=True),
        section(2, account_for_embedding_in_pipeline_split=True, account_for_loss_in_pipeline_split=True),
        section(2, 41, account_for_embedding_in_pipeline_split=True, account_for_loss_in_pipeline_split=True),
    ],
)  # fmt: skip
def test_layers_are_counted_as_megatron_core_counts_them(parallel: ParallelSection) -> None:
    from megatron.core.transformer.enums import LayerType
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig

    findings = list(pipeline_findings(parallel, LLAMA3_70B))
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    fields: dict[str, Any] = {
        "pipeline_model_parallel_size": pp, "virtual_pipeline_model_parallel_size": vpp, "pipeline_dtype": "bf16",
        "pipeline_model_parallel_layout": parallel.pipeline_layout,
        "num_layers_in_first_pipeline_stage": parallel.num_layers_in_first_pipeline_stage,
        "num_layers_in_last_pipeline_stage": parallel.num_layers_in_last_pipeline_stage,
        "account_for_embedding_in_pipeline_split": parallel.account_for_embedding_in_pipeline_split,
        "account_for_loss_in_pipeline_split": parallel.account_for_loss_in_pipeline_split,
    }  # fmt: skip
    config = TransformerConfig(num_layers=80, hidden_size=64, num_attention_heads=4, **fields)
    by_hand: Any = config.pipeline_model_parallel_layout

    def layers(stage: int, virtual: int) -> int:
        if by_hand is not None:
            return int(by_hand.layout[stage][virtual].count(LayerType.decoder))
        return get_num_layers_to_build(config, vp_stage=virtual if vpp else None, pp_rank=stage)

    core = [[layers(stage, virtual) for virtual in range(vpp or 1)] for stage in range(pp)]
    assert findings == []
    assert layers_of_chunks(parallel, 80) == core
    assert sum(map(sum, core)) == 80


def test_the_published_layout_gives_the_stage_of_the_embedding_and_of_the_loss_less() -> None:
    chunks = layers_of_chunks(section(8, 5, pipeline_layout=PUBLISHED), 80)
    assert [sum(stage) for stage in chunks] == [10, 10, 10, 11, 10, 10, 10, 9]


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        (section(8, 5, pipeline_layout="Et*2|(t*2|)*34,t*3|(t*2|)*3,L"), "has 79 layers, and the model has 80"),
        (section(8, 4, pipeline_layout=PUBLISHED), "has 40 chunks, and .* makes 32"),
        (section(2, pipeline_layout="t*80|EL"), "must begin with the embedding E"),
        (section(2, pipeline_layout="Et*80L|"), "must end|has an empty chunk"),
        (section(3, pipeline_layout="Et*40||t*40,L"), "has an empty chunk"),
        (section(2, pipeline_layout="Et*40|t*40,L", num_layers_in_first_pipeline_stage=40), "says it again: keep one"),
        (section(2, pipeline_layout="Et*40|k*40,L"), "has 'k' where none can be"),
        (section(4, num_layers_in_first_pipeline_stage=20, account_for_loss_in_pipeline_split=True), "two ways"),
        (section(4, num_layers_in_first_pipeline_stage=19), "leave 61 of 80 layers for the 3 other stages"),
        (section(2, num_layers_in_first_pipeline_stage=40, num_layers_in_last_pipeline_stage=30), "leave 10 of 80"),
        (section(2, 4, num_layers_in_first_pipeline_stage=42), "42 is no multiple of virtual_pipeline"),
        (section(1, num_layers_in_first_pipeline_stage=40), "needs pipeline_model_parallel_size above 1"),
        (section(4, account_for_loss_in_pipeline_split=True), r"\(with account_for_loss_in_pipeline_split: 81\)"),
        (section(4, overlap_p2p_comm=True), "overlap_p2p_comm needs the interleaved schedule"),
        (section(2, 2, overlap_p2p_comm=False), "would take gradients for activations"),
        (section(1, defer_embedding_wgrad_compute=True), "pipeline_model_parallel_size is 1: switch it off"),
    ],
)  # fmt: skip
def test_what_can_not_be_split_so_is_named_with_what_would_be_right(parallel: ParallelSection, said: str) -> None:
    findings = list(pipeline_findings(parallel, LLAMA3_70B))
    assert any(re.search(said, finding) for finding in findings), findings


def test_an_uneven_split_lets_layers_be_that_no_even_one_takes() -> None:
    assert list(pipeline_findings(section(3), LLAMA3_8B))
    assert not list(pipeline_findings(section(3, num_layers_in_first_pipeline_stage=10), LLAMA3_8B))
    assert not list(pipeline_findings(section(3, account_for_loss_in_pipeline_split=True), LLAMA3_8B))
