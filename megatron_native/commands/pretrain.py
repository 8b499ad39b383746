"""`megatron-native pretrain`: continue the pre-training of a checkpoint."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from megatron_native.errors import UserError

SUMMARY = "Continue the pre-training of a checkpoint, on one process or many, as a YAML file says."
EXAMPLES = """\
  megatron-native pretrain --config run.yaml
  megatron-native pretrain --nproc 4 --config run.yaml parallel.pipeline_model_parallel_size=2 training.steps=100
  megatron-native pretrain --nnodes 16 --node-rank 3 --rdzv-endpoint node1:29400 --nproc 8 --config run.yaml
  torchrun --nproc-per-node 8 --nnodes 16 ... tools/pretrain.py --config run.yaml

A run goes on from the newest checkpoint of its run_dir. Exit codes: 0 done, 75 saved and wants to be started again,
2 the configuration or its files are wrong, 1 anything else."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run's YAML file")
    parser.add_argument(
        "--nproc", type=int, default=None, metavar="N",
        help="start N processes on this machine with torchrun; without it this process is one rank (torchrun's, or alone)",
    )  # fmt: skip
    parser.add_argument(
        "--unqualified", action="store_true",
        help="start FP8 or overlapped communication at scale on GPUs that have no record of `megatron-native qualify`",
    )  # fmt: skip
    several = parser.add_argument_group("on several nodes, once on each, with --nproc")
    several.add_argument("--nnodes", type=int, default=1, metavar="N", help="how many nodes")
    several.add_argument(
        "--node-rank",
        type=int,
        metavar="R",
        help="which one this is, from 0 (SLURM_PROCID, in a task of Slurm)",
    )
    several.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where node 0 listens")
    several.add_argument(
        "--logs", type=Path, metavar="FOLDER", help="for every rank's stderr and how the ranks of each node ended"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file's")


def run(arguments: argparse.Namespace) -> int:
    """Check the configuration, then start torchrun or take part as one rank."""
    from megatron_native.training.launch import launch_local, run_rank

    if arguments.unqualified:
        from megatron_native.training.qualify.record import UNQUALIFIED_VARIABLE

        os.environ[UNQUALIFIED_VARIABLE] = "1"  # for the ranks too
    if arguments.rdzv_endpoint is not None:
        from megatron_native.training.launch_node import launch_node
        from megatron_native.training.node_place import NodePlace

        rank = int(os.environ.get("SLURM_PROCID", "0")) if arguments.node_rank is None else arguments.node_rank
        place = NodePlace(arguments.nnodes, rank, arguments.rdzv_endpoint, arguments.logs)
        return launch_node(arguments.config, arguments.overrides, arguments.nproc or 1, place)
    if arguments.nnodes > 1:
        raise UserError(f"--nnodes {arguments.nnodes} needs --rdzv-endpoint HOST:PORT, at which node 0 listens.")
    if arguments.nproc is not None:
        return launch_local(arguments.config, arguments.overrides, arguments.nproc)
    return run_rank(arguments.config, arguments.overrides)
