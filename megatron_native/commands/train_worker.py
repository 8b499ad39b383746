"""`megatron-native train-worker`: seed pairs → a worker that rewrites."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_native.commands.finetune_arguments import add_training, say, settings_of, what_happens_on_stderr

SUMMARY = """Fine-tune a model on seed pairs: asked as `rewrite` will ask it, it learns to answer with the expert's rewrite.

A share of the pairs is held out; the run ends when it gets no better on them, and the best checkpoint is exported, with
worker.json, from which `rewrite --worker` takes the prompt that the worker knows."""

EXAMPLES = """\
  megatron-native train-worker --seeds seeds/ --base models/Qwen1.5-4B --output models/worker --dry-run
  megatron-native train-worker --seeds seeds/ --base models/Qwen1.5-4B --output models/worker --nproc 8
  megatron-native train-worker --seeds rewrite_seed_data.json --base DIR --output worker/ --form edits --epochs 2
  megatron-native rewrite --input deduped/ --output rewritten/ --worker models/worker --engine vllm

A killed run goes on where it was when the same command is given again; other settings are refused. docs/workers.md says
more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--seeds", nargs="+", action="extend", default=[], metavar="PATH",
        help="files, folders or globs of records with origin and rewritten, as annotate writes them",
    )  # fmt: skip
    prompt = parser.add_argument_group("what the worker is asked")
    prompt.add_argument("--conduct", default="general", metavar="NAME|FILE", help="code of conduct (general)")
    prompt.add_argument(
        "--form", default="full", choices=("full", "edits"), help="the passage again, or spans to replace (full)"
    )
    prompt.add_argument("--language", default="ar", choices=("ar", "en"), help="of the prompt's own words (ar)")
    prompt.add_argument(
        "--detail", default="brief", choices=("brief", "whole"),
        help="a few words before the passage, or the whole code (brief: the worker learns the code from the pairs)",
    )  # fmt: skip
    prompt.add_argument(
        "--no-rules", action="store_true", help="origins as they are (tidied by the rules, as rewrite does)"
    )
    prompt.add_argument("--origin-key", default="origin", metavar="KEY", help="where a record's passage is (origin)")
    prompt.add_argument("--rewritten-key", default="rewritten", metavar="KEY", help="where its rewrite is (rewritten)")
    add_training(parser, heldout_share="0.05")


def run(arguments: argparse.Namespace) -> int:
    """Train the worker, and print how it went."""
    import json

    from megatron_native.alignment.conduct import load_conduct
    from megatron_native.errors import UserError
    from megatron_native.posttraining.finetune_table import table
    from megatron_native.posttraining.train_worker import train_worker
    from megatron_native.posttraining.worker_seeds import SeedSettings

    # overrides may stand right behind the seeds, where the parser takes them for more of these
    arguments.overrides += [word for word in arguments.seeds if "=" in word and not Path(word).exists()]
    seeds = [word for word in arguments.seeds if word not in arguments.overrides]
    if not seeds:
        raise UserError("--seeds names the files of pairs to learn from, such as annotate's output folder.")
    settings = settings_of(arguments, heldout_share=0.05)
    pairs = SeedSettings(
        load_conduct(arguments.conduct), arguments.form, arguments.language, arguments.detail, not arguments.no_rules,
        settings.heldout_share, arguments.origin_key, arguments.rewritten_key,
    )  # fmt: skip
    with what_happens_on_stderr(arguments.json):
        result = train_worker(seeds, pairs, settings, say, train=not arguments.prepare_only, dry_run=arguments.dry_run)
    if arguments.json:
        print(json.dumps(result.as_json(), ensure_ascii=False, indent=2))
    else:
        print(table(result.training, arguments.dry_run or arguments.prepare_only))
    return result.training.exit_code
