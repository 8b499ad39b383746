"""Options that all commands over documents share: how records are read, and where the work runs."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_native.corpus.stage import Execution
    from megatron_native.documents.records import ReadSettings


def add_reading(parser: argparse.ArgumentParser) -> None:
    """`--text-key` and its kin."""
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--text-key", default="text", metavar="KEY", help="key or column of the text; a.b reaches in (text)"
    )
    group.add_argument("--id-key", default="id", metavar="KEY", help="key or column of the id (id)")
    group.add_argument(
        "--text-unit",
        default="file",
        choices=("file", "line", "paragraph"),
        help="what a document of a .txt file is (file)",
    )
    group.add_argument(
        "--max-line-bytes",
        type=int,
        default=64 << 20,
        metavar="N",
        help="longer lines are quarantined, not held (64 MiB)",
    )
    group.add_argument(
        "--part-bytes", type=int, default=32 << 20, metavar="N",
        help="text that one task takes; files are cut or gathered to about that (32 MiB)",
    )  # fmt: skip


def add_execution(parser: argparse.ArgumentParser) -> None:
    """`--workers` and its kin."""
    group = parser.add_argument_group("where it runs (never changes the output)")
    group.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes (default: the cores there are)",
    )
    group.add_argument("--engine", default="local", metavar="NAME", help="local or ray (local)")
    group.add_argument(
        "--address", metavar="ADDRESS", help="of a running Ray cluster, or auto; all nodes must see the files"
    )
    group.add_argument(
        "--task-index", type=int, default=0, metavar="I", help="in a job array: which task this is, from 0"
    )
    group.add_argument(
        "--task-count", type=int, default=1, metavar="N", help="in a job array: how many tasks there are"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON instead of the table")


def reading_of(arguments: argparse.Namespace) -> ReadSettings:
    """The reading options as settings."""
    from megatron_native.documents.records import ReadSettings

    return ReadSettings(arguments.text_key, arguments.id_key, arguments.text_unit, arguments.max_line_bytes)


def execution_of(arguments: argparse.Namespace) -> Execution:
    """The execution options as settings."""
    from megatron_native.corpus.stage import Execution
    from megatron_native.engine.tasks import Share

    return Execution(
        arguments.workers, arguments.engine, arguments.address, Share(arguments.task_index, arguments.task_count)
    )
