"""Models and layouts that the plan's tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from megatron_native.config.load import validate_run_config
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.models.families import to_model_config

LLAMA3_70B_HF: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False,
}  # fmt: skip
LLAMA3_8B_HF: dict[str, Any] = {
    **LLAMA3_70B_HF, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
}  # fmt: skip
LLAMA3_70B: ModelConfig = to_model_config(LLAMA3_70B_HF)
LLAMA3_8B: ModelConfig = to_model_config(LLAMA3_8B_HF)

FP8_70B: dict[str, Any] = {
    "data": {"seq_length": 8192},
    "training": {"global_batch_size": 1024, "precision": "fp8"},
    "parallel": {
        "tensor_model_parallel_size": 4, "pipeline_model_parallel_size": 8, "virtual_pipeline_model_parallel_size": 5,
        "sequence_parallel": True, "overlap_grad_reduce": True, "overlap_param_gather": True,
    },
}  # fmt: skip
"""LLaMA3-70B's published FP8 layout, with a batch for 512 GPUs."""


def settings(base: dict[str, Any] | None = None, **sections: dict[str, Any]) -> dict[str, Any]:
    """A run's raw settings; sections are put over those of `base`, field by field."""
    merged: dict[str, Any] = {
        "run_dir": "run", "model": {"hf_config": "model"}, "data": {"seq_length": 4096, "blend": [{"prefix": "tokens"}]},
        "training": {"steps": 1000, "global_batch_size": 64}, "parallel": {},
    }  # fmt: skip
    for given in (base or {}, sections):
        for name, values in given.items():
            merged[name] = {**merged.get(name, {}), **values} if isinstance(values, dict) else values
    return merged


def run_of(base: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    """The run of `settings`, whose files are not asked for."""
    return validate_run_config(settings(base, **sections), "test")


def write_run(folder: Path, hf_config: dict[str, Any], base: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A run's YAML file and its model's `config.json` in `folder`; the path of the YAML."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(hf_config), encoding="utf-8")
    raw = settings(base, **sections)
    raw |= {"run_dir": str(folder / "run"), "model": {"hf_config": str(folder / "model")}}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path
