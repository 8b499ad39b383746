"""The registry of model families: from a Hugging Face `config.json` to the family that understands it, and back.

To add one, write its file beside this one and add a line to `FAMILIES`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_native.config.model import ModelConfig
from megatron_native.errors import UserError
from megatron_native.models.family import Family
from megatron_native.models.llama import LLAMA
from megatron_native.models.mistral import MISTRAL
from megatron_native.models.qwen2 import QWEN2
from megatron_native.models.qwen3 import QWEN3
from megatron_native.models.rope_settings import rope_fields
from megatron_native.models.weight_map import Piece, pieces

FAMILIES: dict[str, Family] = {family.name: family for family in (LLAMA, QWEN2, QWEN3, MISTRAL)}


def family_of(hf_config: Mapping[str, Any]) -> Family:
    """The family of a `config.json`, by its `model_type`; `UserError` names a type that none answers to."""
    model_type = hf_config.get("model_type")
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES.values() for name in family.model_types))
    raise UserError(f"config.json has model_type = {model_type!r}, which no family here reads; supported: {known}.")


def to_model_config(hf_config: Mapping[str, Any]) -> ModelConfig:
    """The model's shape from a `config.json` of any known family."""
    return family_of(hf_config).to_model_config(hf_config)


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` for a model that was not imported from one."""
    return FAMILIES[config.family].to_hf_config(config)


def model_pieces(config: ModelConfig) -> list[Piece]:
    """Every weight of a model: its Hugging Face names and its place in megatron-core's global tensors."""
    return pieces(FAMILIES[config.family].weight_rules, config)


def export_config(source: Mapping[str, Any] | None, config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of an export: the source's kept, with the shape and the rope settings of `config`.

    Rope settings and the dtype (such as "bfloat16") are written in both of transformers' spellings, since older
    readers fall back to defaults without a word. `source` is None for a model that never had a `config.json`.
    """
    result = dict(source) if source else to_hf_config(config)
    result["vocab_size"] = config.vocab_size
    result["tie_word_embeddings"] = config.tie_word_embeddings
    result.update(rope_fields(config))
    result["dtype"] = dtype
    result["torch_dtype"] = dtype
    return result


def read_hf_config(folder: Path) -> dict[str, Any]:
    """`folder/config.json` as it came; `UserError` where it is missing or no JSON object."""
    path = Path(folder) / "config.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.json, so it is no Hugging Face model folder.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}); copy it again from the model.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is JSON but not an object; copy it again from the model.")
    return value
