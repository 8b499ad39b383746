"""`megatron-native corpus`: the stages of a recipe, in order."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "Run the stages that a recipe.yaml names: clean, dedup, tokenize, report; each with its manifest."
EXAMPLES = """\
  megatron-native corpus --recipe recipe.yaml
  megatron-native corpus --recipe recipe.yaml --output /scratch/news --workers 64
  megatron-native corpus --recipe recipe.yaml --show      the commands it stands for, nothing is run

A recipe:
  output: work
  stages:
    - clean: {input: [dump/], preset: msa}
    - dedup: {}
    - tokenize: {name: ar, input: "@dedup/ar", tokenizer_model: models/llama-3, append_eod: true}
    - report: {}

What is done is skipped, so a killed recipe goes on where it was. As a Slurm job array give --task-index and
--task-count; every task does its share, and the recipe is submitted again until nothing is left."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--recipe", type=Path, required=True, metavar="YAML", help="the recipe")
    parser.add_argument("--output", metavar="FOLDER", help="folder of all stages (the recipe's)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (the recipe's, or the cores there are)")
    parser.add_argument("--engine", metavar="NAME", help="local or ray (the recipe's)")
    parser.add_argument("--address", metavar="ADDRESS", help="of a running Ray cluster, or auto")
    parser.add_argument("--tokenizer-model", metavar="PATH", help="of all tokenize stages (the recipe's)")
    parser.add_argument("--task-index", type=int, metavar="I", help="in a job array: which task this is, from 0")
    parser.add_argument("--task-count", type=int, metavar="N", help="in a job array: how many tasks there are")
    parser.add_argument("--show", action="store_true", help="print the commands and run nothing")


def run(arguments: argparse.Namespace) -> int:
    """Run or show the recipe."""
    from megatron_native.corpus.recipe import SHARED, read_recipe, run_recipe

    given = {key: value for key in ("output", *SHARED) if (value := getattr(arguments, key)) is not None}
    steps = read_recipe(arguments.recipe, given)
    if not arguments.show:
        return run_recipe(steps)
    import shlex

    for step in steps:
        print(f"megatron-native {step.command} {shlex.join(step.arguments)}")
    return 0
