"""What a run's configuration becomes in megatron-core's, and what differs between CPU and CUDA."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_native.config.layout import check_layout
from megatron_native.config.megatron import transformer_fields
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError

MODEL = ModelConfig(
    family="llama", num_layers=32, hidden_size=4096, ffn_hidden_size=14336, num_attention_heads=32, num_query_groups=8,
    kv_channels=128, vocab_size=128256, max_position_embeddings=8192, norm_epsilon=1e-5, rotary_base=500000.0,
)  # fmt: skip


def run_of(**sections: Any) -> RunConfig:
    raw = {
        "run_dir": "runs/x", "model": {"checkpoint": "c"}, "data": {"blend": [{"prefix": "p"}]},
        "training": {"steps": 10, "global_batch_size": 64},
    }  # fmt: skip
    return RunConfig.model_validate({**raw, **sections})


def test_the_platforms_differ_in_the_named_fields_only() -> None:
    run = run_of(parallel={"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2})
    cpu, cuda = (
        transformer_fields(run, MODEL, kind, "transformer_engine", has_apex=True) for kind in ("cpu", "cuda")
    )
    assert cpu.keys() == cuda.keys()
    assert {name for name in cpu if cpu[name] != cuda[name]} == {
        "apply_rope_fusion", "bias_dropout_fusion", "bias_activation_fusion", "cross_entropy_loss_fusion",
        "gradient_accumulation_fusion", "deallocate_pipeline_outputs",
    }  # fmt: skip


def test_megatron_core_defaults_that_are_wrong_for_llama_are_not_left_standing() -> None:
    fields = transformer_fields(run_of(), MODEL, "cuda", "transformer_engine")
    expected = {
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "add_bias_linear": False, "normalization": "RMSNorm",
        "gated_linear_unit": True, "layernorm_epsilon": 1e-5, "num_query_groups": 8, "kv_channels": 128,
        "calculate_per_token_loss": True, "cross_entropy_fusion_impl": "native", "apply_rope_fusion": True,
        "cross_entropy_loss_fusion": True, "deallocate_pipeline_outputs": True,
    }  # fmt: skip
    assert {name: fields[name] for name in expected} == expected


@pytest.mark.parametrize(("virtual", "overlap"), [(None, False), (2, True)])
def test_the_interleaved_schedule_sends_unbatched(virtual: int | None, overlap: bool) -> None:
    run = run_of(parallel={"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": virtual})
    for kind in ("cpu", "cuda"):
        fields = transformer_fields(run, MODEL, kind, "torch")
        assert (fields["overlap_p2p_comm"], fields["batch_p2p_comm"]) == (overlap, not overlap)


@pytest.mark.parametrize(
    ("parallel", "world_size", "said"),
    [
        ({"tensor_model_parallel_size": 16}, 16, "use one of 1, 2, 4, 8"),
        ({"pipeline_model_parallel_size": 3}, 3, "their product must be one of 1, 2, 4, 8, 16, 32"),
        ({"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 3}, 2, "32 layers cannot be split"),
        ({"virtual_pipeline_model_parallel_size": 2}, 1, "needs pipeline_model_parallel_size above 1"),
        ({"tensor_model_parallel_size": 8}, 12, "start a multiple of 8"),
        ({}, 48, "use a multiple of 48"),
        ({"overlap_param_gather": True}, 1, "needs overlap_grad_reduce"),
    ],
)
def test_impossible_layouts_are_refused_with_what_would_be_right(
    parallel: dict[str, Any], world_size: int, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_layout(run_of(parallel=parallel), MODEL, world_size)
    assert said in str(caught.value)


def test_a_possible_layout_is_let_through() -> None:
    check_layout(run_of(parallel={"tensor_model_parallel_size": 8, "pipeline_model_parallel_size": 4}), MODEL, 64)


def test_model_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        MODEL.num_layers = 3  # type: ignore[misc]
