"""A file that a command writes where the user said: beside its place and renamed there, or an error that says why not."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_native.errors import UserError


def write_file(path: Path, text: str) -> None:
    """Write a text in UTF-8; lone surrogates are written as escapes.

    Raises:
        UserError: the place can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".partial")
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}; choose another place.") from error
