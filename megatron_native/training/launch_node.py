"""Starting the ranks of one node of a run on several: what Slurm starts once on every node.

Ranks are not started again here after a death: the nodes would have to agree on it, and the machine may be the reason. The
job is queued again instead, with a check of its nodes (`megatron_native/slurm/`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_native.config.run import RunConfig
from megatron_native.errors import EXIT_DONE, EXIT_REQUEUE, RunStoppedError, UserError
from megatron_native.training.launch import PRETRAIN, died_of_a_stop, launch_ranks
from megatron_native.training.launch_folder import LaunchFolder
from megatron_native.training.node_place import NodeOutcome, NodePlace, State
from megatron_native.training.restarts import Death


@dataclass
class _Deaths:
    """The ranks that died first on this node, and what of it."""

    deaths: list[Death] = field(default_factory=list)
    when: float | None = None
    stopping: bool = False
    """Whether the run was stopping as asked."""

    def noting(self, run: RunConfig, folder: LaunchFolder) -> Callable[[list[Death]], bool]:
        """For `launch_ranks`: deaths are noted, and nothing is started again."""

        def restarts_after(deaths: list[Death]) -> bool:
            self.deaths, self.when = deaths, time.time()
            if not folder.has_outcome() and died_of_a_stop(deaths, folder):
                folder.leave_requeue(deaths[0].rank)
            self.stopping = folder.stop_requested() is not None
            return False

        return restarts_after

    def leave(self, place: NodePlace, state: State, message: str) -> None:
        """The node's outcome under `place.logs`."""
        if place.logs is not None:
            deaths = [vars(death) for death in self.deaths]
            outcome = NodeOutcome(place.rank, socket.gethostname(), state, message, deaths, self.when or time.time())
            outcome.write(place.logs)


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
    seen = _Deaths()
    run_id = f"{os.environ.get('SLURM_JOB_ID', place.endpoint)}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    try:
        code = launch_ranks(config, overrides, processes, worker, seen.noting, place, run_id)
    except UserError as error:
        seen.leave(place, "stopped" if isinstance(error, RunStoppedError) else "user_error", str(error))
        raise
    seen.leave(place, _state(code, seen.stopping), str(seen.deaths[0]) if seen.deaths else "")
    return code


def _state(code: int, stopping: bool) -> State:
    """How a node has ended that no error of the user's ended."""
    if code == EXIT_DONE:
        return "done"
    if code == EXIT_REQUEUE:
        return "requeue"
    return "stopping" if stopping else "failed"
