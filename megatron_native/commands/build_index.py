"""`megatron-native build-index`: the sequence indices of a run, made before any GPU is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "Build the sequence indices that a run will need, without GPUs: those of large datasets are kept and mapped."
EXAMPLES = """\
  megatron-native build-index --config run.yaml
  megatron-native build-index --config run.yaml data.index_cache=/local/index_cache

Small datasets need none. On nodes with disks of their own, run it once a node; training does it otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file's")


def run(arguments: argparse.Namespace) -> int:
    """Plan the run from where it is, and build what each of its phases begins with."""
    import time

    from megatron_native.config.load import load_run_config
    from megatron_native.training.data_source import build_indices

    began = time.monotonic()
    run_config = load_run_config(arguments.config, arguments.overrides)
    built = build_indices(run_config, print)
    print(f"{built} datasets ready in {time.monotonic() - began:.0f} s")
    return 0
