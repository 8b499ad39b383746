"""What GPUs and packages must be like for a configuration, over facts that are given: no GPU is asked."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from megatron_native.config.requirements import (
    MEGATRON_CORE,
    Machine,
    check_requirements,
    fp8_dimension_findings,
    requires_transformer_engine,
)
from megatron_native.errors import UserError
from tests.config.models import LLAMA3_8B, QWEN15_32B, run_of

H100 = Machine("NVIDIA H100 80GB HBM3", (9, 0), "0.16.1", "2.9.0", has_apex=True)
FP8 = {"training": {"precision": "fp8"}}
BLOCKWISE = {**FP8, "fp8": {"recipe": "blockwise"}}


def refused(sections: dict[str, Any], machine: Machine = H100) -> str:
    with pytest.raises(UserError) as caught:
        check_requirements(run_of(**sections), LLAMA3_8B, machine)
    return str(caught.value)


@pytest.mark.parametrize("sections", [{}, FP8, BLOCKWISE, {"layer_spec": "torch"}])
def test_an_h100_with_the_right_versions_runs_it(sections: dict[str, Any]) -> None:
    check_requirements(run_of(**sections), LLAMA3_8B, H100)


@pytest.mark.parametrize(
    ("sections", "gpu", "capability", "said"),
    [
        (FP8, "NVIDIA A100", (8, 0), "NVIDIA A100 (compute capability 8.0) has no FP8: use bf16"),
        (BLOCKWISE, "NVIDIA L40S", (8, 9), "blockwise is for compute capability 9.0 (Hopper)"),
        (BLOCKWISE, "NVIDIA B200", (10, 0), "and this is NVIDIA B200 (compute capability 10.0): use tensorwise"),
        (FP8, "", None, "needs a GPU, and there is none: set platform=cpu, where FP8 is emulated"),
    ],
)
def test_the_gpu_must_have_what_the_recipe_uses(
    sections: dict[str, Any], gpu: str, capability: tuple[int, int] | None, said: str
) -> None:
    assert said in refused(sections, replace(H100, gpu=gpu, compute_capability=capability))


def test_fp8_runs_on_ada_and_bf16_anywhere() -> None:
    check_requirements(run_of(**FP8), LLAMA3_8B, replace(H100, compute_capability=(8, 9)))
    check_requirements(run_of(), LLAMA3_8B, replace(H100, compute_capability=(8, 0), transformer_engine=None))


@pytest.mark.parametrize("version", ["2.8.0", "2.12.0", "1.13.0", "3.0", "unknown"])
def test_transformer_engine_of_another_version_is_refused(version: str) -> None:
    said = refused({}, replace(H100, transformer_engine=version))
    assert f"Transformer Engine {version} is not of the versions ≥ 2.9, < 2.12" in said
    check_requirements(run_of(layer_spec="torch"), LLAMA3_8B, replace(H100, transformer_engine=version))  # not used


@pytest.mark.parametrize("version", ["2.9.0", "2.10.0+abc", "2.11.0.dev0"])
def test_transformer_engine_of_the_band_is_taken(version: str) -> None:
    check_requirements(run_of(**FP8), LLAMA3_8B, replace(H100, transformer_engine=version))


@pytest.mark.parametrize("version", ["0.15.3", "0.17.0", "1.0"])
def test_megatron_core_of_another_version_is_refused(version: str) -> None:
    assert f"megatron-core {version} is not of the versions ≥ 0.16, < 0.17" in refused(
        {}, replace(H100, megatron_core=version)
    )


def test_the_band_is_that_of_the_package_and_holds_what_is_installed() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'"megatron-core>=(\d+)\.(\d+),<(\d+)\.(\d+)"', text)
    assert found is not None
    low, high = tuple(map(int, found.groups()[:2])), tuple(map(int, found.groups()[2:]))
    assert (low, high) == MEGATRON_CORE
    check_requirements(run_of(), LLAMA3_8B, replace(H100, megatron_core=metadata.version("megatron-core")))


def test_what_only_transformer_engine_can_do_is_named() -> None:
    sections = {
        **FP8, "parallel": {"tensor_model_parallel_size": 2, "sequence_parallel": True, "tp_comm_overlap": True},
    }  # fmt: skip
    names = ["training.precision=fp8", "parallel.tp_comm_overlap=true"]
    assert requires_transformer_engine(run_of(**sections)) == names
    said = refused(sections, replace(H100, transformer_engine=None))
    assert f"{', '.join(names)} needs Transformer Engine (≥ 2.9, < 2.12), which is not installed" in said
    assert "layer_spec is 'torch': set it to auto" in refused({**sections, "layer_spec": "torch"})
    assert requires_transformer_engine(run_of()) == []


def test_context_parallelism_is_transformer_engines() -> None:
    sections = {"parallel": {"context_parallel_size": 2}}
    check_requirements(run_of(**sections), LLAMA3_8B, H100)
    said = refused(sections, replace(H100, transformer_engine=None))
    assert "parallel.context_parallel_size=2 needs Transformer Engine" in said


def test_the_deferred_gradient_needs_apex() -> None:
    sections = {"parallel": {"pipeline_model_parallel_size": 2, "defer_embedding_wgrad_compute": True}}
    check_requirements(run_of(**sections), LLAMA3_8B, H100)
    assert "NVIDIA's Apex, which is not installed" in refused(sections, replace(H100, has_apex=False))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"seq_length": 4090}}, "seq_length 4090 × micro_batch_size 1 / 1 processes"),
        (
            {"data": {"seq_length": 4128}, "parallel": {"tensor_model_parallel_size": 8, "sequence_parallel": True}},
            "/ 8",
        ),
    ],
)
def test_tokens_of_a_forward_pass_are_a_multiple(sections: dict[str, Any], said: str) -> None:
    findings = fp8_dimension_findings(run_of(**FP8, **sections), LLAMA3_8B)
    assert len(findings) == 1 and said in findings[0] and "multiple of 16: change data.seq_length" in findings[0]


def test_blocks_of_128_do_not_fit_every_tensor_parallel_size() -> None:
    # Qwen1.5-32B: 27,392 = 214 × 128, and a quarter of it is 53.5 × 128.
    for tp, fits in ((1, True), (2, True), (4, False)):
        run = run_of(**BLOCKWISE, parallel={"tensor_model_parallel_size": tp})
        assert (not fp8_dimension_findings(run, QWEN15_32B)) is fits
    finding = fp8_dimension_findings(run_of(**BLOCKWISE, parallel={"tensor_model_parallel_size": 4}), QWEN15_32B)
    assert "ffn_hidden_size 27392 / tensor_model_parallel_size 4 to be a multiple of 128" in finding[0]
    assert not fp8_dimension_findings(run_of(**FP8, parallel={"tensor_model_parallel_size": 8}), QWEN15_32B)
