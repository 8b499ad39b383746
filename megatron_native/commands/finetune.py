"""`megatron-native finetune`: conversations → a fine-tuned Hugging Face folder."""

from __future__ import annotations

import argparse

from megatron_native.commands.finetune_arguments import add_training, say, settings_of, what_happens_on_stderr

SUMMARY = """Fine-tune a model on conversations, with the loss on the answers alone: import, prepare, train, export.

Records are messages, ShareGPT or Alpaca shapes, with one turn or many; the base's chat template makes text of them. A share
of them is held out; the run ends when it gets no better, and the best checkpoint is exported."""

EXAMPLES = """\
  megatron-native finetune --base models/llama3-8b --data chats.jsonl --output models/llama3-8b-chat --dry-run
  megatron-native finetune --base models/llama3-8b --data chats.jsonl --output models/llama3-8b-chat --nproc 8 \\
      parallel.tensor_model_parallel_size=4 parallel.sequence_parallel=true
  megatron-native finetune --base DIR --data general/ --data safety.jsonl=2.0 --output OUT --epochs 2 optimizer.lr=2e-5
  megatron-native finetune --config finetune.yaml --nproc 8

A killed run goes on where it was when the same command is given again; other settings are refused. Exit codes: 0 done,
75 saved and wants to be started again, 2 what was given is wrong, 1 anything else. docs/finetuning.md says more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--data", action="append", metavar="FILE[=WEIGHT]",
        help="file, folder or glob of conversations; may be given several times, weight 2 is seen twice an epoch",
    )  # fmt: skip
    parser.add_argument(
        "--heldout", action="append", metavar="FILE", help="conversations to measure (a share of the data)"
    )
    add_training(parser, heldout_share="0.02")


def run(arguments: argparse.Namespace) -> int:
    """Fine-tune, and print how it went."""
    import json

    from megatron_native.posttraining.finetune import finetune, plan_finetune
    from megatron_native.posttraining.finetune_settings import parse_source, with_overrides
    from megatron_native.posttraining.finetune_table import table

    given = {
        "data": tuple(parse_source(text) for text in arguments.data) if arguments.data else None,
        "heldout": tuple(arguments.heldout) if arguments.heldout else None,
    }
    settings = with_overrides(settings_of(arguments), given)
    with what_happens_on_stderr(arguments.json):
        if arguments.dry_run:
            result = plan_finetune(settings, say)
        else:
            result = finetune(settings, say, train=not arguments.prepare_only)
    planned = arguments.dry_run or arguments.prepare_only
    print(json.dumps(result.as_json(), ensure_ascii=False, indent=2) if arguments.json else table(result, planned))
    return result.exit_code
