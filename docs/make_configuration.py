"""Print docs/configuration.md: every setting of a run, from the models and docstrings of `megatron_native.config.run`.

    python docs/make_configuration.py > docs/configuration.md

A test compares the committed page with this script's output.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone that is not installed

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from megatron_native.config.run import RunConfig

INTRODUCTION = """\
# Configuration

<!-- Made by `python docs/make_configuration.py > docs/configuration.md`; change the docstrings it reads instead. -->

Every setting of a run's YAML file, from `megatron_native/config/run.py`. Unknown keys are errors. On the command line a
setting is overridden by its name with dots, the value as YAML: `training.steps=100`, `data.blend.0.weight=0.7` (list items
count from 0). `megatron-native config show --config run.yaml` prints a file with every default filled in,
`megatron-native config schema` the JSON schema of what follows. Paths are relative to the working directory.

[pretrain.md](pretrain.md) explains how the settings work together.
"""
HEADER = ["| setting | type | default | meaning |", "|---|---|---|---|"]
TYPE_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
BOUNDS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))


def page() -> str:
    """The whole page."""
    top, sections = [], []
    for name, field in RunConfig.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            top.append(row(name, field))
        else:
            sections += [
                "",
                f"## {name}",
                "",
                first_paragraph(section),
                "",
                *HEADER,
                *rows(section, _prefix(name, field)),
            ]
    return "\n".join([INTRODUCTION, "## The run itself", "", *HEADER, *top, *sections]) + "\n"


def rows(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """The rows of a section and of the sections and lists inside it."""
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        yield row(prefix + name, field)
        if inner is not None:
            yield from rows(inner, prefix + _prefix(name, field))


def _prefix(name: str, field: FieldInfo) -> str:
    return f"{name}.N." if get_origin(field.annotation) is list else f"{name}."


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, by itself or in a list; None for a plain value."""
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def row(name: str, field: FieldInfo) -> str:
    """One line of a table."""
    cells = [f"`{name}`", type_name(field.annotation, bounds(field)), default(field), one_line(field.description or "")]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def type_name(annotation: Any, limits: str = "") -> str:
    """A type in words, with the limits of its values."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return "list"
    if get_origin(annotation) is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join("null" if kind is type(None) else type_name(kind, limits) for kind in get_args(annotation))
    return TYPE_NAMES[annotation] + limits


def bounds(field: FieldInfo) -> str:
    """The limits of a number: " > 0"."""
    found = [
        f" {sign} {getattr(limit, name)}" for limit in field.metadata for name, sign in BOUNDS if hasattr(limit, name)
    ]
    return ",".join(found)


def default(field: FieldInfo) -> str:
    """A default as YAML has it."""
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "`null`"
    if field.default == "":
        return "empty"
    if isinstance(field.default, BaseModel):
        return "as below"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def first_paragraph(section: type[BaseModel]) -> str:
    """What a section is, from its docstring."""
    return one_line((section.__doc__ or "").split("\n\n")[0])


def one_line(text: str) -> str:
    """Text with its line breaks taken out."""
    return " ".join(text.split())


if __name__ == "__main__":
    sys.stdout.buffer.write(page().encode())
