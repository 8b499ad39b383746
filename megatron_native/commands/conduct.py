"""`megatron-native conduct`: codes of conduct listed, shown and checked, and the prompts made from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_native.alignment.conduct import Conduct

SUMMARY = """Codes of conduct, the principles by which passages are rewritten: list the shipped ones, show one, check your own,
or see the very prompt that a model gets for a passage."""
EXAMPLES = """\
  megatron-native conduct list
  megatron-native conduct show general
  megatron-native conduct show gulf --language en
  megatron-native conduct check my_code.yaml
  megatron-native conduct prompt general --form edits --text passage.txt
  megatron-native conduct prompt my_code.yaml --examples 3 --text - --json < passage.txt

A code is a shipped name or the path of a YAML file; docs/concepts/code-of-conduct.md says how to write one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "action", choices=("list", "show", "check", "prompt"),
        help="list: the shipped codes; show: one as text; check: is it whole; prompt: the messages for a passage",
    )  # fmt: skip
    parser.add_argument("code", nargs="?", metavar="CODE", help="a shipped name or a YAML file (not for list)")
    parser.add_argument(
        "--language", choices=("ar", "en"), default="ar", help="of what is shown, or of the prompt (ar)"
    )
    parser.add_argument(
        "--form", choices=("full", "edits"), default="full",
        help="prompt: the model answers with the whole passage, or with the spans to replace (full)",
    )  # fmt: skip
    parser.add_argument(
        "--detail", choices=("whole", "brief"), default="whole", help="prompt: with the code, or a few words (whole)"
    )
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="prompt: examples before the passage (0)")
    parser.add_argument("--text", metavar="FILE", help="prompt: a file with the passage, or - for standard input")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what was asked for."""
    import json

    from megatron_native.alignment.conduct import conduct_names, load_conduct
    from megatron_native.errors import UserError

    action, code = arguments.action, arguments.code
    if (code is None) != (action == "list"):
        wanted = "takes no code" if action == "list" else f"needs a code: a YAML file, or one of {conduct_names()}"
        raise UserError(f"conduct {action} {wanted}.")
    if arguments.text is not None and action != "prompt":
        raise UserError(f"--text is for conduct prompt; conduct {action} takes no passage.")
    result: dict[str, Any] | list[dict[str, Any]]
    codes = [load_conduct(name) for name in ([code] if code is not None else conduct_names())]
    if action == "prompt":
        result, text = _prompt(codes[0], arguments)
    elif action == "show":
        result, text = {**_outline(codes[0]), **codes[0].content}, _shown(codes[0], arguments.language)
    elif action == "check":
        result, text = {**_outline(codes[0]), "advice": codes[0].advice()}, _checked(codes[0])
    else:
        width = max(len(conduct.name) for conduct in codes)
        result = [_outline(conduct) for conduct in codes]
        text = "\n".join(
            f"{conduct.name:<{width}}  {conduct.hash[:12]}  {conduct.title.in_language(arguments.language)}"
            for conduct in codes
        )
    print(json.dumps(result, ensure_ascii=False, indent=2) if arguments.json else text)
    return 0


def _outline(conduct: Conduct) -> dict[str, Any]:
    return {
        "name": conduct.name,
        "source": conduct.source,
        "lineage": list(conduct.lineage),
        "hash": conduct.hash,
        "severities": {principle.key: principle.severity for principle in conduct.principles},
    }


def _checked(conduct: Conduct) -> str:
    good = sum(len(principle.examples.good) for principle in conduct.principles)
    bad = sum(len(principle.examples.bad) for principle in conduct.principles)
    lines = [
        f"{conduct.source}: {' → '.join(conduct.lineage)}: {len(conduct.principles)} principles, "
        f"{len(conduct.instructions)} instructions, {good} good and {bad} bad examples; hash {conduct.hash[:12]}"
    ]
    return "\n".join(lines + [f"note: {remark}" for remark in conduct.advice()])


def _shown(conduct: Conduct, language: Any) -> str:
    words = {
        "ar": ("لماذا", "قبل", "بعد", "السبب", "التعليمات"),
        "en": ("Why", "before", "after", "because", "Instructions"),
    }
    why, before, after, because, instructions = words[language]
    blocks = [
        f"# {conduct.title.in_language(language)}\n{conduct.purpose.in_language(language)}\n"
        f"({' → '.join(conduct.lineage)}, {conduct.hash[:12]})"
    ]
    for principle in conduct.principles:
        blocks.append(
            f"## {principle.title.in_language(language)}  [{principle.key}, {principle.severity}]\n"
            f"{principle.rule.in_language(language)}\n{why}: {principle.rationale.in_language(language)}"
        )
        for sign, examples in (("+", principle.examples.good), ("-", principle.examples.bad)):
            for example in examples:
                parts = ((before, example.origin), (after, example.rewritten), (because, example.why))
                lines = [f"{label}: " + text.replace("\n", "\n    ") for label, text in parts]
                blocks.append(f"{sign} " + "\n  ".join(lines))
    rules = [f"- {rule.in_language(language)}  [{rule.key}]" for rule in conduct.instructions]
    return "\n\n".join([*blocks, "\n".join([f"## {instructions}", *rules])])


def _prompt(conduct: Conduct, arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from megatron_native.alignment.prompts import characters, constant_part, prompt_hash, render_rewriting

    chosen = {name: getattr(arguments, name) for name in ("form", "language", "examples", "detail")}
    messages = render_rewriting(conduct, _passage(arguments.text), **chosen)
    constant = characters(constant_part(conduct, **chosen))
    result = {
        "conduct_hash": conduct.hash,
        "prompt_hash": prompt_hash(conduct, **chosen),
        **chosen,
        "constant_characters": constant,
        "characters": characters(messages),
        "messages": messages,
    }
    blocks = [f"[{message['role']}]\n{message['content']}" for message in messages]
    summary = (
        f"({characters(messages):,} characters, of which the first {constant:,} are the same for every passage; "
        f"prompt {result['prompt_hash'][:12]}, code {conduct.hash[:12]})"
    )
    return result, "\n\n".join([*blocks, summary])


def _passage(source: str | None) -> str:
    """The text of a file or of standard input, without the line break that ends it."""
    import sys

    from megatron_native.errors import UserError

    if source is None:
        raise UserError("conduct prompt needs --text FILE, a file with the passage, or --text - for standard input.")
    try:
        raw = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise UserError(f"--text {source} can't be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--text {source} is not UTF-8 ({error}); convert it first, with iconv for example.") from None
    return text.removesuffix("\n").removesuffix("\r")
