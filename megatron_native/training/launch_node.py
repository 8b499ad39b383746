"""Starting the ranks of one node of a run on several: what Slurm starts once on every node.

Ranks are not started again here after a death: the nodes would have to agree on it, and the machine may be the reason. The
job is queued again instead, with a check of its nodes (`megatron_native/slurm/`).
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from megatron_native.config.layout import check_layout
from megatron_native.config.load import load_run_config
from megatron_native.errors import EXIT_DONE, EXIT_FAILURE, EXIT_REQUEUE, RunStoppedError, UserError
from megatron_native.training.launch import (
    PRETRAIN,
    check_data,
    died_of_a_stop,
    is_finished,
    launch_environment,
)
from megatron_native.training.launch_folder import LaunchFolder
from megatron_native.training.node_place import NodeOutcome, NodePlace, State, died
from megatron_native.training.restarts import Death
from megatron_native.training.run_lock import STALE_SECONDS, RunLock


@dataclass
class _Deaths:
    """The ranks that died first on this node, and what of it."""

    deaths: list[Death] = field(default_factory=list)
    when: float | None = None
    stopping: bool = False
    """Whether the run was stopping as asked."""


def launch_node(
    config: Path, overrides: Sequence[str], processes: int, place: NodePlace, worker: Sequence[str] = PRETRAIN
) -> int:
    """Start this node's ranks and wait for them; the exit code of the node.

    SIGTERM and SIGUSR1 are passed on to the ranks, which save and stop, however long that takes. The outcome is left in
    `place.logs` as well.

    Args:
        config: the run's YAML file.
        overrides: settings that override the file's.
        processes: how many ranks this node has, and every other.
        place: this node among the others.
        worker: arguments of Python that make it a rank; `--config`, the file and the overrides follow them.

    Raises:
        UserError: the configuration does not fit or another run works in the folder (found before anything starts), or a
            rank met a user error.
    """
    seen, host = _Deaths(), socket.gethostname()
    try:
        code = _launch(config, overrides, processes, place, worker, seen)
    except UserError as error:
        state: State = "stopped" if isinstance(error, RunStoppedError) else "user_error"
        _leave(place, died(place, host, state, str(error), seen.deaths, seen.when))
        raise
    state = {EXIT_DONE: "done", EXIT_REQUEUE: "requeue"}.get(code, "stopping" if seen.stopping else "failed")  # type: ignore[assignment]
    _leave(place, died(place, host, state, str(seen.deaths[0]) if seen.deaths else "", seen.deaths, seen.when))
    return code


def _leave(place: NodePlace, outcome: NodeOutcome) -> None:
    if place.logs is not None:
        outcome.write(place.logs)


def _launch(
    config: Path, overrides: Sequence[str], processes: int, place: NodePlace, worker: Sequence[str], seen: _Deaths
) -> int:
    run = load_run_config(config, overrides)
    if processes < 1:
        raise UserError(f"--nproc {processes}: a node needs at least one process.")
    from megatron_native.training.shape import read_model

    check_layout(run, read_model(run), processes * place.nodes)
    if is_finished(run):
        return EXIT_DONE
    lock = RunLock(run.run_dir, patience=STALE_SECONDS) if place.rank == 0 else nullcontext()
    with lock, tempfile.TemporaryDirectory(prefix="megatron-native-") as shared:
        check_data(run)
        folder = LaunchFolder(Path(shared))
        with launch_environment(run, folder, processes):
            succeeded = _run([*worker, "--config", str(config), *overrides], processes, place, folder, seen)
        error = folder.user_error()
        if error is not None:
            raise error
        if folder.wants_requeue():
            return EXIT_REQUEUE
        return EXIT_DONE if succeeded else EXIT_FAILURE


def _run(arguments: Sequence[str], processes: int, place: NodePlace, folder: LaunchFolder, seen: _Deaths) -> bool:
    """Run the ranks; whether all ended with 0."""
    from megatron_native.platform.quiet import silence_libraries

    silence_libraries()
    from megatron_native.training.agent import run_ranks

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)

    def restarts_after(deaths: list[Death]) -> bool:
        seen.deaths, seen.when = deaths, time.time()
        if not folder.has_outcome() and died_of_a_stop(deaths, folder):
            folder.leave_requeue(deaths[0].rank)
        seen.stopping = folder.stop_requested() is not None
        return False

    if place.logs is not None:
        (place.logs / "stderr").mkdir(parents=True, exist_ok=True)
    job = os.environ.get("SLURM_JOB_ID", place.endpoint)
    return run_ranks(
        arguments, processes, folder, restarts_after, place, f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    )
