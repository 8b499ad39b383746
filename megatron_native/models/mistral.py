"""The mistral family: Mistral-7B-v0.2 and later, Mistral-Nemo and models of their shape, from and to a `config.json`.

LLaMA's shape and weight names; heads of a stated width (Nemo's are not hidden_size / num_attention_heads wide). A sliding
window that could hide a position is refused: version 0.1 of Mistral-7B has one of 4096.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_native.config.model import ModelConfig
from megatron_native.errors import UserError
from megatron_native.models.family import Family, refuse_sliding_layers, refuse_unless, required_count
from megatron_native.models.llama import WEIGHT_RULES, hf_config_of, shape_of

_DEFAULT_WINDOW = 4096
"""transformers' value for an absent `sliding_window`."""


def to_model_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The model's shape from a `config.json` of model_type mistral; `UserError` names a setting not computed here."""
    refuse_unless(hf, "hidden_act", ("silu",), "the feed-forward layer is SwiGLU")
    refuse_unless(hf, "quantization_config", (None,), "weights must be plain BF16, FP16 or FP32")
    refuse_sliding_layers(hf)
    _refuse_window(hf)
    # transformers' default for an absent num_key_value_heads is 8, whatever the model: it has to be stated.
    return shape_of(hf, "mistral", required_count(hf, "num_key_value_heads"))


def _refuse_window(hf: Mapping[str, Any]) -> None:
    """Raise `UserError` for a window that is shorter than the model's positions; a longer one never hides any."""
    window = hf.get("sliding_window", _DEFAULT_WINDOW)
    positions = required_count(hf, "max_position_embeddings")
    if window is None or (isinstance(window, int) and window >= positions):
        return
    stated = (
        f"sliding_window = {window!r}" if "sliding_window" in hf else f"no sliding_window, which stands for {window}"
    )
    raise UserError(
        f"config.json has {stated}, but attention here always sees the whole sequence, and max_position_embeddings = "
        f"{positions} goes beyond the window. Within {window} tokens the two are the same: to train and use this model "
        f'on sequences no longer than that, set "sliding_window": null and "max_position_embeddings": {window} in '
        "config.json. Or take a version without a window (Mistral-7B-v0.2 or later)."
    )


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` for a mistral model that was not imported from one."""
    return hf_config_of(config, "MistralForCausalLM", sliding_window=None)


MISTRAL = Family("mistral", ("mistral",), to_model_config, to_hf_config, WEIGHT_RULES)
