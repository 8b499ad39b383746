"""`megatron-native verify`: is an indexed dataset whole, and what its manifest says it is?"""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = """Check Megatron indexed datasets: structure, ids, begin and end of documents, checksums, document ids, text.

Ends with code 0 when all is fine, 1 when something is faulty, 2 for a mistake in the command."""

EXAMPLES = """\
  megatron-native verify data/news_text_document
  megatron-native verify data/ --quick
  megatron-native verify 'foreign/part_*' --tokenizer models/Meta-Llama-3-8B --eod-id 128001 --json

The tokenizer's facts come from PREFIX.manifest.json; --tokenizer, --vocab-size and --eod-id say them of datasets without
one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("datasets", nargs="+", metavar="PREFIX",
                        help="datasets by their path without .bin/.idx, quoted globs, or folders (all below)")
    parser.add_argument("--quick", action="store_true", help="the whole index, but only a sample of .bin; no checksums")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR",
                        help="the tokenizer (default: the manifest's, where it is still there)")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="ids must lie below this (default: the manifest's)")
    parser.add_argument("--eod-id", type=int, metavar="N", help="every document must end with it (default: the manifest's)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Verify each dataset, print the findings, and return 1 where one is faulty."""
    import json

    from megatron_native.data.dataset_files import find_datasets
    from megatron_native.data.verify_dataset import Expectations, verify_dataset

    expected = Expectations(arguments.tokenizer, arguments.vocab_size, arguments.eod_id)
    passed, findings = True, []
    for prefix in find_datasets(arguments.datasets):
        found = verify_dataset(prefix, expected, arguments.quick)
        passed &= found.passed
        if arguments.json:
            findings.append(found.as_dict())
        else:
            print(found.summary(), flush=True)
    if arguments.json:
        print(json.dumps({"passed": passed, "datasets": findings}, ensure_ascii=False, indent=2))
    return 0 if passed else 1
