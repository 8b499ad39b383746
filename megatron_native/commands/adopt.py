"""`megatron-native adopt`: a Megatron-LM checkpoint → a checkpoint of this project."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = """Bring in a Megatron-LM checkpoint of the torch_dist format: it then exports, and a run goes on from it.

Weights are checked by name and shape against the model's config.json. Optimizer state, iteration and consumed samples come
along; where the tensors' files can stay as they are, they are hard-linked and take no more space. No GPU, no Megatron-LM."""

EXAMPLES = """\
  megatron-native adopt --checkpoint /old/run/checkpoints --hf /models/Llama-3.1-8B --output checkpoints/adopted
  megatron-native adopt --checkpoint /old/run/checkpoints/iter_0005000 --hf DIR --output CKPT --weights-only"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="what --save named, or one iter_XXXXXXX in it"
    )
    parser.add_argument(
        "--hf", type=Path, required=True, metavar="DIR", help="folder with the model's config.json and tokenizer files"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="CKPT", help="checkpoint folder to make")
    parser.add_argument(
        "--weights-only", action="store_true", help="leave optimizer, iteration and consumed samples behind"
    )


def run(arguments: argparse.Namespace) -> int:
    """Adopt, and say what came along and how to go on."""
    from megatron_native.checkpoint.adopt import adopt
    from megatron_native.checkpoint.disk_errors import said_of_disk

    with said_of_disk("the checkpoint"):
        result = adopt(arguments.checkpoint, arguments.hf, arguments.output, weights_only=arguments.weights_only)
    if result.skipped:
        print(f"{result.checkpoint} was adopted from {result.source} already; nothing to do")
        return 0
    how = "files linked" if result.linked else "written anew"
    print(f"{result.checkpoint}: {result.tensors} tensors, {result.bytes / 1e9:.2f} GB, {how}, from {result.source}")
    if result.elsewhere is None:
        print(f"weights only: start a run with model.checkpoint: {result.checkpoint}")
    else:
        old = result.elsewhere
        print(
            f"after step {old.steps:,}, {old.samples:,} samples, {old.tokens:,} tokens: go on with model.branch_from: "
            f"{result.checkpoint}"
        )
    return 0
