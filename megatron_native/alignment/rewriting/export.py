"""Accepted rewrites in the layout in which the paper's were released: ten JSONL files of `origin` and `rewritten`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from megatron_native.alignment.rewriting.chunks import REWRITTEN
from megatron_native.alignment.rewriting.joining import DECISIONS
from megatron_native.documents.inputs import expand_inputs
from megatron_native.errors import UserError
from megatron_native.manifest import build_manifest, file_entry, read_manifest, write_json

FOLDER = "alignment_data_split"
FILES = 10


def export_pairs(rewritten: Path, target: Path) -> dict[str, Any]:
    """Write `alignment_data_split/alignment_data_{0..9}.jsonl` below `target`.

    A line is `{"origin", "rewritten"}` of one passage that was rewritten and accepted; `origin` is what the worker was
    given, after the rules. Pairs are dealt to the files in turn, so that the files are alike.

    Args:
        rewritten: a finished rewrite stage.
        target: folder to write into; what is there of an earlier export is replaced.

    Returns:
        The manifest, which is written beside the files.

    Raises:
        UserError: the stage isn't finished, or kept no decisions.
    """
    manifest = read_manifest(rewritten / "manifest.json")
    if manifest is None or manifest["stage"] != "rewrite":
        raise UserError(f"{rewritten} is no finished rewrite stage (its manifest.json); run rewrite to its end first.")
    decisions = rewritten / DECISIONS
    if not decisions.is_dir():
        raise UserError(
            f"{rewritten} has no decisions to export: nothing was rewritten, or rules ran without gates (--no-gates)."
        )
    folder = target / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"alignment_data_{number}.jsonl" for number in range(FILES)]
    partials = [path.with_name(path.name + ".partial") for path in paths]
    read = exported = 0
    counts = [0] * FILES
    with ExitStack() as stack:
        files = [stack.enter_context(open(partial, "w", encoding="utf-8")) for partial in partials]
        for decision in decisions_of(rewritten):
            read += 1
            if decision["state"] != REWRITTEN:
                continue
            pair = {"origin": decision["origin"], "rewritten": decision["rewritten"]}
            files[exported % FILES].write(json.dumps(pair, ensure_ascii=False) + "\n")
            counts[exported % FILES] += 1
            exported += 1
    for partial, path in zip(partials, paths):
        partial.replace(path)
    account = {"read": read, "kept": exported, "dropped": {"not rewritten": read - exported}, "quarantined": {}}
    result = build_manifest(
        "export-pairs", {"files": FILES}, [file_entry(rewritten / "manifest.json", folder)],
        [file_entry(path, folder, records) for path, records in zip(paths, counts)], account,
    )  # fmt: skip
    write_json(folder / "manifest.json", result)
    return result


def decisions_of(rewritten: Path) -> Any:
    """Every decision of a rewrite stage, in the order of its parts."""
    import io

    import orjson
    import zstandard

    for path in expand_inputs([str(rewritten / DECISIONS)]):
        with open(path, "rb") as file:
            reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            for line in io.BufferedReader(reader, 1 << 20):
                yield orjson.loads(line)
