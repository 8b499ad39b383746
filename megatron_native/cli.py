"""`megatron-native <command>`: the one table of commands, and the way from a command line to its `run`.

A command is a module of `megatron_native.commands` with `SUMMARY`, `EXAMPLES`, `add_arguments(parser)` and
`run(arguments) -> exit code`. Only the chosen command's module is imported, so help answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from megatron_native import __version__
from megatron_native.errors import EXIT_FAILURE, EXIT_USER_ERROR, UserError

COMMANDS: dict[str, tuple[str, str]] = {
    # command: (module under megatron_native.commands, what it does)
    "corpus": ("corpus", "the stages of a recipe.yaml in order: raw dumps → tokens, in one command"),
    "clean": ("clean", "raw dumps → normalised, filtered documents, with an account of every line"),
    "dedup": ("dedup", "documents → documents with exact and near copies out"),
    "rewrite": ("rewrite", "documents → documents rewritten by a code of conduct, every rewrite checked"),
    "annotate": ("annotate", "documents → seed pairs: passages of a sample, rewritten by an expert, checked"),
    "tokenize": ("tokenize", "documents → Megatron .bin/.idx (also tools/preprocess_data.py)"),
    "merge": ("merge", "many Megatron .bin/.idx → one (also tools/merge_datasets.py)"),
    "inspect": ("inspect", "what is in a .bin/.idx: counts, lengths, ids, documents as text"),
    "verify": ("verify", "is a .bin/.idx whole, and what its manifest says it is"),
    "repair": ("repair", "a damaged .bin/.idx → what is whole of it, with the loss said exactly"),
    "report": ("report", "stage folders → the Arabic data report: one HTML file, and its figures as JSON"),
    "conduct": ("conduct", "codes of conduct: list, show, check, and the prompts made from them"),
    "train-first-look": ("train_first_look", "seed pairs → the classifier that tells which passages may stay"),
    "gate": ("gate", "rewritten passages against their origins: what passes, what is refused, and why"),
    "rewrite-report": ("rewrite_report", "rewritten passages beside their originals, with figures: one HTML file"),
    "propose-tokens": ("propose_tokens", "which tokens would shorten Arabic text most, for import-hf --add-tokens"),
    "import-hf": ("import_hf", "Hugging Face folder → Megatron distributed checkpoint"),
    "export-hf": ("export_hf", "Megatron distributed checkpoint → Hugging Face folder"),
    "adopt": ("adopt", "Megatron-LM torch_dist checkpoint → checkpoint here, optimizer and position included"),
    "average": ("average", "checkpoints of one model → their average"),
    "verify-hf": ("verify_hf", "compare a checkpoint with a Hugging Face folder: names, bits, logits"),
    "pretrain": ("pretrain", "continue the pre-training of a checkpoint, on one process or many"),
    "launch": ("launch", "a run as Slurm jobs: import → pretrain → export, its corpus as arrays; --dry-run shows them"),
    "finetune": ("finetune", "conversations → a fine-tuned Hugging Face folder, on the trainer of pretrain"),
    "train-worker": ("train_worker", "seed pairs → a worker that rewrites"),
    "plan": ("plan", "a run worked out with no GPU: memory, speed, length, and whether it would start"),
    "qualify": ("qualify", "is this kind of GPU fit for a run? A ladder of checks, and its record"),
    "check-data": ("check_data", "are the datasets of a run whole, and made for its model? No GPU needed"),
    "sweep": ("sweep", "small runs at several learning rates, side by side in one table"),
    "build-index": ("build_index", "the sequence indices of a run, before any GPU is asked for"),
    "trace": ("trace", "from a step of a run to its documents, or from a document to its steps"),
    "generate": ("generate", "text from a Hugging Face folder or a checkpoint"),
    "config": ("config", "show a run's resolved configuration, or the schema of all settings"),
}


def _program_help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([
        "usage: megatron-native <command> [options]", "",
        "Raw Arabic dumps in, a natively aligned LLaMA out.", "",
        "commands:", *lines, "",
        "megatron-native <command> --help shows a command's options and examples; --version the version.",
    ])


def command_parser(name: str, program: str | None = None) -> tuple[ModuleType, argparse.ArgumentParser]:
    """The module of the command `name`, and the parser of its options."""
    module = importlib.import_module(f"megatron_native.commands.{COMMANDS[name][0]}")
    parser = argparse.ArgumentParser(
        prog=program or f"megatron-native {name}",
        description=module.SUMMARY,
        epilog="examples:\n" + module.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return module, parser


def run_command(name: str, argv: Sequence[str], program: str | None = None) -> int:
    """Parse `argv` for the command `name`, run it and return its exit code.

    A `UserError` ends as one paragraph on stderr. `program` is the name shown in the usage line.
    """
    module, parser = command_parser(name, program)
    arguments = parser.parse_intermixed_args(argv)  # overrides may stand before or after options
    try:
        return int(module.run(arguments) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `megatron-native` script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_program_help())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"megatron-native {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "megatron-native --help lists the commands."
        print(f"error: there is no command '{argv[0]}'; {hint}", file=sys.stderr)
        return EXIT_USER_ERROR
    return run_command(argv[0], argv[1:])


if __name__ == "__main__":
    sys.exit(main())
