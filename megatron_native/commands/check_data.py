"""`megatron-native check-data`: the check of a run's datasets, without the run."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = """Check the datasets of a run as its start does: whole, and made with the model's tokenizer. No GPU is needed.

The result is kept in data_check.json of the run folder, so that the run starts without checking again."""

EXAMPLES = """\
  megatron-native check-data --config run.yaml
  megatron-native check-data --config run.yaml --full
  megatron-native check-data --config run.yaml --json data.blend.0.prefix=tokens/new_text_document

Ends with code 0 when all is fine, 2 when something is wrong."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run's YAML file")
    parser.add_argument("--full", action="store_true", help="every byte of .bin too, against the manifest's checksums")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file's")


def run(arguments: argparse.Namespace) -> int:
    """Check, print a table, and return 0; what is wrong is a `UserError`."""
    import json

    from megatron_native.config.load import load_run_config
    from megatron_native.config.presets import replay_remark
    from megatron_native.data.startup_check import check_datasets
    from megatron_native.training.shape import read_model

    mode = "full" if arguments.full else "sampled"
    configuration = load_run_config(arguments.config, [*arguments.overrides, f"data.verify={mode}"])
    found = check_datasets(configuration, read_model(configuration), lambda line: None, anew=True)
    remark = replay_remark(configuration)
    if arguments.json:
        facts = [{"prefix": str(prefix), **fact} for prefix, fact in found.items()]
        print(json.dumps({"datasets": facts, "remark": remark}, ensure_ascii=False, indent=2))
        return 0
    rows = [("dataset", "documents", "tokens", "dtype", "checked", "manifest", "seconds")]
    for prefix, fact in found.items():
        rows.append((
            str(prefix), f"{fact['documents']:,}", f"{fact['tokens']:,}", fact["dtype"], fact["mode"],
            "agrees" if fact["manifest"] else "none", f"{fact['seconds']:.1f}",
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if not all(fact["manifest"] for fact in found.values()):
        print("without a manifest the tokenizer, the counts and the checksums of a dataset are not known")
    if remark:
        print(remark)
    return 0
