"""What a run's configuration becomes in megatron-core's, and what differs between CPU and CUDA."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_native.config.environment import cuda_environment
from megatron_native.config.layout import check_layout
from megatron_native.config.megatron import ddp_fields, megatron_configs, optimizer_fields, transformer_fields
from megatron_native.config.user_buffers import user_buffers
from megatron_native.errors import UserError
from tests.config.models import LLAMA3_8B as MODEL
from tests.config.models import run_of


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


def test_megatron_cores_weight_decay_is_not_left_standing() -> None:
    fields = optimizer_fields(run_of())
    assert (fields["weight_decay"], fields["adam_beta2"], ddp_fields(run_of())["grad_reduce_in_fp32"]) == (0.1, 0.95, True)


@pytest.mark.parametrize("param_gather", [False, True])
def test_both_switches_of_weights_in_fp8_are_set_together(param_gather: bool) -> None:
    run = run_of(training={"steps": 1, "global_batch_size": 8, "precision": "fp8"}, fp8={"param_gather": param_gather})
    assert transformer_fields(run, MODEL, "cuda", "transformer_engine")["fp8_param"] is param_gather
    assert ddp_fields(run)["fp8_param_gather"] is param_gather
    # Transformer Engine rounds a weight as it makes it, which it can't on the CPU.
    fields = transformer_fields(run, MODEL, "cuda", "transformer_engine")
    assert fields["use_cpu_initialization"] is not param_gather
    assert transformer_fields(run, MODEL, "cpu", "torch")["use_cpu_initialization"]
    other = run_of(fp8={"param_gather": param_gather})  # the section is not read without FP8
    assert transformer_fields(other, MODEL, "cuda", "transformer_engine")["use_cpu_initialization"]
    assert ddp_fields(other)["fp8_param_gather"] is False
    assert transformer_fields(other, MODEL, "cuda", "transformer_engine")["fp8"] is None


def test_fp8_by_default_is_current_scaling_with_the_edges_in_bf16_and_attention_too() -> None:
    run = run_of(training={"steps": 1, "global_batch_size": 8, "precision": "fp8"})
    fields = transformer_fields(run, MODEL, "cuda", "transformer_engine")
    expected = {
        "fp8": "hybrid", "fp8_recipe": "tensorwise", "first_last_layers_bf16": True, "num_layers_at_start_in_bf16": 1,
        "num_layers_at_end_in_bf16": 1, "fp8_dot_product_attention": False, "fp8_multi_head_attention": False, "bf16": True,
    }  # fmt: skip
    assert {name: fields[name] for name in expected} == expected
    delayed = run.model_copy(update={"fp8": run.fp8.model_copy(update={"recipe": "delayed"})})
    assert transformer_fields(delayed, MODEL, "cuda", "transformer_engine")["first_last_layers_bf16"] is False
    assert optimizer_fields(delayed)["fp8_recipe"] == "delayed"


def test_the_exact_mode_is_without_fused_cross_entropy_and_overlap_and_changes_nothing_else() -> None:
    training = {"steps": 1, "global_batch_size": 8}
    parallel = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "tp_comm_overlap": True}
    fast, exact = (
        transformer_fields(
            run_of(training={**training, "mode": mode}, parallel=parallel), MODEL, "cuda", "transformer_engine", True
        )
        for mode in ("fast", "exact")
    )
    assert {name: (fast[name], exact[name]) for name in fast if fast[name] != exact[name]} == {
        "cross_entropy_loss_fusion": (True, False), "tp_comm_overlap": (True, False), "deterministic_mode": (False, True),
    }  # fmt: skip


def test_the_gather_of_parameters_is_aligned_over_interleaved_stages() -> None:
    overlap = {"overlap_grad_reduce": True, "overlap_param_gather": True, "pipeline_model_parallel_size": 2}
    assert ddp_fields(run_of(parallel=overlap))["align_param_gather"] is False
    interleaved = ddp_fields(run_of(parallel={**overlap, "virtual_pipeline_model_parallel_size": 2}))
    assert interleaved["align_param_gather"] and interleaved["overlap_param_gather"]


def test_without_apex_gradients_are_added_up_by_torch() -> None:
    assert not transformer_fields(run_of(), MODEL, "cuda", "transformer_engine")["gradient_accumulation_fusion"]
    assert transformer_fields(run_of(), MODEL, "cuda", "transformer_engine", True)["gradient_accumulation_fusion"]


def test_one_function_decides_everything() -> None:
    """The plain torch layers can be resolved for CUDA here."""
    run = run_of(layer_spec="torch")
    configs = megatron_configs(run, MODEL, "cuda", "torch")
    assert configs.transformer.num_layers == 32 and configs.ddp.use_distributed_optimizer
    assert configs.optimizer.weight_decay == 0.1
    assert cuda_environment(run)["NCCL_NVLS_ENABLE"] == "0" and user_buffers(run, MODEL) is None


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
        MODEL.num_layers = 3  # type: ignore[misc]  # what must not be done
