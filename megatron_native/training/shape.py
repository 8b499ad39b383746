"""The shape of the model that a run trains, known before torch or Megatron is imported."""

from __future__ import annotations

from megatron_native.checkpoint.layout import read_model_config
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.models.families import read_hf_config, to_model_config


def read_model(run: RunConfig) -> ModelConfig:
    """The model's shape: from the checkpoint the run starts from, or from its `config.json`."""
    source = run.model.checkpoint or run.model.branch_from
    if source is not None:
        return read_model_config(source)
    assert run.model.hf_config is not None
    folder = run.model.hf_config if run.model.hf_config.is_dir() else run.model.hf_config.parent
    return to_model_config(read_hf_config(folder))
