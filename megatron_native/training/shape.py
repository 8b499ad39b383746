"""The shape of the model that a run trains, known before torch or Megatron is imported."""

from __future__ import annotations

from pathlib import Path

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


def find_model(run: RunConfig, hf: Path | None) -> ModelConfig | None:
    """The model's shape before the run's checkpoint is made.

    Args:
        run: the run; what it starts from may not be there yet.
        hf: Hugging Face folder that will be imported; its `config.json` is enough.

    Returns:
        The shape by what the run starts from, else by `hf`; None where neither is here.

    Raises:
        UserError: what is there describes no model.
    """
    source = run.model.checkpoint or run.model.branch_from or run.model.hf_config
    if source is not None and source.exists():
        return read_model(run)
    if hf is not None and (hf / "config.json").is_file():
        return to_model_config(read_hf_config(hf))
    return None
