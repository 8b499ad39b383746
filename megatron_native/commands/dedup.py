"""`megatron-native dedup`: exact and near copies out."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "Take exact and near copies out of documents, over all inputs at once; which is a copy of which is written down."
EXAMPLES = """\
  megatron-native dedup --input cleaned/ --output deduped/
  megatron-native dedup --input cleaned/ other_corpus/ --output deduped/ --threshold 0.85"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="stage folders, files or quoted globs")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="stage folder to write")
    parser.add_argument(
        "--threshold", type=float, default=0.8, metavar="J", help="Jaccard similarity of near copies (default: 0.8)"
    )
    parser.add_argument("--shingle-words", type=int, default=5, metavar="N", help="words a shingle (default: 5)")
    parser.add_argument("--bands", type=int, default=14, help="bands of the signature (default: 14)")
    parser.add_argument("--rows", type=int, default=8, help="rows a band (default: 8)")
    parser.add_argument("--text-key", default="text", metavar="KEY", help="key or column of the text (default: text)")
    parser.add_argument("--id-key", default="id", metavar="KEY", help="key or column of the id (default: id)")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Run the stage and print its account."""
    from megatron_native.corpus.account_table import print_account
    from megatron_native.corpus.dedup import DedupSettings, dedup

    settings = DedupSettings(
        arguments.shingle_words, arguments.bands, arguments.rows, arguments.threshold, arguments.text_key, arguments.id_key
    )
    print_account(dedup(arguments.input, arguments.output, settings), arguments.json)
    return 0
