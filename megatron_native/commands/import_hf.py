"""`megatron-native import-hf`: Hugging Face folder → checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_native.commands.sizes import add_workers, parse_size

SUMMARY = """Convert a Hugging Face folder (config.json, safetensors, tokenizer) to a Megatron distributed checkpoint.

No bit of any weight changes; no GPU is needed. Tokenizer, configuration and the logits of fixed Arabic and English
texts travel with the checkpoint, so that training, export and verification need nothing else. What is broken off is taken
up again by the same command."""

EXAMPLES = """\
  megatron-native import-hf --hf models/Meta-Llama-3-8B --output checkpoints/llama3-8b
  megatron-native import-hf --hf models/Meta-Llama-3-70B --output checkpoints/llama3-70b"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--hf", type=Path, required=True, metavar="DIR", help="Hugging Face folder to read")
    parser.add_argument("--output", type=Path, required=True, metavar="CKPT", help="checkpoint folder to make")
    parser.add_argument(
        "--no-reference-logits",
        dest="reference_logits",
        action="store_false",
        help="don't run the model through transformers (FP32, on the CPU; one layer at a time where memory is short) to record "
        "logits",
    )
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        help="size of a file of tensors in the checkpoint, such as 1GB (default: 2GiB)",
    )
    add_workers(parser)


def run(arguments: argparse.Namespace) -> int:
    """Import, and say what was made."""
    from megatron_native.checkpoint.import_hf import import_hf

    result = import_hf(
        arguments.hf,
        arguments.output,
        reference_logits=arguments.reference_logits,
        max_file_bytes=parse_size(arguments.max_shard_size) if arguments.max_shard_size else None,
        workers=arguments.workers,
    )
    if result.skipped:
        print(f"{result.checkpoint} was imported from these files already; nothing to do")
        return 0
    print(f"{result.checkpoint}: {result.tensors} tensors, {result.bytes / 1e9:.2f} GB")
    if result.not_carried:
        print(f"not carried along (neither weights, configuration nor tokenizer): {', '.join(result.not_carried)}")
    return 0
