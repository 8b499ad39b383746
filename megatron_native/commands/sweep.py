"""`megatron-native sweep`: short runs at several peak learning rates, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = """Find the peak learning rate by trial: a short pretrain run for each rate, then a table of their losses.

Trials that are done are skipped, so the same command goes on from where it was stopped, and further rates join the table."""

EXAMPLES = """\
  megatron-native sweep --config run.yaml --lr 1e-5 3e-5 1e-4 --steps 200
  megatron-native sweep --config run.yaml --lr 3e-5 1e-4 3e-4 --steps 40 --nproc 2 --by ar --output sweeps/lr
  megatron-native sweep --config run.yaml --lr 1e-4 1e-3 --steps 100 --model small/config.json data.seq_length=512

Ends with code 0, also when a rate diverged or failed (the table says so); 2 when the configuration is wrong; 75 when it
was told to stop."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run's YAML file")
    parser.add_argument("--lr", nargs="+", required=True, metavar="RATE", help="peak learning rates to try")
    parser.add_argument("--steps", type=int, required=True, metavar="N", help="optimizer steps of each trial")
    parser.add_argument("--nproc", type=int, metavar="N", help="processes of each trial (default: one)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the sweep (default: sweep in the run folder)")
    parser.add_argument(
        "--model", type=Path, metavar="CONFIG",
        help="a Hugging Face config.json or its folder: a small model of that shape, with random weights, stands for the model",
    )  # fmt: skip
    parser.add_argument("--by", metavar="SET", help="held-out set that decides (default: the mean of all sets)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON; what happens goes to stderr")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file's")


def run(arguments: argparse.Namespace) -> int:
    """Try the rates, print the table."""
    import json
    import sys

    from megatron_native.errors import UserError
    from megatron_native.training.sweep import SweepSettings, run_sweep

    # overrides may stand right behind the rates, where the parser takes them for more of these
    overrides = [*arguments.overrides, *(word for word in arguments.lr if "=" in word)]
    words = [word for word in arguments.lr if "=" not in word]
    try:
        rates = [float(word) for word in words]
    except ValueError:
        raise UserError(f"--lr {' '.join(words)}: learning rates are numbers, such as 1e-5 3e-5 1e-4.") from None
    settings = SweepSettings(
        arguments.config, rates, arguments.steps, overrides, arguments.nproc, arguments.output, arguments.model, arguments.by,
    )  # fmt: skip
    found, code = run_sweep(settings, lambda line: print(line, file=sys.stderr if arguments.json else None, flush=True))
    print(json.dumps(found.as_json(), ensure_ascii=False, indent=2) if arguments.json else found.table())
    return code
