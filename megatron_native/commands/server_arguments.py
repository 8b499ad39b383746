"""Options that commands which ask a language model share: where it is, what it may cost, what it is asked, what checks it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_native.alignment.backends.budget import Budget


def add_server(group: Any, whose: str, settings_help: str, seed: str = "--seed") -> None:
    """`--endpoint`, `--model`, sampling and `--option`, into a group of a parser.

    Args:
        group: where they go.
        whose: what is served, such as "worker".
        settings_help: of `--option`.
        seed: the name of the option for the seed of sampling.
    """
    group.add_argument(
        "--endpoint", nargs="+", default=[], metavar="URL",
        help="servers (OpenAI-compatible); @FILE or @FOLDER reads them from there, a URL a line",
    )  # fmt: skip
    group.add_argument("--model", default="", metavar="NAME", help=f"the {whose}'s name at the servers")
    group.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0 is greedy (0)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="X", help="share of probability sampled from (1)")
    group.add_argument(seed, type=int, default=0, metavar="N", help="of sampling (0)")
    group.add_argument("--option", nargs="+", default=[], metavar="KEY=VALUE", help=settings_help)


def add_budget(parser: argparse.ArgumentParser, title: str) -> None:
    """`--max-tokens`, `--max-cost` and the prices."""
    budget = parser.add_argument_group(title)
    budget.add_argument("--max-tokens", type=int, metavar="N", help="stop before more tokens are used (no limit)")
    budget.add_argument("--max-cost", type=float, metavar="X", help="stop before more is spent (no limit)")
    budget.add_argument("--price-input", type=float, default=0.0, metavar="X", help="of a million prompt tokens")
    budget.add_argument("--price-output", type=float, default=0.0, metavar="X", help="of a million written tokens")


def add_prompt(parser: argparse.ArgumentParser, answer_ratio: float) -> Any:
    """`--conduct` and what else decides a prompt; the group."""
    prompt = parser.add_argument_group("what it is asked")
    prompt.add_argument("--conduct", default="general", metavar="NAME|FILE", help="code of conduct (general)")
    prompt.add_argument("--language", default="ar", choices=("ar", "en"), help="of the prompt's own words (ar)")
    prompt.add_argument("--examples", type=int, default=0, metavar="N", help="examples of the code in the prompt (0)")
    prompt.add_argument("--passage-tokens", type=int, default=256, metavar="N", help="LLaMA-3 tokens a passage (256)")
    prompt.add_argument("--context-tokens", type=int, default=64, metavar="N", help="of the text around it (64)")
    prompt.add_argument(
        "--answer-ratio", type=float, default=answer_ratio, metavar="X",
        help=f"tokens of an answer per token of passage ({answer_ratio:g})",
    )  # fmt: skip
    return prompt


def add_rules_and_gates(group: Any, who: str) -> None:
    """`--rules`, `--gates` and how to do without them."""
    group.add_argument("--rules", type=Path, metavar="FILE", help="YAML over the rules' settings")
    group.add_argument("--no-rules", action="store_true", help=f"no rules before the {who}")
    group.add_argument("--gates", type=Path, metavar="FILE", help="YAML over the gates' thresholds")
    group.add_argument("--no-gates", action="store_true", help="check nothing (for measuring, not for a corpus)")


def budget_of(arguments: argparse.Namespace) -> Budget:
    """The budget options as a budget."""
    from megatron_native.alignment.backends.budget import Budget

    return Budget(arguments.max_tokens, arguments.max_cost, arguments.price_input, arguments.price_output)


def overrides_of(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Of `--NAME FILE` and `--no-NAME`: the mapping in the file, or None where it is switched off, by name."""
    from megatron_native.alignment.rewriting.settings import read_overrides

    return {
        name: None if getattr(arguments, f"no_{name}") else read_overrides(getattr(arguments, name)) for name in names
    }
