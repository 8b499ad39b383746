"""`megatron-native export-hf`: checkpoint → Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_native.commands.sizes import add_workers, parse_size

SUMMARY = """Write a checkpoint, imported or trained at whatever layout, as a Hugging Face folder.

The checkpoint is all that is needed: no GPU, no source folder. An imported checkpoint comes back bit for bit.
What is broken off is taken up again by the same command."""

EXAMPLES = """\
  megatron-native export-hf --checkpoint runs/phase1/checkpoints/step_00010000 --output export/phase1
  megatron-native export-hf --checkpoint CKPT --output DIR --dtype bfloat16 --max-shard-size 10GB"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="CKPT", help="checkpoint folder to read")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="Hugging Face folder to make")
    parser.add_argument(
        "--dtype",
        metavar="DTYPE",
        help="float32, bfloat16, …: every tensor's dtype (default: the one it was imported in)",
    )
    parser.add_argument(
        "--verify", action="store_true",
        help="compare what was written, now or earlier, with the checkpoint, and its logits with those of the import; the "
        "report stays there",
    )  # fmt: skip
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="size of a safetensors file, such as 5GB (the default)"
    )
    add_workers(parser)


def run(arguments: argparse.Namespace) -> int:
    """Export, and say what was made."""
    from megatron_native.checkpoint.export_hf import export_hf

    result = export_hf(
        arguments.checkpoint,
        arguments.output,
        dtype=arguments.dtype,
        max_shard_bytes=parse_size(arguments.max_shard_size),
        verify=arguments.verify,
        workers=arguments.workers,
    )
    if result.skipped:
        done = "it was verified now" if result.verified_in_place else "nothing to do"
        print(f"{result.folder} was exported from this checkpoint already; {done}")
        return 0
    files = "1 file" if result.files == 1 else f"{result.files} files"
    print(f"{result.folder}: {result.tensors} tensors, {result.bytes / 1e9:.2f} GB in {files}")
    return 0
