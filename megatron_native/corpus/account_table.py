"""The account of a stage, as a table on the terminal or as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_native.corpus.stage import StageResult
from megatron_native.errors import EXIT_REQUEUE

_SHOWN_FILES = 5


def print_account(result: StageResult, as_json: bool = False) -> int:
    """Print where every record went, on stdout; on stderr what a user should look at.

    Returns:
        The exit code: 0, or 75 when other tasks of a job array have still to do their share.
    """
    if result.missing:
        print(f"{result.output}: this task's share is done; {result.missing}.")
        return EXIT_REQUEUE
    for warning in warnings_of(result.manifest):
        print(f"WARNING: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(result.manifest, ensure_ascii=False, indent=2))
        return 0
    manifest, counts = result.manifest, result.manifest["counts"]
    place = os.path.relpath(result.output)
    done = "is done already with the same inputs and settings; skipped" if result.skipped else "is done"
    print(f"{manifest['stage']}: {place} {done}")
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("read", f"{counts['read']:,}")
    table.add_row("kept", f"{counts['kept']:,}")
    read_by_language = counts.get("read_by_language", {})
    for language, count in counts["kept_by_language"].items():
        of = read_by_language.get(language)
        rate = f" ({100 * count / of:.1f} % of {of:,})" if of else ""
        table.add_row(f"  in {language}", f"{count:,}{rate}")
    for kind in ("dropped", "quarantined"):
        for reason, count in counts[kind].items():
            table.add_row(f"{kind}: {reason}", f"{count:,}")
    table.add_row("text read → kept", f"{counts['bytes_read'] / 1e6:,.2f} → {counts['bytes_kept'] / 1e6:,.2f} MB")
    for edit, count in counts["edits"].items():
        table.add_row(f"edited: {edit}", f"{count:,}")
    console = Console(width=100, highlight=False)
    console.print(table)
    return 0


def warnings_of(manifest: Mapping[str, Any]) -> list[str]:
    """What is no error and yet is seldom meant: damaged or empty files, nothing kept."""
    counts = manifest["counts"]
    warnings = []
    if damaged := counts["quarantined"].get("damaged file"):
        warnings.append(f"{damaged} input file(s) are damaged; what came before the damage was read. See _quarantine/.")
    empty = [entry["path"] for entry in manifest["inputs"] if entry.get("records") == 0]
    if empty:
        shown = ", ".join(empty[:_SHOWN_FILES]) + (" …" if len(empty) > _SHOWN_FILES else "")
        warnings.append(f"{len(empty)} input file(s) hold no record: {shown}.")
    if counts["read"] and not counts["kept"]:
        warnings.append("no document was kept; the reasons are in the table (and in the manifest's counts).")
    return warnings
