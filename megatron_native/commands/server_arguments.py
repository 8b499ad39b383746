"""Options that commands which ask a language model share: where it is, what it may cost, who judges what it writes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_native.alignment.backends.budget import Budget


KEY_VARIABLE = "OPENAI_API_KEY"
JUDGE_KEY_HELP = f"environment variable with its key ({KEY_VARIABLE}, where no other server has that key)"


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


def add_judge(group: Any) -> None:
    """`--judge-endpoint`, `--judge-model` and the judge's key: the gate that asks a model."""
    group.add_argument("--judge-endpoint", metavar="URL", help="server of a model that judges every pair (gate judge)")
    group.add_argument("--judge-model", metavar="NAME", help="its name there")
    group.add_argument("--judge-key-variable", metavar="NAME", help=JUDGE_KEY_HELP)


def budget_of(arguments: argparse.Namespace) -> Budget:
    """The budget options as a budget."""
    from megatron_native.alignment.backends.budget import Budget

    return Budget(arguments.max_tokens, arguments.max_cost, arguments.price_input, arguments.price_output)


def judge_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of gates that the judge's options ask for; none where they are not given.

    Raises:
        UserError: half of it is missing, or the URL is none.
    """
    from megatron_native.alignment.backends.server_settings import checked_endpoints
    from megatron_native.errors import UserError

    endpoint, model = arguments.judge_endpoint, arguments.judge_model
    if arguments.judge_key_variable and not endpoint:
        raise UserError(
            "--judge-key-variable belongs to --judge-endpoint URL; in a file of gates it is judge.key_variable."
        )
    if endpoint is None and model is None:
        return {}
    if not endpoint or not model:
        raise UserError("--judge-endpoint URL and --judge-model NAME belong together; give both.")
    (checked,) = checked_endpoints([endpoint])
    variable = arguments.judge_key_variable
    return {
        "judge": {"enabled": True, "endpoint": checked, "model": model}
        | ({"key_variable": variable} if variable else {})
    }


def key_variable_of(named: str | None, endpoint: str, others: Sequence[str], theirs: str = KEY_VARIABLE) -> str:
    """The environment variable whose key an endpoint is sent; "" where it is sent none.

    A key is meant for one server: it goes to a second one only where that is the same, or the user named the variable.

    Args:
        named: what the user named.
        endpoint: URL of the server.
        others: those of the servers that the command's key is for; none where the endpoint is the only one.
        theirs: the variable of that key.
    """
    from megatron_native.alignment.backends.server_settings import is_one_of

    if named:
        return named
    if not others:
        return KEY_VARIABLE
    return theirs if is_one_of(endpoint, others) else ""


def with_judge_key(gates: Mapping[str, Any], arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Overrides of the gates with the name of the variable that holds the judge's key, where there is a judge."""
    from megatron_native.alignment.backends.choice import endpoints_of, options_of

    judge = gates.get("judge")
    if not isinstance(judge, Mapping) or not judge.get("endpoint") or judge.get("key_variable"):
        return gates
    others: Sequence[str] = ()
    theirs = KEY_VARIABLE
    if getattr(arguments, "endpoint", None):
        others = endpoints_of(arguments.endpoint)
        theirs = str(options_of(arguments.option).get("api_key_variable", KEY_VARIABLE))
    return {**gates, "judge": {**judge, "key_variable": key_variable_of(None, judge["endpoint"], others, theirs)}}


def with_judge(gates: Mapping[str, Any] | None, arguments: argparse.Namespace) -> Mapping[str, Any] | None:
    """Overrides of the gates (None: no gates) with what the judge's options say over them.

    Raises:
        UserError: there are no gates to which the judge could belong; as `judge_of`.
    """
    from megatron_native.errors import UserError

    judge = judge_of(arguments)
    if not judge:
        return None if gates is None else with_judge_key(gates, arguments)
    if gates is None:
        raise UserError("--judge-endpoint with --no-gates: the judge is one of the gates; leave one of them out.")
    own = gates.get("judge")
    merged = {**gates, "judge": {**(own if isinstance(own, dict) else {}), **judge["judge"]}}
    return with_judge_key(merged, arguments)
