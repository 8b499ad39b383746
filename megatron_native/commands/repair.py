"""`megatron-native repair`: a damaged indexed dataset → what is whole of it."""

from __future__ import annotations

import argparse

SUMMARY = """Repair a Megatron indexed dataset: cut a .bin that lost its tail back to the last whole document, or make a
missing or damaged .idx again from a .bin whose documents end with a known id. What is lost is said exactly."""

EXAMPLES = """\
  megatron-native repair data/news_text_document
  megatron-native repair data/news_text_document --output-prefix data/news_whole
  megatron-native repair foreign/part_7 --eod-id 128001 --dtype int32 --in-place

Without --in-place nothing of the damaged dataset is changed. Verify the result with megatron-native verify."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("dataset", metavar="PREFIX", help="the dataset by its path without .bin/.idx")
    parser.add_argument("--output-prefix", metavar="PREFIX", help="the repaired dataset (default: PREFIX_repaired)")
    parser.add_argument("--in-place", action="store_true", help="change the dataset itself")
    parser.add_argument("--eod-id", type=int, metavar="N", help="the id documents end with (default: the manifest's)")
    parser.add_argument("--dtype", choices=["uint16", "int32", "int64"],
                        help="of the ids in .bin, for a new index (default: the manifest's or the old header's)")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Repair, and say what was lost."""
    import json
    from dataclasses import asdict

    from megatron_native.data.repair_dataset import repair_dataset

    prefix = arguments.dataset.removesuffix(".idx").removesuffix(".bin")
    repair = repair_dataset(prefix, arguments.output_prefix, arguments.in_place, arguments.eod_id, arguments.dtype)
    print(json.dumps(asdict(repair), ensure_ascii=False, indent=2) if arguments.json else repair.summary())
    return 0
