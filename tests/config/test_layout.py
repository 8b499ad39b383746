"""What does not fit the model, the processes or the platform is refused before anything starts, with the fix."""

from __future__ import annotations

import re
from typing import Any

import pytest

from megatron_native.config.layout import check_layout, data_parallel_size
from megatron_native.errors import UserError
from tests.config.models import LLAMA3_8B, run_of

FP8 = {"training": {"precision": "fp8"}}
CONTEXT = {"parallel": {"context_parallel_size": 2}, "data": {"document_boundaries": False}}


def refused(sections: dict[str, Any], world_size: int = 8, platform: Any = "cuda") -> str:
    with pytest.raises(UserError) as caught:
        check_layout(run_of(**sections), LLAMA3_8B, world_size, platform)
    return str(caught.value)


def accepted(sections: dict[str, Any], world_size: int = 8, platform: Any = "cuda") -> None:
    check_layout(run_of(**sections), LLAMA3_8B, world_size, platform)


def test_context_parallel_processes_are_no_copies_of_the_model() -> None:
    run = run_of(parallel={"context_parallel_size": 2, "tensor_model_parallel_size": 2})
    assert data_parallel_size(run, 16) == 4


def test_context_parallelism_is_for_gpus() -> None:
    accepted(CONTEXT)
    accepted(CONTEXT, platform=None)  # where it will run is not known yet
    assert "parallel.context_parallel_size 2 is for GPUs" in refused(CONTEXT, platform="cpu")
    assert "is for GPUs" in refused({**CONTEXT, "platform": "cpu"}, platform=None)
    assert "layer_spec is 'torch'" in refused({**CONTEXT, "layer_spec": "torch"})


def test_context_parallelism_cuts_a_sequence_into_two_parts_a_process() -> None:
    sections = {**CONTEXT, "data": {"seq_length": 4098, "document_boundaries": False}}
    assert "data.seq_length 4098 is no multiple of 4, which context_parallel_size 2 needs" in refused(sections)
    sections["data"]["seq_length"] = 4100
    accepted(sections)
    sections["parallel"] = {"context_parallel_size": 2, "tensor_model_parallel_size": 4, "sequence_parallel": True}
    assert "data.seq_length 4100 / context_parallel_size 2 is no multiple of tensor_model" in refused(sections)


def test_context_parallelism_keeps_documents_apart_without_the_buffers_of_tensor_parallelism() -> None:
    accepted({"parallel": {"context_parallel_size": 2}})
    parallel = {"context_parallel_size": 2, "tensor_model_parallel_size": 2, "sequence_parallel": True, "tp_comm_overlap": True}
    assert "a batch's length varies" in refused({"parallel": parallel})
    accepted({"parallel": parallel, "data": {"document_boundaries": False}})


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        ({"cp_comm_type": "a2a", "tensor_model_parallel_size": 8}, "8 key/value heads / tensor_model_parallel_size 8"),
        ({"cp_comm_type": "a2a+p2p"}, "a2a+p2p needs groups of two levels"),
    ],
)
def test_ways_of_context_parallelism_that_do_not_fit(parallel: dict[str, Any], said: str) -> None:
    sections = {**CONTEXT, "parallel": {"context_parallel_size": 2, **parallel}}
    assert said in refused(sections, world_size=16)


@pytest.mark.parametrize("parallel", [{}, {"tensor_model_parallel_size": 2}])
def test_overlap_of_tensor_parallel_communication_needs_sequence_parallelism(parallel: dict[str, Any]) -> None:
    said = refused({"parallel": {"tp_comm_overlap": True, **parallel}})
    assert "parallel.tp_comm_overlap needs sequence_parallel and tensor_model_parallel_size above 1" in said


def test_buffers_of_overlapped_communication_have_one_size() -> None:
    parallel = {"tp_comm_overlap": True, "tensor_model_parallel_size": 2, "sequence_parallel": True}
    heldout = [{"name": "ar", "path": "x"}]
    accepted({"parallel": parallel})
    accepted({"parallel": parallel, "evaluation": {"heldout": heldout, "micro_batch_size": 1}})
    said = refused({"parallel": parallel, "evaluation": {"heldout": heldout, "micro_batch_size": 4}})
    assert "phase 'main': 4096, evaluation: 16384" in said
    sections = {
        "parallel": parallel, "training": {"steps": None},
        "phases": [{"name": "a", "steps": 5}, {"name": "b", "steps": 5, "seq_length": 8192}],
    }  # fmt: skip
    assert "phase 'a': 4096, phase 'b': 8192" in refused(sections)
    accepted({**sections, "training": {"steps": None, "mode": "exact"}})  # no overlap in this mode, no buffers


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        ({"num_distributed_optimizer_instances": 3}, "does not divide the 8 processes .* use one of 1, 2, 4, 8"),
        ({"num_distributed_optimizer_instances": 2, "use_distributed_optimizer": False}, "needs use_distributed_opt"),
        ({"reduce_scatter_with_fp32_accumulation": True}, "set optimizer.grad_reduce_in_fp32=false"),
        (
            {"reduce_scatter_with_fp32_accumulation": True, "num_distributed_optimizer_instances": 2},
            "works with num_distributed_optimizer_instances 1 only",
        ),
        ({"reduce_scatter_with_fp32_accumulation": True, "use_distributed_optimizer": False}, "needs use_distributed"),
    ],
)
def test_the_distributed_optimizer_has_its_conditions(parallel: dict[str, Any], said: str) -> None:
    assert re.search(said, refused({"parallel": parallel}))


