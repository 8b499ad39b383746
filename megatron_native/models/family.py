"""What a model family is: how its Hugging Face `config.json` is read and written, and what its weights are called.

A family is one file beside this one that fills in a `Family`, and one line in `families.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_native.config.model import ModelConfig
from megatron_native.errors import UserError
from megatron_native.models.weight_map import WeightRule


@dataclass(frozen=True)
class Family:
    """One architecture: `model_type` values it answers to, its configuration both ways, its weight names."""

    name: str
    model_types: tuple[str, ...]
    to_model_config: Callable[[Mapping[str, Any]], ModelConfig]
    """From a Hugging Face `config.json`; raises `UserError` for a setting that would be computed wrongly."""
    to_hf_config: Callable[[ModelConfig], dict[str, Any]]
    """A whole `config.json` for a model that never had one."""
    weight_rules: tuple[WeightRule, ...]


def required(hf: Mapping[str, Any], field: str) -> Any:
    """`hf[field]`, or a `UserError` that names the field."""
    value = hf.get(field)
    if value is None:
        raise UserError(
            f"config.json has no '{field}', which a {hf.get('model_type', 'model')} configuration must state; "
            "copy the config.json that belongs to these weights."
        )
    return value


def required_count(hf: Mapping[str, Any], field: str) -> int:
    """`hf[field]` as a whole number above zero, or a `UserError` that names the field and its value."""
    value = required(hf, field)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise UserError(f"config.json has {field} = {value!r}; a whole number above zero is needed there.")
    return value


def refuse_unless(hf: Mapping[str, Any], field: str, accepted: tuple[Any, ...], why: str) -> None:
    """Raise `UserError` when `field` is present with a value that this project would compute wrongly.

    An absent field stands for the first accepted value, as it does in transformers.
    """
    value = hf.get(field, accepted[0])
    if value not in accepted:
        wanted = " or ".join(map(repr, accepted))
        raise UserError(
            f"config.json has {field} = {value!r}, but only {wanted} is supported for model_type "
            f"'{hf.get('model_type')}': {why}. Converting it anyway would give a model that computes something else."
        )


def refuse_sliding_layers(hf: Mapping[str, Any]) -> None:
    """Raise `UserError` when `layer_types` names anything but whole attention; newer files list every layer's kind."""
    sliding = [kind for kind in hf.get("layer_types") or () if kind != "full_attention"]
    if sliding:
        raise UserError(
            f"config.json lists '{sliding[0]}' among its layer_types, but attention here always sees the whole "
            f"sequence; only 'full_attention' is supported for model_type '{hf.get('model_type')}'."
        )


def head_counts(hf: Mapping[str, Any], key_value_heads: int) -> tuple[int, int, int]:
    """(attention heads, key/value heads, width of a head), checked against each other.

    Without `head_dim` a head is hidden_size / num_attention_heads wide.
    """
    heads = required_count(hf, "num_attention_heads")
    if heads % key_value_heads:
        raise UserError(
            f"config.json has num_attention_heads = {heads} and num_key_value_heads = {key_value_heads}; the first "
            "must be a multiple of the second, each key/value head serving equally many query heads."
        )
    hidden_size = required_count(hf, "hidden_size")
    if hf.get("head_dim") is not None:
        width = required_count(hf, "head_dim")
    elif hidden_size % heads:
        raise UserError(
            f"config.json has hidden_size = {hidden_size}, which {heads} attention heads do not divide, and "
            "no head_dim; state head_dim."
        )
    else:
        width = hidden_size // heads
    if width % 2:
        raise UserError(f"config.json gives heads of width {width}; rotary positions need an even width.")
    return heads, key_value_heads, width
