"""`megatron-native qualify`: is this kind of GPU fit to train what the run asks for?"""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = (
    "Check on one node what a run asks of its GPUs, rung by rung, and keep the record that a start at scale wants."
)
EXAMPLES = """\
  megatron-native qualify --config run.yaml                       one GPU, or the CPU
  megatron-native qualify --config run.yaml --nproc 8             a node
  torchrun --nnodes 2 --nproc-per-node 8 ... -m megatron_native qualify --config run.yaml
  megatron-native qualify --config run.yaml --rungs logits,masters

Exit codes: 0 no rung failed, 1 one did, 2 the configuration is wrong. What can't be tried here is listed as not run, never
as passed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run's YAML file")
    parser.add_argument(
        "--nproc", type=int, default=None, metavar="N",
        help="start N processes on this machine with torchrun; without it this process is one rank (torchrun's, or alone)",
    )  # fmt: skip
    parser.add_argument("--rungs", metavar="A,B", help="only these rungs (all)")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="where the record is kept (a file in the user's cache)"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON on stdout, the table on stderr")
    parser.add_argument("--keep", action="store_true", help="keep the files of the ladder's runs, in run_dir")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file's")


def run(arguments: argparse.Namespace) -> int:
    """Check the configuration, then start torchrun or take part as one rank."""
    from megatron_native.config.load import load_run_config
    from megatron_native.training.qualify.ladder import chosen_rungs
    from megatron_native.training.qualify.start import launch, run_rank

    if arguments.nproc is None:
        return run_rank(
            arguments.config, arguments.overrides, arguments.rungs, arguments.record, arguments.keep, arguments.json
        )
    load_run_config(arguments.config, arguments.overrides, files=False)
    chosen_rungs(arguments.rungs)
    options = ["--config", str(arguments.config)]
    for name in ("rungs", "record"):
        if getattr(arguments, name) is not None:
            options += [f"--{name}", str(getattr(arguments, name))]
    options += [f"--{name}" for name in ("json", "keep") if getattr(arguments, name)]
    return launch(["-m", "megatron_native", "qualify", *options, *arguments.overrides], arguments.nproc)
