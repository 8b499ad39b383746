"""From the arguments of `launch` to what the jobs of a run are made from."""

from __future__ import annotations

import argparse

from megatron_native.config.load import load_run_config
from megatron_native.errors import UserError
from megatron_native.slurm.cluster import Cluster
from megatron_native.slurm.jobs import RunJobs
from megatron_native.training.shape import find_model


def read_run_jobs(arguments: argparse.Namespace, cluster: Cluster) -> RunJobs:
    """The jobs of the run that the arguments name.

    Raises:
        UserError: the run's file is missing or wrong.
    """
    if arguments.config is None:
        raise UserError(f"--what {arguments.what} needs --config FILE, the run's YAML file.")
    run = load_run_config(arguments.config, arguments.overrides, files=False)
    return RunJobs(
        run, arguments.config, arguments.overrides, cluster, arguments.nodes, find_model(run, arguments.hf), arguments.hf,
        arguments.export,
    )  # fmt: skip
