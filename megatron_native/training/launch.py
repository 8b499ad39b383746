"""Starting a run: as one rank, or as a local torchrun over several processes.

What can be wrong with a configuration is found before any process is started. A rank that the local launcher started
hands a user error to it, so that it is read once and not once a rank.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_native.checkpoint.layout import check_complete
from megatron_native.config.layout import check_layout
from megatron_native.config.load import load_run_config
from megatron_native.config.megatron import CUDA_ENVIRONMENT
from megatron_native.config.run import RunConfig
from megatron_native.errors import EXIT_DONE, EXIT_FAILURE, EXIT_REQUEUE, UserError

_ERROR_FOLDER = "MEGATRON_NATIVE_ERROR_FOLDER"


def run_rank(config: Path, overrides: Sequence[str]) -> int:
    """Be one rank of a run (torchrun's environment says which, or the only one); its exit code."""
    try:
        return _train(config, overrides)
    except UserError as error:
        folder = os.environ.get(_ERROR_FOLDER)
        if folder is None:
            raise
        (Path(folder) / os.environ.get("RANK", "0")).write_text(str(error), encoding="utf-8")
        return error.exit_code


def _train(config: Path, overrides: Sequence[str]) -> int:
    run = load_run_config(config, overrides)
    if _is_finished(run):
        return EXIT_DONE
    from megatron_native.platform import start_platform, stop_platform

    platform = start_platform(run.platform, cuda_environment=CUDA_ENVIRONMENT)
    import torch

    from megatron_native.training.trainer import Trainer

    if platform.name == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, _cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    try:
        return Trainer(run, platform).fit()
    finally:
        stop_platform()


def launch_local(config: Path, overrides: Sequence[str], processes: int) -> int:
    """Start `processes` ranks on this machine with torchrun's launcher and wait for them; the exit code of the run.

    Raises:
        UserError: the configuration does not fit (found before anything starts), or a rank met a user error.
    """
    run = load_run_config(config, overrides)
    if processes < 1:
        raise UserError(f"--nproc {processes}: a run needs at least one process.")
    from megatron_native.training.shape import read_model

    check_layout(run, read_model(run), processes)
    if _is_finished(run):
        return EXIT_DONE
    from megatron_native.platform.quiet import silence_libraries

    silence_libraries()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // processes)))
    # The ranks import the same package as this process, also from a clone that is not installed.
    package_root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="megatron-native-") as errors:
        os.environ[_ERROR_FOLDER] = errors
        launch = elastic_launch(
            LaunchConfig(
                min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0, monitor_interval=0.1,
                rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id=str(os.getpid()),
            ),
            sys.executable,
        )  # fmt: skip
        try:
            launch("-m", "megatron_native", "pretrain", "--config", str(config), *overrides)
        except ChildFailedError as failure:
            messages = sorted({path.read_text(encoding="utf-8") for path in Path(errors).iterdir()})
            if messages:
                raise UserError(" ".join(messages)) from None
            return _exit_code(failure)
    return EXIT_DONE


def _is_finished(run: RunConfig) -> bool:
    """Whether the run's last step is saved, whole; then says so."""
    if run.training.steps is None:
        return False
    folder = run.run_dir / "checkpoints" / f"step_{run.training.steps:08d}"
    if not (run.checkpointing.resume and folder.is_dir()):
        return False
    check_complete(folder)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"pretrain: all {run.training.steps} steps are done already, saved as {folder}; skipped")
    return True


def _exit_code(failure: Any) -> int:
    rank, first = failure.get_first_failure()
    if first.exitcode == EXIT_REQUEUE:
        return EXIT_REQUEUE
    print(f"rank {rank} ended first, with exit code {first.exitcode}; its traceback is above", file=sys.stderr)
    return EXIT_FAILURE


def _cores() -> int:
    return len(os.sched_getaffinity(0))
