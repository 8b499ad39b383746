"""`megatron-native generate`: text from a Hugging Face folder or a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "Continue a text with a model: a Hugging Face folder or a checkpoint of this project."
EXAMPLES = """\
  megatron-native generate --model exported/ --prompt "تقع مدينة القاهرة على"
  megatron-native generate --model runs/r1/checkpoints/step_00000100 --prompt "كان يا ما كان" --max-new-tokens 100
  megatron-native generate --model exported/ --prompt "الماء" --temperature 0.8 --seed 7"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="Hugging Face folder or checkpoint")
    parser.add_argument("--prompt", nargs="+", required=True, metavar="TEXT", help="one or more texts to continue")
    parser.add_argument("--max-new-tokens", type=int, default=60, metavar="N", help="tokens to add (default: 60)")
    parser.add_argument("--min-new-tokens", type=int, default=0, metavar="N", help="don't end before this many (0)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (default), above it draws"
    )
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P", help="draw within this probability (0.95)")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1 discourages repeats (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=1234, help="seed of the draws")


def run(arguments: argparse.Namespace) -> int:
    """Generate and print each prompt with its continuation."""
    from megatron_native.evaluation.generate import SamplingSettings, generate

    settings = SamplingSettings(
        arguments.max_new_tokens, arguments.min_new_tokens, arguments.temperature, arguments.top_p,
        arguments.repetition_penalty, arguments.seed,
    )  # fmt: skip
    for prompt, text in zip(arguments.prompt, generate(arguments.model, arguments.prompt, settings)):
        print(prompt + text)
    return 0
