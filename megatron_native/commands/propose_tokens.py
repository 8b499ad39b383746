"""`megatron-native propose-tokens`: which tokens would shorten Arabic text most."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_native.errors import UserError

SUMMARY = """Propose new tokens for a byte-level BPE tokenizer (LLaMA 3, Qwen) from a sample of Arabic text.

BPE training that goes on from the tokenizer's own tokens; the list is what import-hf --add-tokens takes, as
lines of JSON with the number of tokens that each saves on the sample."""

EXAMPLES = """\
  megatron-native propose-tokens --tokenizer models/Meta-Llama-3-8B --sample sample.jsonl --count 8000 --output tokens.jsonl
  megatron-native import-hf --hf models/Meta-Llama-3-8B --output checkpoints/llama3-8b-ar --add-tokens tokens.jsonl"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="DIR", help="folder with a tokenizer.json, or the file"
    )
    parser.add_argument("--sample", type=Path, required=True, metavar="FILE", help="documents or plain text")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="how many tokens to propose at most")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the list there (default: print it)")


def run(arguments: argparse.Namespace) -> int:
    """Print the proposal."""
    import json

    from megatron_native.checkpoint.vocabulary import read_sample
    from megatron_native.commands.output_file import write_file
    from megatron_native.data.token_proposal import propose_tokens

    if arguments.count < 1:
        raise UserError(f"--count is {arguments.count}; ask for at least one token.")
    path = arguments.tokenizer / "tokenizer.json" if arguments.tokenizer.is_dir() else arguments.tokenizer
    found = propose_tokens(path, read_sample(arguments.sample), arguments.count)
    if not found:
        raise UserError(
            f"{arguments.sample} has no pair of tokens that occurs twice in Arabic text; give a larger sample."
        )
    lines = [json.dumps({"token": one.token, "saved": one.saved}, ensure_ascii=False) for one in found]
    if arguments.output is None:
        print("\n".join(lines))
    else:
        write_file(arguments.output, "\n".join(lines) + "\n")
        print(f"{len(lines):,} tokens proposed: {arguments.output}")
    return 0
