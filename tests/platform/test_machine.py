"""What this machine has, as the requirements of a run ask for it, and the refusal at the start of a run on CUDA."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch

from megatron_native.config.megatron import has_transformer_engine
from megatron_native.errors import UserError
from megatron_native.platform.machine import this_machine
from megatron_native.training.launch import check_machine
from tests.config.models import run_of

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4, "hidden_size": 64,
    "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096, "rope_theta": 500000.0, "hidden_act": "silu",
}  # fmt: skip


def test_the_versions_are_those_that_are_installed() -> None:
    machine = this_machine()
    assert machine.megatron_core == metadata.version("megatron-core")
    assert (machine.transformer_engine is not None) == has_transformer_engine()
    assert (machine.compute_capability is not None) == torch.cuda.is_available()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which may have FP8")
def test_fp8_on_cuda_is_refused_before_the_model_is_built(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    run = run_of(model={"checkpoint": None, "hf_config": str(tmp_path)}, training={"precision": "fp8"})
    with pytest.raises(UserError, match=r"precision=fp8 needs Transformer Engine .* needs a GPU, and there is none"):
        check_machine(run)


def test_the_exact_mode_is_refused_under_variables_that_undo_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    sections = {"model": {"checkpoint": None, "hf_config": str(tmp_path)}, "layer_spec": "torch"}
    check_machine(run_of(**sections, training={"mode": "exact"}))
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1")
    check_machine(run_of(**sections))
    with pytest.raises(UserError, match="NVTE_ALLOW_NONDETERMINISTIC_ALGO is '1' in the environment"):
        check_machine(run_of(**sections, training={"mode": "exact"}))
