"""`megatron-native average`: checkpoints of one model → their average."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = """Average checkpoints of one model, oldest first, into one of weights only, which exports and starts a run.

FP32 masters are averaged where the checkpoints have them. One tensor at a time is in memory; no GPU is needed."""

EXAMPLES = """\
  megatron-native average --checkpoints RUN/checkpoints/step_00009000 RUN/checkpoints/step_00010000 --output CKPT
  megatron-native average --checkpoints A B C --output CKPT --method ema --decay 0.8
  megatron-native average --checkpoints A B --output CKPT --weights 1 3"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--checkpoints", type=Path, nargs="+", required=True, metavar="CKPT", help="two or more, oldest first"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="CKPT", help="checkpoint folder to make")
    parser.add_argument(
        "--method", choices=("uniform", "ema"), default="uniform", help="all alike (default), or the later ones more"
    )
    parser.add_argument(
        "--decay", type=float, default=0.9, metavar="D", help="with ema: what is kept of the average so far (0.9)"
    )
    parser.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="how much each counts, in proportion, instead of a method"
    )
    parser.add_argument(
        "--dtype", metavar="DTYPE", help="float32, bfloat16 or float16 (default: that of the last checkpoint's weights)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Average, and say what was made of what."""
    from megatron_native.checkpoint.average import average
    from megatron_native.checkpoint.disk_errors import said_of_disk

    with said_of_disk("the average"):
        result = average(
            arguments.checkpoints, arguments.output, method=arguments.method, decay=arguments.decay,
            weights=arguments.weights, dtype=arguments.dtype,
        )  # fmt: skip
    if result.skipped:
        print(f"{result.checkpoint} is the average of these checkpoints already; nothing to do")
        return 0
    for folder, share, own in zip(arguments.checkpoints, result.weights, result.masters, strict=True):
        print(f"{share:.4f} × {folder} ({'FP32 masters' if own else 'weights'})")
    print(f"{result.checkpoint}: {result.tensors} tensors, {result.bytes / 1e9:.2f} GB, weights only")
    return 0
