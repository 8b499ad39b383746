"""From the arguments of `launch` to what the jobs of a run are made from."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_native.config.load import load_run_config
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.models.families import read_hf_config, to_model_config
from megatron_native.slurm.cluster import Cluster
from megatron_native.slurm.jobs import RunJobs
from megatron_native.training.shape import read_model


def read_run_jobs(arguments: argparse.Namespace, cluster: Cluster) -> RunJobs:
    """The jobs of the run that the arguments name.

    Raises:
        UserError: the run's file is missing or wrong.
    """
    if arguments.config is None:
        raise UserError(f"--what {arguments.what} needs --config FILE, the run's YAML file.")
    run = load_run_config(arguments.config, arguments.overrides, files=False)
    return RunJobs(
        run, arguments.config, arguments.overrides, cluster, arguments.nodes, model_shape(run, arguments.hf), arguments.hf,
        arguments.export,
    )  # fmt: skip


def model_shape(run: RunConfig, hf: Path | None) -> ModelConfig | None:
    """The shape of the run's model: from what it starts from, or from the Hugging Face folder that will be imported; None where
    neither is here.
    """
    source = run.model.checkpoint or run.model.branch_from or run.model.hf_config
    if source is not None and source.exists():
        return read_model(run)
    if hf is not None and (hf / "config.json").is_file():
        return to_model_config(read_hf_config(hf))
    return None
