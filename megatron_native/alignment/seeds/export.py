"""Seed pairs in the form in which the paper's were released: one JSON array of `origin` and `rewritten`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from megatron_native.alignment.seeds.candidates import read_lines
from megatron_native.documents.inputs import expand_inputs
from megatron_native.errors import UserError
from megatron_native.manifest import read_manifest


def export_seeds(seeds: Path, target: Path) -> int:
    """Write the pairs of a finished annotate stage to `target` as `[{"origin", "rewritten"}, …]`; how many there are.

    Raises:
        UserError: the stage isn't finished, or `target` is no `.json` file or can't be written.
    """
    manifest = read_manifest(seeds / "manifest.json")
    if manifest is None or manifest["stage"] != "annotate":
        raise UserError(f"{seeds} is no finished annotate stage (its manifest.json); run annotate to its end first.")
    if target.suffix != ".json":
        raise UserError(f"--export {target}: the pairs become one JSON array; give a name that ends in .json.")
    encoder, count = msgspec.json.Encoder(), 0
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(b"[")
            for path in expand_inputs([str(seeds)]) if manifest["counts"]["kept"] else []:
                for record in read_lines(path, dict[str, Any]):
                    pair = {"origin": record["origin"], "rewritten": record["rewritten"]}
                    file.write((b",\n" if count else b"\n") + encoder.encode(pair))
                    count += 1
            file.write(b"\n]\n")
        os.replace(partial, target)
    except OSError as error:
        raise UserError(f"--export {target} can't be written: {error.strerror or error}.") from None
    return count
