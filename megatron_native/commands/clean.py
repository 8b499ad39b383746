"""`megatron-native clean`: raw dumps to normalised, filtered documents."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

SUMMARY = "Turn raw dumps into normalised, filtered documents, one folder per language, with an account of every record."
EXAMPLES = """\
  megatron-native clean --input dumps/ --output cleaned/
  megatron-native clean --input 'crawl/*.jsonl.gz' extra.parquet --output cleaned/ --languages ar --workers 8
  megatron-native clean --input books/ --text-unit paragraph --preset none --output cleaned/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH",
        help="files, quoted globs or folders: .jsonl (.gz, .zst, .bz2), .parquet, .txt",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="stage folder to write")
    parser.add_argument("--preset", default="msa", help="quality filters: msa (default), none, or a YAML file")
    parser.add_argument("--languages", default="ar,en", metavar="LIST", help="languages to keep (default: ar,en)")
    parser.add_argument("--text-key", default="text", metavar="KEY", help="key or column of the text (default: text)")
    parser.add_argument("--id-key", default="id", metavar="KEY", help="key or column of the id (default: id)")
    parser.add_argument(
        "--text-unit", default="file", choices=("file", "line", "paragraph"), help="what a document of a .txt file is"
    )
    parser.add_argument("--tatweel", default="remove", choices=("remove", "keep"), help="policy for tatweel (ـ)")
    parser.add_argument(
        "--max-line-bytes", type=int, default=64 << 20, metavar="N", help="longer lines are quarantined (64 MiB)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a core)"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Run the stage and print its account."""
    from megatron_native.corpus.account_table import print_account
    from megatron_native.corpus.clean import CleanSettings, clean

    settings = CleanSettings(
        arguments.preset, tuple(filter(None, arguments.languages.split(","))), arguments.text_key, arguments.id_key,
        arguments.text_unit, arguments.tatweel, arguments.max_line_bytes,
    )  # fmt: skip
    print_account(clean(arguments.input, arguments.output, settings, arguments.workers), arguments.json)
    return 0
