"""`megatron-native dedup`: documents → documents without exact and near copies."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_native.commands.stage_arguments import add_execution, add_reading, execution_of, reading_of

SUMMARY = "Take out exact and near copies (MinHash) over all inputs at once; list what is a copy of what."
EXAMPLES = """\
  megatron-native dedup --input work/clean --output work/dedup
  megatron-native dedup --input corpus_a/ corpus_b/ --output work/dedup --threshold 0.85 --keep newest
  megatron-native dedup --input work/clean --output work/dedup --repeated-lines 20    also lines that a site repeats
  megatron-native dedup --input work/clean --output work/dedup --explain 2015-07-21-17   whose copy is this document?
  megatron-native dedup --input new_crawl/ --output work/dedup2 --against work/dedup  also copies of an earlier corpus
  megatron-native dedup --bands 20 --rows 5 --curve                                   which pairs are looked at

Copies are found in the matching view: diacritics, tatweel, alef forms, digits and punctuation make no difference."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--input", nargs="+", default=[], metavar="PATH", help="files, folders or globs; copies are found across all"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="new folder for what stays")
    parser.add_argument(
        "--against", nargs="+", type=Path, default=[], metavar="FOLDER",
        help="earlier dedup folders (made with --keep-signatures): what is a copy of a document there leaves",
    )  # fmt: skip
    near = parser.add_argument_group("near copies")
    near.add_argument(
        "--threshold", type=float, default=0.8, metavar="X", help="Jaccard similarity of near copies (0.8)"
    )
    near.add_argument("--shingle-words", type=int, default=5, metavar="N", help="words a shingle (5)")
    near.add_argument("--bands", type=int, default=14, metavar="N", help="bands of the search (14)")
    near.add_argument("--rows", type=int, default=8, metavar="N", help="rows a band (8)")
    near.add_argument("--curve", action="store_true", help="print which pairs these bands and rows look at, and stop")
    policy = parser.add_argument_group("who stays")
    policy.add_argument(
        "--keep", default="longest", metavar="POLICY", help="longest, newest or first of a cluster (longest)"
    )
    policy.add_argument(
        "--prefer", nargs="+", default=[], metavar="SOURCE", help="sites or input folders that stay before others"
    )
    policy.add_argument("--date-key", default="date", metavar="KEY", help="metadata key for --keep newest (date)")
    policy.add_argument(
        "--repeated-lines",
        type=int,
        default=0,
        metavar="N",
        help="take out short lines that N documents of a site have (0: off)",
    )
    parser.add_argument("--explain", metavar="ID", help="show what was decided on a document in --output, and why")
    parser.add_argument(
        "--output-format", default="jsonl.zst", metavar="FORMAT", help="jsonl.zst or parquet (jsonl.zst)"
    )
    parser.add_argument("--memory-bytes", type=int, default=4 << 30, metavar="N", help="what one task may hold (4 GiB)")
    parser.add_argument(
        "--keep-signatures",
        action="store_true",
        help="leave them in _signatures/ for a later --against, about 250 bytes a document",
    )
    add_reading(parser)
    add_execution(parser)


def run(arguments: argparse.Namespace) -> int:
    """Deduplicate and print the account."""
    from megatron_native.corpus.dedup import DedupSettings, dedup
    from megatron_native.errors import UserError

    settings = DedupSettings(
        arguments.shingle_words, arguments.bands, arguments.rows, arguments.threshold, arguments.keep, tuple(arguments.prefer),
        arguments.date_key, arguments.repeated_lines, arguments.output_format, arguments.part_bytes, reading_of(arguments),
    )  # fmt: skip
    settings.check()
    if arguments.curve:
        _print_curve(settings.minhash().s_curve(), settings.bands, settings.rows)
        return 0
    if arguments.output is None:
        raise UserError("--output FOLDER says where the documents that stay go.")
    if arguments.explain is not None:
        from megatron_native.corpus.explain import explain, print_explanation

        print_explanation(explain(arguments.output, arguments.explain), arguments.json)
        return 0
    if not arguments.input:
        raise UserError("--input names the files, folders or globs to read.")
    from megatron_native.corpus.account_table import print_account

    result = dedup(
        arguments.input,
        arguments.output,
        settings,
        execution_of(arguments),
        arguments.memory_bytes,
        arguments.keep_signatures,
        arguments.against,
    )
    return print_account(result, arguments.json)


def _print_curve(curve: list[tuple[float, float]], bands: int, rows: int) -> None:
    print(f"{bands} bands of {rows} rows: a pair of this Jaccard similarity is compared with this probability")
    for similarity, probability in curve:
        print(f"  {similarity:.2f}  {probability:6.1%}  {'█' * round(40 * probability)}")
