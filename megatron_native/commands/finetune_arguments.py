"""Options that `finetune` and `train-worker` share, and how both say what they did."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_native.posttraining.finetune_settings import FinetuneSettings

_FIELDS = (
    "base", "output", "heldout_share", "epochs", "conversations_per_step", "seq_length", "patience",
    "evaluations_per_epoch", "template", "learn", "export", "work",
)  # fmt: skip


def add_training(parser: argparse.ArgumentParser, heldout_share: str) -> None:
    """Options of the training and of where it runs; defaults are those of `FinetuneSettings`."""
    parser.add_argument("--base", type=Path, metavar="DIR", help="Hugging Face folder, or a checkpoint of this project")
    parser.add_argument("--output", type=Path, metavar="DIR", help="Hugging Face folder to make")
    parser.add_argument("--heldout-share", type=float, metavar="SHARE", help=f"held out, by hash ({heldout_share})")
    training = parser.add_argument_group("how long and how much")
    training.add_argument("--epochs", type=float, metavar="X", help="passes over the conversations (3)")
    training.add_argument(
        "--conversations-per-step", type=int, metavar="N",
        help="about so many a step; fewer where an epoch would have less than 8 steps (128)",
    )  # fmt: skip
    training.add_argument("--seq-length", type=int, metavar="N", help="tokens of context (the model's, at most 4096)")
    training.add_argument(
        "--template", metavar="NAME|FILE", help="chat template: chatml, llama3 or a Jinja file (the base's own)"
    )
    training.add_argument("--learn", choices=("all", "last"), help="answers of a conversation that are learned (all)")
    training.add_argument(
        "--patience", type=int, metavar="N", help="evaluations without improvement before the end; 0: never early (4)"
    )
    training.add_argument("--evaluations-per-epoch", type=float, metavar="X", help="of the held-out loss (4)")
    training.add_argument("--export", choices=("best", "last"), help="the checkpoint that becomes the output (best)")
    where = parser.add_argument_group("where and how it runs")
    where.add_argument("--nproc", dest="processes", type=int, metavar="N", help="processes on this machine (1)")
    where.add_argument("--config", type=Path, metavar="FILE", help="YAML: settings of a run, and a section finetune")
    where.add_argument("--work", type=Path, metavar="DIR", help="folder of everything in between (OUTPUT.run)")
    where.add_argument(
        "--no-reference-logits", dest="reference_logits", action="store_const", const=False,
        help="import without running the model in FP32 on the CPU",
    )  # fmt: skip
    where.add_argument("--dry-run", action="store_true", help="tokens, steps and epochs; trains and writes nothing")
    where.add_argument(
        "--prepare-only", action="store_true", help="stop before training: the run is in OUTPUT.run/run.yaml"
    )
    where.add_argument("--json", action="store_true", help="print the result as JSON; what happens goes to stderr")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of the run")


def settings_of(arguments: argparse.Namespace, **defaults: Any) -> FinetuneSettings:
    """The settings that the command line and its `--config` ask for, over `defaults`.

    Raises:
        UserError: base or output are not said, or something can't be used.
    """
    from megatron_native.errors import UserError
    from megatron_native.posttraining.finetune_settings import FinetuneSettings, read_settings_file, with_overrides

    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        raise UserError(
            "this command starts its processes itself (--nproc). On several nodes: give --prepare-only on one, then torchrun "
            "... tools/pretrain.py --config OUTPUT.run/run.yaml on all, then this command again, which exports."
        )
    section, run = read_settings_file(arguments.config) if arguments.config is not None else ({}, {})
    given = {name: getattr(arguments, name) for name in (*_FIELDS, "processes", "reference_logits")}
    values = {**defaults, **section, **{name: value for name, value in given.items() if value is not None}}
    for name in ("base", "output"):
        if values.get(name) is None:
            raise UserError(f"--{name} is not given: " + (
                "name the Hugging Face folder to fine-tune." if name == "base" else "name the folder to make."
            ))  # fmt: skip
    settings = FinetuneSettings(Path(values.pop("base")), Path(values.pop("output")))
    return with_overrides(settings, {**values, "config": run, "overrides": tuple(arguments.overrides)})


@contextmanager
def what_happens_on_stderr(wanted: bool) -> Iterator[None]:
    """While JSON is to be printed: what this process and those it starts print goes to stderr."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 1)
        os.close(kept)


def say(line: str) -> None:
    """A line about what happens."""
    print(line, flush=True)
