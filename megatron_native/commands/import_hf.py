"""`megatron-native import-hf`: Hugging Face folder → checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_native.commands.sizes import add_workers, parse_size
from megatron_native.errors import UserError

SUMMARY = """Convert a Hugging Face folder (config.json, safetensors, tokenizer) to a Megatron distributed checkpoint.

No bit of any weight changes; no GPU is needed. Tokenizer, configuration and the logits of fixed Arabic and English
texts travel with the checkpoint, so that training, export and verification need nothing else. What is broken off is taken
up again by the same command."""

EXAMPLES = """\
  megatron-native import-hf --hf models/Meta-Llama-3-8B --output checkpoints/llama3-8b
  megatron-native import-hf --hf models/Meta-Llama-3-70B --output checkpoints/llama3-70b
  megatron-native import-hf --hf models/Meta-Llama-3-8B --output checkpoints/llama3-8b-ar --add-tokens tokens.txt \\
      --fertility-sample sample.jsonl"""


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
    new = parser.add_argument_group("new tokens")
    new.add_argument(
        "--add-tokens", type=Path, metavar="FILE",
        help="extend the vocabulary: a token a line, a leading space being part of it, or a .jsonl of {\"token\": …}; each "
        "begins as the mean of its old sub-tokens",
    )  # fmt: skip
    new.add_argument(
        "--token-noise", type=float, default=0.0, metavar="X",
        help="add normal noise of X of a new row's standard deviation to it (default: 0, none)",
    )  # fmt: skip
    new.add_argument("--token-noise-seed", type=int, default=0, metavar="N", help="seed of that noise (default: 0)")
    new.add_argument(
        "--fertility-sample", type=Path, metavar="FILE",
        help="documents or plain text whose tokens a word are counted with the old and the new vocabulary",
    )  # fmt: skip
    new.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Import, and say what was made."""
    import json

    from megatron_native.checkpoint import layout
    from megatron_native.checkpoint.import_hf import import_hf
    from megatron_native.checkpoint.vocabulary import VOCABULARY_FILE, ExtensionSettings, summary

    new = None
    if arguments.add_tokens is not None:
        new = ExtensionSettings(
            arguments.add_tokens, arguments.token_noise, arguments.token_noise_seed, arguments.fertility_sample
        )
    elif arguments.fertility_sample is not None or arguments.token_noise:
        raise UserError("--fertility-sample and --token-noise are about new tokens; name them with --add-tokens FILE.")
    result = import_hf(
        arguments.hf,
        arguments.output,
        reference_logits=arguments.reference_logits,
        max_file_bytes=parse_size(arguments.max_shard_size) if arguments.max_shard_size else None,
        workers=arguments.workers,
        add_tokens=new,
    )
    vocabulary = layout.read_json(result.checkpoint / VOCABULARY_FILE)
    if arguments.json:
        kept = {key: value for key, value in (vocabulary or {}).items() if key != "tokens"} or None
        done = {"checkpoint": str(result.checkpoint), "tensors": result.tensors, "bytes": result.bytes}
        done |= {"skipped": result.skipped, "not_carried": list(result.not_carried), "vocabulary": kept}
        print(json.dumps(done, ensure_ascii=False, indent=2))
        return 0
    if result.skipped:
        print(f"{result.checkpoint} was imported from these files already; nothing to do")
        return 0
    print(f"{result.checkpoint}: {result.tensors} tensors, {result.bytes / 1e9:.2f} GB")
    for line in summary(vocabulary) if vocabulary else ():
        print(line)
    if result.not_carried:
        print(f"not carried along (neither weights, configuration nor tokenizer): {', '.join(result.not_carried)}")
    return 0
