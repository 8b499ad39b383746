"""Rotary position settings in a `config.json`, in both of transformers' spellings.

Newer files have `rope_parameters: {rope_theta, rope_type, …}`, older ones `rope_theta` and `rope_scaling`. An older
reader ignores the new spelling without a word, so exports carry both; a file whose two spellings disagree is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_native.config.model import ModelConfig, RopeScaling
from megatron_native.errors import UserError

DEFAULT_ROTARY_BASE = 10000.0
"""transformers' base where a file of the llama or qwen2 family states none (LLaMA-2's do not)."""
_SCALING_FIELDS = tuple(RopeScaling.model_fields)


def read_rope_settings(hf: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(base, scaling) from a `config.json`; scaling is None for plain rotary positions.

    Raises `UserError` for a rope type other than `default` and `llama3`, a missing scaling field, a partial rotation,
    or two spellings that say different things.
    """
    _refuse_partial_rotation(hf, "partial_rotary_factor")
    stated_base = hf.get("rope_theta")
    older = hf.get("rope_scaling")
    if not hf.get("rope_parameters"):
        return _read_spelling(older or {}, "rope_scaling", stated_base)
    settings = _read_spelling(hf["rope_parameters"], "rope_parameters", stated_base)
    other = settings if stated_base is None else (float(stated_base), settings[1])
    if older or ("rope_scaling" in hf and stated_base is not None):
        other = _read_spelling(older or {}, "rope_scaling", settings[0] if stated_base is None else stated_base)
    if other != settings:
        raise UserError(
            f"config.json states its rotary positions twice and differently: rope_parameters says base {settings[0]}, "
            f"scaling {settings[1]}; rope_theta and rope_scaling say base {other[0]}, scaling {other[1]}. "
            "Remove the wrong one."
        )
    return settings


def _refuse_partial_rotation(settings: Mapping[str, Any], name: str) -> None:
    if settings.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UserError(
            f"config.json has {name} = {settings['partial_rotary_factor']!r}; only whole heads are rotated here."
        )


def _read_spelling(settings: Mapping[str, Any], name: str, top_level_base: Any) -> tuple[float, RopeScaling | None]:
    if not isinstance(settings, Mapping):
        raise UserError(f"config.json has {name} = {settings!r}; an object with a rope_type is needed.")
    base = settings.get("rope_theta", top_level_base)
    base = DEFAULT_ROTARY_BASE if base is None else float(base)
    _refuse_partial_rotation(settings, f"{name}.partial_rotary_factor")
    rope_type = settings.get("rope_type", settings.get("type", "default"))
    if rope_type == "default":
        return base, None
    if rope_type != "llama3":
        raise UserError(
            f"config.json has {name}.rope_type = {rope_type!r}; only 'default' and 'llama3' are computed here, and "
            "another scaling would change every position's angle."
        )
    missing = [field for field in _SCALING_FIELDS if settings.get(field) is None]
    if missing:
        raise UserError(f"config.json has {name}.rope_type = 'llama3' without {', '.join(missing)}; state them.")
    scaling = RopeScaling(**{field: settings[field] for field in _SCALING_FIELDS})
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise UserError(
            f"config.json has {name}.high_freq_factor = {scaling.high_freq_factor} and low_freq_factor = "
            f"{scaling.low_freq_factor}; the first must be the larger one."
        )
    return base, scaling


def rope_fields(config: ModelConfig) -> dict[str, Any]:
    """`rope_parameters`, `rope_theta` and `rope_scaling` of a `config.json`, saying the same in both spellings."""
    scaling = None if config.rope_scaling is None else {"rope_type": "llama3", **config.rope_scaling.model_dump()}
    return {
        "rope_parameters": {"rope_theta": config.rotary_base, **(scaling or {"rope_type": "default"})},
        "rope_scaling": scaling,
        "rope_theta": config.rotary_base,
    }
