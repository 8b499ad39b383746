"""The corpus and its rewriting as job arrays, checked before they are submitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_native.corpus.recipe import read_recipe
from megatron_native.errors import UserError
from megatron_native.slurm.cluster import Cluster
from megatron_native.slurm.jobs import Job
from megatron_native.slurm.other_scripts import corpus_script, rewrite_script


def corpus_job(cluster: Cluster, recipe: Path | None, output: Path | None, tasks: int) -> Job:
    """A recipe by `tasks` tasks.

    Raises:
        UserError: the recipe is missing or wrong.
    """
    if recipe is None:
        raise UserError("--what corpus needs --recipe FILE, the stages of the corpus.")
    _check(tasks)
    read_recipe(recipe, {"output": str(output)} if output is not None else {})
    logs = (cluster.logs or Path("logs")) / f"corpus-{recipe.stem}"
    return Job("corpus", corpus_script(cluster, recipe, output, logs, tasks), logs)


def rewrite_job(cluster: Cluster, inputs: Sequence[Path], output: Path | None, worker: Path | None, tasks: int) -> Job:
    """A fleet of engines that rewrite into one folder.

    Raises:
        UserError: something that it needs is not given.
    """
    missing = [name for name, value in (("--input", inputs), ("--output", output), ("--worker", worker)) if not value]
    if missing or output is None or worker is None:
        raise UserError(f"--what rewrite needs {', '.join(missing)}.")
    _check(tasks)
    if not cluster.gpus_per_node:
        raise UserError("--what rewrite starts an engine a GPU, and the cluster's file says gpus_per_node: 0.")
    logs = (cluster.logs or Path("logs")) / f"rewrite-{output.name}"
    return Job("rewrite", rewrite_script(cluster, inputs, output, worker, logs, tasks), logs)


def _check(tasks: int) -> None:
    if tasks < 1:
        raise UserError(f"--tasks {tasks}: an array needs at least one task.")
