"""The account of a rewriting on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from megatron_native.alignment.rewriting.cost import Prices, rows_of, warnings_of
from megatron_native.corpus.account_table import print_account
from megatron_native.corpus.stage import StageResult


def print_rewriting(result: StageResult, as_json: bool, prices: Prices | None = None) -> int:
    """Print the account and the figures of a rewrite stage; the exit code as `print_account` gives it."""
    figures = result.manifest.get("rewriting", {})
    for warning in warnings_of(figures) if "passages" in figures else []:
        print(f"WARNING: {warning}", file=sys.stderr)
    code = print_account(result, as_json)
    if code or as_json:
        return code
    if "passages" in figures:
        print_rows(rows_of(figures, prices))
        return code
    rows = [(f"documents {state}", f"{count:,}") for state, count in figures["documents"].items() if count]
    rows += [(f"  refused by {gate}", f"{count:,}") for gate, count in figures["refused_by"].items()]
    if pace := figures["megabytes_per_processor_second"]:
        rows.append(("text a second of processor time", f"{pace:,.1f} MB"))
    print_rows(rows)
    return code


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Two columns, the second to the right."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    Console(width=110, highlight=False).print(table)
