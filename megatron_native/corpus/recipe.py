"""Recipes: the stages of a corpus in one YAML file, each an ordinary command with its options spelled out.

    output: work                     # every stage writes work/NAME
    stages:
      - clean: {input: [dump/], preset: msa}
      - dedup: {}                    # reads the stage before it
      - tokenize: {name: ar, input: "@dedup/ar", tokenizer_model: models/llama, append_eod: true}

A stage's options are those of `megatron-native STAGE --help`, with underscores; `@NAME` at the beginning of an input, or
of a folder that dedup is held `against`, is what the stage of that name wrote. Relative paths are seen from where the
command runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_native.config.yaml_mapping import read_mapping
from megatron_native.errors import UserError

STAGES = ("clean", "dedup", "rewrite", "gate", "tokenize", "report")
"""Commands that may be stages, where this version has them."""
_REFERENCES = ("input", "against")
"""Options whose paths may be `@NAME`."""
SHARED = ("workers", "engine", "address", "task_index", "task_count", "tokenizer_model")
"""Options that the recipe may give once for all stages that have them; of rewrite, `engine` means what rewrites."""


@dataclass(frozen=True)
class Step:
    """One stage of a recipe: its name, its command, and the command's arguments."""

    name: str
    command: str
    arguments: list[str]


def read_recipe(path: Path, overrides: Mapping[str, Any]) -> list[Step]:
    """The steps of a recipe; `overrides` replace its `output` and shared options.

    Raises:
        UserError: the file can't be read, or a stage or an option is not known.
    """
    raw = read_mapping(path, "stages: [...]", "--recipe")
    if not isinstance(raw.get("stages"), list) or not raw["stages"]:
        raise UserError(f"--recipe {path}: it needs 'stages:' with a list, such as '- clean: {{input: [dump/]}}'.")
    top = {**raw, **overrides}
    unknown = sorted(set(map(str, top)) - {"output", "stages", *SHARED})
    if unknown:
        raise UserError(f"--recipe {path}: unknown keys {unknown}; known are output, stages, {', '.join(SHARED)}.")
    if not top.get("output"):
        raise UserError(f"--recipe {path}: 'output: FOLDER' must say where the stages write.")
    written: dict[str, str] = {}
    steps = []
    for place, entry in enumerate(raw["stages"], 1):
        step = _step(f"{path}, stage {place}", entry, Path(str(top["output"])), written)
        command, name, options = step
        common = SHARED if command != "rewrite" else tuple(key for key in SHARED if key != "engine")
        shared = {key: top[key] for key in common if key in overrides or (key in top and key not in options)}
        steps.append(Step(name, command, _arguments(f"{path}, stage {place} ({command})", command, options, shared)))
    return steps


def _step(place: str, entry: Any, output: Path, written: dict[str, str]) -> tuple[str, str, dict[str, Any]]:
    from megatron_native.cli import COMMANDS

    if isinstance(entry, str):
        entry = {entry: {}}
    stages = [stage for stage in STAGES if stage in COMMANDS]
    if not isinstance(entry, dict) or len(entry) != 1 or next(iter(entry)) not in stages:
        raise UserError(f"{place}: {entry!r} where one of {', '.join(stages)} with its options belongs.")
    ((command, given),) = entry.items()
    if given is not None and not isinstance(given, dict):
        raise UserError(f"{place}: {command} has {given!r} where its options ('input: …') belong.")
    options = dict(given or {})
    name = str(options.pop("name", command))
    if name in written:
        raise UserError(f"{place}: there is a stage '{name}' already; give this one a 'name:' of its own.")
    if "input" not in options:
        if not written:
            raise UserError(f"{place}: the first stage needs 'input:', the files or folders to read.")
        options["input"] = list(written.values()) if command == "report" else [list(written.values())[-1]]
    for key in _REFERENCES:
        if key in options:
            values = options[key] if isinstance(options[key], list) else [options[key]]
            options[key] = [_resolved(place, str(value), written) for value in values]
    if command == "tokenize":
        options.setdefault("output_prefix", str(output / "tokens" / name))
        written[name] = f"{options['output_prefix']}_{_first(options.get('json_keys', 'text'))}_document"
    else:
        options.setdefault("output", str(output / (f"{name}.html" if command == "report" else name)))
        written[name] = str(options["output"])
    return command, name, options


def _first(value: Any) -> str:
    return str(value[0] if isinstance(value, list) else value)


def _resolved(place: str, value: str, written: Mapping[str, str]) -> str:
    if not value.startswith("@"):
        return value
    name, _, below = value[1:].partition("/")
    if name not in written:
        raise UserError(f"{place}: {value} names no stage before it; there are {', '.join(written) or 'none'}.")
    return written[name] + ("/" + below if below else "")


def _arguments(place: str, command: str, options: Mapping[str, Any], shared: Mapping[str, Any]) -> list[str]:
    """The command line that the options are."""
    import argparse

    from megatron_native.cli import command_parser

    _, parser = command_parser(command)
    known = {
        option[2:].replace("-", "_"): action
        for action in parser._actions if action.help != argparse.SUPPRESS
        for option in action.option_strings if option.startswith("--")
    }  # fmt: skip
    unknown = sorted(set(map(str, options)) - set(known))
    if unknown:
        raise UserError(f"{place}: unknown options {unknown}; known are {', '.join(sorted(set(known) - {'help'}))}.")
    arguments: list[str] = []
    for key, value in {**options, **{key: value for key, value in shared.items() if key in known}}.items():
        flag = "--" + key.replace("_", "-")
        takes_value = known[key].nargs != 0
        if isinstance(value, bool) and not takes_value:
            if value:
                arguments.append(flag)
            elif f"no_{key}" in known:
                arguments.append("--no-" + flag[2:])
        elif value is None:
            continue
        elif isinstance(value, list) and known[key].nargs is None:
            arguments.append(f"{flag}={','.join(map(str, value))}")
        elif isinstance(value, list):
            arguments += [flag, *map(str, value)]
        elif takes_value and not isinstance(value, dict | bool):
            arguments += [flag, str(value)] if not str(value).startswith("-") else [f"{flag}={value}"]
        else:
            raise UserError(f"{place}: {key} can't be {value!r}; see megatron-native {command} --help.")
    return arguments


def run_recipe(steps: Sequence[Step]) -> int:
    """Run the steps in order, each as the command a user would type; the first that fails ends the recipe with its code."""
    import shlex

    from megatron_native.cli import run_command

    for number, step in enumerate(steps, 1):
        print(
            f"── {number}/{len(steps)} {step.name}: megatron-native {step.command} {shlex.join(step.arguments)}",
            flush=True,
        )
        code = run_command(step.command, step.arguments)
        if code:
            return code
    return 0
