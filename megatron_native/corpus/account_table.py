"""A stage's account as a table to read, or as JSON."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from megatron_native.corpus.stage import StageResult


def print_account(result: StageResult, as_json: bool = False) -> None:
    """Print where every record went, on stdout."""
    if as_json:
        print(json.dumps(result.manifest, ensure_ascii=False, indent=2))
        return
    counts = result.manifest["counts"]
    stage = result.manifest["stage"]
    if result.skipped:
        print(f"{stage}: {result.output} is done already with the same inputs and settings; skipped")
    table = Table(title=f"{stage} → {result.output}", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("records", justify="right")
    table.add_row("read", f"{counts['read']:,}")
    languages = ", ".join(f"{language} {count:,}" for language, count in counts["kept_by_language"].items())
    table.add_row(f"kept ({languages})" if languages else "kept", f"{counts['kept']:,}")
    for kind in ("dropped", "quarantined"):
        for reason, count in counts[kind].items():
            table.add_row(f"{kind}: {reason}", f"{count:,}")
    for edit, count in counts.get("edits", {}).items():
        table.add_row(f"edited: {edit}", f"{count:,}")
    console = Console(width=100, highlight=False)
    console.print(table)
    if "damaged file" in counts["quarantined"]:
        print("WARNING: a compressed file is damaged; what came before the damage was read. See _quarantine/.")
