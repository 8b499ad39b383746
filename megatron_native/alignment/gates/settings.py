"""Settings of gates: the shipped thresholds, a user's file over them, `key=value` over both."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from megatron_native.config.yaml_mapping import read_mapping
from megatron_native.errors import UserError


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    text = resources.files("megatron_native.alignment.gates").joinpath("defaults.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def default_settings() -> dict[str, dict[str, Any]]:
    """`{gate: {setting: value}}` as shipped, and as gates that were registered beside them say; each has `enabled`."""
    from megatron_native.alignment.gates.gate import REGISTRY

    settings = {gate: dict(values) for gate, values in _shipped().items()}
    for name, factory in REGISTRY.items():
        settings.setdefault(name, {"enabled": True, **getattr(factory, "defaults", {})})
    return settings


def load_settings(file: Path | None = None, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The shipped settings with those of a YAML file and of `gate.key=value` overrides over them.

    A gate may be switched by `gate: false` in a file, `gate=false` in an override.

    Raises:
        UserError: the file can't be read, a gate or a key isn't known, or a value is of another type.
    """
    settings = default_settings()
    if file is not None:
        settings = merged(settings, read_mapping(file, "numbers: {most_new: 0}", "--gates"), f"--gates {file}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: it must be gate.key=value, such as numbers.most_new=1.")
        gate, _, name = key.strip().partition(".")
        given: Any = yaml.safe_load(value)
        settings = merged(settings, {gate: {name: given} if name else given}, f"--set {override}")
    return settings


def merged(settings: Mapping[str, Mapping[str, Any]], over: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """`settings` with `over` on them; `where` is named in errors."""
    result = {gate: dict(values) for gate, values in settings.items()}
    for gate, values in over.items():
        if gate not in result:
            raise UserError(f"{where}: there is no gate '{gate}'{_close(gate, result)}; they are {', '.join(result)}.")
        if isinstance(values, bool):
            values = {"enabled": values}
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: {gate} must be a mapping of settings, or true or false; it is {values!r}.")
        for key, value in values.items():
            if key not in result[gate]:
                known = ", ".join(result[gate])
                raise UserError(f"{where}: gate {gate} has no '{key}'{_close(key, result[gate])}; it has {known}.")
            result[gate][key] = _checked(value, result[gate][key], f"{where}: {gate}.{key}")
    return result


def _checked(value: Any, default: Any, where: str) -> Any:
    if isinstance(default, bool) or isinstance(value, bool):
        fits = isinstance(value, bool) and isinstance(default, bool)
    elif isinstance(default, (int, float)):
        fits = isinstance(value, (int, float)) and value >= 0
    else:
        fits = value is None or isinstance(value, str)
    if not fits:
        kind = "true or false" if isinstance(default, bool) else "a number, 0 or more"
        raise UserError(
            f"{where} is {value!r}; it must be {kind if isinstance(default, (bool, int, float)) else 'text'}."
        )
    return value


def _close(name: Any, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f", did you mean '{close[0]}'?" if close else ""
