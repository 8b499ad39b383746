"""`megatron-native clean`: raw dumps → cleaned documents, with an account of every line."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_native.commands.stage_arguments import add_execution, add_reading, execution_of, reading_of

SUMMARY = "Clean raw dumps: normalise, strip markup and boilerplate, filter by quality, split by language."
EXAMPLES = """\
  megatron-native clean --input dump/ --output work/clean
  megatron-native clean --input 'dump/*.jsonl.gz' more.parquet --output work/clean --preset msa --workers 8
  megatron-native clean --input news.zip --text-key content --id-key url --output work/clean
  megatron-native clean --input dump/ --preview          what would be kept and refused, nothing is written

Presets: msa (standard Arabic from the web), dialect (forums, social media), classical (heritage books), none (keep all
that can be read). Each keeps buckets in folders of their own: ar, ar-dialect, ar-latn (Arabic in Latin letters), en.
A killed run goes on where it was."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="files, folders or globs")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="new folder for the cleaned documents")
    parser.add_argument(
        "--preset", default="msa", metavar="NAME|YAML", help="msa, dialect, classical, none or a file (msa)"
    )
    parser.add_argument(
        "--languages", default="", metavar="LIST", help="buckets to keep, such as ar,en (all of the preset)"
    )
    parser.add_argument("--tatweel", default="remove", choices=("remove", "keep"), help="elongation marks (remove)")
    parser.add_argument(
        "--no-pii-masking", action="store_true", help="leave e-mail addresses, phone and id numbers as they are"
    )
    parser.add_argument(
        "--output-format", default="jsonl.zst", metavar="FORMAT", help="jsonl.zst or parquet (jsonl.zst)"
    )
    parser.add_argument(
        "--preview", action="store_true", help="show keep rates and samples of what is refused; write nothing"
    )
    parser.add_argument("--preview-documents", type=int, default=2000, metavar="N", help="documents looked at (2000)")
    add_reading(parser)
    add_execution(parser)


def run(arguments: argparse.Namespace) -> int:
    """Clean and print the account."""
    from megatron_native.corpus.clean import CleanSettings, clean
    from megatron_native.errors import UserError

    languages = tuple(dict.fromkeys(filter(None, map(str.strip, arguments.languages.split(",")))))
    settings = CleanSettings(
        arguments.preset, languages, arguments.tatweel, not arguments.no_pii_masking, arguments.output_format,
        arguments.part_bytes, reading_of(arguments),
    )  # fmt: skip
    if arguments.preview:
        from megatron_native.corpus.preview import preview, print_preview

        print_preview(preview(arguments.input, settings, arguments.preview_documents), arguments.json)
        return 0
    if arguments.output is None:
        raise UserError("--output FOLDER says where the cleaned documents go (or --preview, to write nothing).")
    from megatron_native.corpus.account_table import print_account

    return print_account(clean(arguments.input, arguments.output, settings, execution_of(arguments)), arguments.json)
