"""From a YAML file and `section.key=value` overrides to a checked `RunConfig`, or to an error that names the key.

Relative paths in the file are relative to the working directory, as everywhere on the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError

from megatron_native.config.presets import over_preset
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError


def load_run_config(path: Path, overrides: Sequence[str] = (), files: bool = True) -> RunConfig:
    """Read, put the preset under it, override and check a run's configuration.

    Args:
        path: YAML file.
        overrides: `section.key=value`, the value as YAML (`training.steps=100`, `data.blend.0.weight=0.7`).
        files: whether what it names must be there; on a laptop it may not be.

    Raises:
        UserError: the file, a key, a value or a combination is wrong; every finding is in the message.
    """
    raw = _read_yaml(path)
    preset = apply_overrides(raw, [text for text in overrides if text.startswith("preset=")]).get("preset")
    source = str(path)
    if preset is not None:
        raw = over_preset(preset, raw)
        source = f"{path} (over the preset {preset})"
    raw = apply_overrides(raw, overrides)
    return check_run_config(raw, source) if files else validate_run_config(raw, source)


def check_run_config(raw: dict[str, Any], source: str) -> RunConfig:
    """Validate a raw mapping, and that its files are there; `source` names it in errors."""
    config = validate_run_config(raw, source)
    check_files(config, source)
    return config


def validate_run_config(raw: dict[str, Any], source: str) -> RunConfig:
    """Validate a raw mapping whose files may be made yet; `source` names it in errors."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        findings = "; ".join(_finding(cast(dict[str, Any], item)) for item in error.errors())
        raise UserError(f"{source}: {findings}.") from None


def check_files(config: RunConfig, source: str) -> None:
    """Every file that the configuration names is there, before anything starts.

    Raises:
        UserError: names the field, the path and what was expected there.
    """
    missing: list[str] = []
    without_data: dict[str, list[str]] = {}
    if config.model.checkpoint is not None and not (config.model.checkpoint / "metadata.json").is_file():
        missing.append(
            f"model.checkpoint = {config.model.checkpoint} is not a checkpoint (no metadata.json there); "
            "`megatron-native import-hf` makes one from a Hugging Face folder"
        )
    if config.model.hf_config is not None and not config.model.hf_config.exists():
        missing.append(f"model.hf_config = {config.model.hf_config} does not exist")
    blends = {"data": config.data.blend, **{f"phases.{n}": phase.blend or [] for n, phase in enumerate(config.phases)}}
    for owner, blend in blends.items():
        for index, entry in enumerate(blend):
            if not all(Path(f"{entry.prefix}{ending}").is_file() for ending in (".bin", ".idx")):
                without_data.setdefault(str(entry.prefix), []).append(f"{owner}.blend.{index}.prefix")
    for prefix, names in without_data.items():
        ending = ".idx" if Path(f"{prefix}.bin").is_file() else ".bin"
        missing.append(f"{', '.join(names)} = {prefix}: there is no {prefix}{ending}")
    if without_data:
        missing[-1] += "; `tokenize` prints the prefix it wrote"
    for index, heldout in enumerate(config.evaluation.heldout):
        if heldout.kind == "conversations":
            if not Path(f"{heldout.path}.idx").is_file():
                missing.append(f"evaluation.heldout.{index}.path = {heldout.path} is no dataset's prefix (no .idx)")
        elif not heldout.path.is_file():
            missing.append(f"evaluation.heldout.{index}.path = {heldout.path} is not a file")
    if missing:
        raise UserError(f"{source}: " + "; ".join(missing) + ".")


def apply_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `raw` with each `section.key=value` put in its place; numbers address list items."""
    result = _copy(raw)
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator or not dotted:
            raise UserError(
                f"'{override}' is not an override: write section.key=value, for example training.steps=100."
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(
                f"the value of '{override}' is not YAML ({_one_line(error)}); quote it if it is text."
            ) from None
        _put(result, dotted.split("."), value, override)
    return result


def dump_run_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, every value present; loading it gives an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no configuration file {path}; examples/ has some to start from.")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {_one_line(error)}.") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {type(raw).__name__}, not sections such as 'model:' and 'training:'.")
    return raw


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def _put(target: Any, keys: list[str], value: Any, override: str) -> None:
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(target, list):
            if not key.isdigit() or int(key) >= len(target):
                raise UserError(f"'{override}': '{key}' is no item of a list of {len(target)}; count from 0.")
            index: Any = int(key)
        elif isinstance(target, dict):
            index = key
        else:
            raise UserError(f"'{override}': '{'.'.join(keys[:position])}' is a value and has no '{key}' in it.")
        if last:
            target[index] = value
        else:
            if isinstance(target, dict) and target.get(index) is None:
                target[index] = {}
            target = target[index]


def _finding(item: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _known_keys(item["loc"][:-1])
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"
        return f"unknown key {where}: {hint}"
    if item["type"] == "missing":
        return f"{where} is missing and has no default"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return message
    return f"{where} = {item['input']!r}: {message[0].lower()}{message[1:]}"


def _known_keys(location: Sequence[Any]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [annotation, *getattr(annotation, "__args__", ())]
        model = next(kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