def test_instances_of_the_optimizer_share_context_parallel_processes_too() -> None:
    accepted({**CONTEXT, "parallel": {"context_parallel_size": 2, "num_distributed_optimizer_instances": 8}})


def test_gradients_added_up_in_fp32_go_one_bucket_at_a_time() -> None:
    sections = {
        **FP8, "fp8": {"param_gather": True}, "optimizer": {"grad_reduce_in_fp32": False},
        "parallel": {"reduce_scatter_with_fp32_accumulation": True, "overlap_grad_reduce": True},
    }  # fmt: skip
    assert "puts FP8 and BF16 buckets together" in refused(sections)
    accepted({**sections, "fp8": {"param_gather": False}})


@pytest.mark.parametrize(
    ("fp8", "said"),
    [
        ({"recipe": "delayed", "first_layers_bf16": 1}, "delayed keeps one history .* set fp8.first_layers_bf16 to 0"),
        ({"recipe": "delayed", "bf16_layers": [3]}, r"set fp8.bf16_layers to \[\]"),
        ({"first_layers_bf16": 31}, "leaves none of 32 layers in FP8"),
        ({"first_layers_bf16": 5}, "fp8.first_layers_bf16 5 is above 4, the layers of one pipeline stage"),
        ({"bf16_layers": [31, 32, -1]}, "fp8.bf16_layers has 32, -1, and the model's layers are 0 to 31"),
    ],
)
def test_fp8_settings_that_do_not_fit_the_layers(fp8: dict[str, Any], said: str) -> None:
    sections = {**FP8, "fp8": fp8, "parallel": {"pipeline_model_parallel_size": 8}}
    assert re.search(said, refused(sections))
    accepted({**sections, "training": {"precision": "bf16"}})  # the section is not read then


def test_delayed_scaling_moves_no_layer_to_bf16() -> None:
    delayed = {**FP8, "fp8": {"recipe": "delayed"}}
    accepted(delayed)
    assert "set conscience.action=warn" in refused({**delayed, "conscience": {"action": "bf16"}})


def test_weights_in_fp8_need_the_distributed_optimizer() -> None:
    sections = {**FP8, "fp8": {"param_gather": True}, "parallel": {"use_distributed_optimizer": False}}
    assert "set parallel.use_distributed_optimizer=true" in refused(sections)


def test_dimensions_are_checked_for_gpus() -> None:
    sections = {**FP8, "data": {"seq_length": 4090}}
    assert "to be a multiple of 16: change data.seq_length" in refused(sections)
    accepted(sections, platform="cpu")  # the emulation takes any


@pytest.mark.parametrize(
    ("training", "parallel", "said"),
    [
        ({"recompute": "full", "recompute_method": "block", "recompute_num_layers": 9}, {}, "9 is above the 8 layers"),
        (
            {"recompute": "full", "recompute_num_layers": 3},
            {"virtual_pipeline_model_parallel_size": 4},
            "3 is above the 2",
        ),
        ({"recompute": "selective", "recompute_modules": []}, {}, "which is empty"),
    ],
)
def test_recomputation_that_names_more_or_less_than_there_is(
    training: dict[str, Any], parallel: dict[str, Any], said: str
) -> None:
    assert said in refused({"training": training, "parallel": {"pipeline_model_parallel_size": 4, **parallel}})


def test_norms_are_not_recomputed_under_delayed_scaling() -> None:
    training = {"precision": "fp8", "recompute": "selective", "recompute_modules": ["layernorm"]}
    assert "layernorm can't be recomputed" in refused({"training": training, "fp8": {"recipe": "delayed"}})
    accepted({"training": training})


def test_norms_are_recomputed_by_transformer_engines_layers_only() -> None:
    training = {"recompute": "selective", "recompute_modules": ["layernorm"]}
    assert "needs Transformer Engine's layers" in refused({"training": training, "platform": "cpu"})
    assert "needs Transformer Engine's layers" in refused({"training": training, "layer_spec": "torch"})
    accepted({"training": training, "platform": "cuda"})


def test_every_finding_is_in_one_message() -> None:
    said = refused({"parallel": {"tensor_model_parallel_size": 3, "pipeline_model_parallel_size": 5}})
    assert "cannot be split by tensor_model" in said and "use one of 1, 2, 4, 8" in said and "32 layers" in said
