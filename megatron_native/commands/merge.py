"""`megatron-native merge`, also `tools/merge_datasets.py`: many indexed datasets → one."""

from __future__ import annotations

import argparse
import os

SUMMARY = """Join Megatron indexed datasets into one, in constant memory, whether there are two or thousands.

The inputs must be whole, of one dtype, and made with one tokenizer and one document policy. Their tables of document ids
and their accounts are joined too."""

EXAMPLES = """\
  megatron-native merge --input 'shards/part_*' --output-prefix data/all
  megatron-native merge --input shards/ --output-prefix data/all --workers 8
  tools/merge_datasets.py --input data/news_text_document data/books_text_document --output-prefix data/both
  megatron-native merge --input old/uint16 new/int32 --output-prefix data/both --dtype int32

Folders and globs are sorted as people count (part2 before part10); several words keep their order. Killed, the same
command begins anew; finished, it is skipped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--input", nargs="+", required=True, metavar="PREFIX",
                        help="datasets by their path without .bin/.idx, quoted globs, or folders (all below)")
    parser.add_argument("--output-prefix", required=True, metavar="PREFIX", help="the result: PREFIX.bin, PREFIX.idx, …")
    parser.add_argument("--dtype", choices=["uint16", "int32", "int64"], help="widen all ids to this type")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="threads that copy (default: the cores there are)")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Merge, and say what was made of what."""
    import json
    import sys

    from megatron_native.data.merge_datasets import merge_datasets

    def say(line: str) -> None:
        print(line, file=sys.stderr if arguments.json else sys.stdout)

    merged = merge_datasets(arguments.input, arguments.output_prefix, arguments.dtype, arguments.workers, say)
    if arguments.json:
        print(json.dumps(merged.manifest, ensure_ascii=False, indent=2))
    elif not merged.skipped:
        print(merged.summary())
    return 0
