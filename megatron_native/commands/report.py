"""`megatron-native report`: what became of every record of a corpus run, as one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = """Make the Arabic data report of a corpus run: one HTML file that needs nothing else, and its figures as JSON.

The page shows the account of every record (kept, dropped for which reason, a copy, quarantined), languages and dialects,
lengths, diacritics, digits, tokens a word, sources, copies, texts to look at, and epochs of a token budget."""

EXAMPLES = """\
  megatron-native report --input work/clean work/dedup --output report.html
  megatron-native report --input work/clean work/dedup work/tokens --output report.html --tokenizer models/llama
  megatron-native report --input work/clean work/dedup work/tokens/ar_text_document work/tokens/en_text_document \\
      --output report.html --budget 20e9 --blend ar=0.8,en=0.2

Give every stage of the run: records are followed from one to the next by the files they handed on. The exit code is 1
when the account does not balance; the report is written nevertheless, and says what is wrong."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="what the stages wrote: folders of clean and dedup, prefixes of datasets or folders with them",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the HTML file; an older one is replaced"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go (default: beside it, as .json)")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="measure tokens a word with it: a Hugging Face folder, a tokenizer.json or a SentencePiece .model",
    )
    parser.add_argument(
        "--sample", type=int, default=2000, metavar="N", help="kept documents of each language that are measured (2000)"
    )
    parser.add_argument(
        "--budget", metavar="TOKENS", help="tokens of the training that is planned, such as 20e9 or 20B"
    )
    parser.add_argument("--blend", metavar="NAME=WEIGHT,…", help="weights of its datasets, such as ar=0.8,en=0.2")


def run(arguments: argparse.Namespace) -> int:
    """Gather, write both files, and say in one line what came out."""
    import json
    import sys

    from megatron_native.commands.output_file import write_file
    from megatron_native.corpus.report.budget import parse_blend, parse_tokens
    from megatron_native.corpus.report.gather import ReportSettings, gather
    from megatron_native.corpus.report.page import page
    from megatron_native.errors import EXIT_DONE, EXIT_FAILURE, UserError

    output: Path = arguments.output
    figures: Path = arguments.json or output.with_suffix(".json")
    if figures.absolute() == output.absolute():
        raise UserError(f"--json {figures} is the --output too; name two files, such as report.html and report.json.")
    for path in (output, figures):
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file, such as {path / 'report.html'}.")
    settings = ReportSettings(
        arguments.sample,
        arguments.tokenizer,
        parse_tokens(arguments.budget) if arguments.budget else None,
        parse_blend(arguments.blend) if arguments.blend else None,
    )
    report = gather(arguments.input, settings)
    write_file(output, page(report))
    write_file(figures, json.dumps(report.as_json(), ensure_ascii=False, indent=2) + "\n")
    for warning in report.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    totals = report.totals
    account = "the account is not complete" if totals is None else f"{totals.read:,} records read, {totals.kept:,} kept"
    verdict = "the account balances" if report.balances else "THE ACCOUNT DOES NOT BALANCE"
    print(
        f"{output}: {account}"
        + ("" if totals is None and report.balances else f"; {verdict}")
        + f" (figures: {figures})"
    )
    return EXIT_DONE if report.balances else EXIT_FAILURE
