"""A YAML file that a user gave, as a mapping, or an error that says which file and why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_native.errors import UserError


def read_mapping(path: Path | None, example: str, option: str = "") -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty one, and so is no file.

    Args:
        path: the file, or None where none was given.
        example: what a line of it looks like.
        option: by which it was given, for the error.

    Raises:
        UserError: the file can't be read, is no YAML, or holds something else.
    """
    if path is None:
        return {}
    import yaml

    name = f"{option} {path}" if option else str(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{name} can't be read: {error.strerror or error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict | None):
        raise UserError(f"{name}: it must be a mapping, such as '{example}', and is {type(values).__name__}.")
    return values or {}
