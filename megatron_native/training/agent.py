"""torchrun's agent on one node, with restarts and signals as a training run needs them.

torchrun's own agent ends ranks that outlive a dead one with SIGTERM and gives them half a minute; here SIGTERM means
"save and stop", which the ranks that are left can't do, so they are ended at once. And torchrun kills all ranks half a
minute after a SIGTERM of its own, while a save may take longer; here stop signals are passed on and the ranks' end is
waited for.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from megatron_native.training.launch_folder import LaunchFolder
from megatron_native.training.node_place import NodePlace, stderr_file
from megatron_native.training.restarts import Death
from megatron_native.training.signals import STOP_SIGNALS

RESTARTS_VARIABLE = "MEGATRON_NATIVE_RESTARTS"
"""Environment variable that tells ranks how often they have been started again."""

_MONITOR_SECONDS = 0.1
_RENDEZVOUS_SECONDS = 900


class RankLogs(LogsSpecs):
    """The stderr of every rank in a file of its own; stdout goes where the launcher's goes."""

    def __init__(self, place: NodePlace) -> None:
        super().__init__()
        self._place = place
        if place.logs is not None:
            stderr_file(place.logs, 0).parent.mkdir(parents=True, exist_ok=True)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Where the streams of the local ranks go."""
        files = {local: str(self._place.stderr_of(int(env["RANK"])) or "") for local, env in envs.items()}
        for env in envs.values():
            env["TORCHELASTIC_ERROR_FILE"] = ""
        nowhere = dict.fromkeys(envs, "")
        return LogsDest(nowhere, files, {}, {}, dict.fromkeys(envs, os.devnull))

    @property
    def root_log_dir(self) -> str:
        """The folder of logs."""
        return str(self._place.logs or "")


class RankAgent(LocalElasticAgent):
    """Starts the ranks once, passes stop signals on to them, and ends those that outlive a dead one.

    Args:
        spec: torchrun's description of the ranks.
        folder: what the ranks and this process share.
        place: this node among several, or None on one machine.
    """

    def __init__(self, spec: WorkerSpec, folder: LaunchFolder, place: NodePlace | None = None) -> None:
        super().__init__(spec, DefaultLogsSpecs() if place is None else RankLogs(place))
        self._folder = folder
        self._rank_pids: dict[int, int] = {}
        self.deaths: list[Death] = []
        """The ranks that died first."""

    def handle_stop_signals(self) -> None:
        """From now on, SIGTERM and SIGUSR1 to this process are passed on to the ranks."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        # The request is written first: a rank that does not listen yet would die of the signal, and will read this.
        self._folder.request_stop(signal.Signals(number).name)
        listeners = self._folder.listeners()
        for pid in self._rank_pids.values():
            if pid in listeners and _ended(pid) is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        pids = super()._start_workers(worker_group)
        self._rank_pids = {worker_group.workers[local_rank].global_rank: pid for local_rank, pid in pids.items()}
        self.handle_stop_signals()  # torch before 2.8 takes SIGTERM for itself at every start
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self.deaths = [Death(rank, code) for rank, pid in self._rank_pids.items() if (code := _ended(pid))]
        if self.deaths:
            self._end_the_others()
        result = super()._monitor_workers(worker_group)
        if not self.deaths and result.failures:  # between that look and this one
            rank, failure = min(result.failures.items(), key=lambda item: item[1].timestamp)
            self.deaths = [Death(rank, failure.exitcode)]
        return result

    def _end_the_others(self) -> None:
        for pid in self._rank_pids.values():
            if _ended(pid) is None:
                with contextlib.suppress(ProcessLookupError):
                    # Each rank leads a process group of its own, so its children (checkpoint writers) end with it.
                    if os.getpgid(pid) == pid:
                        os.killpg(pid, signal.SIGKILL)
                    else:
                        os.kill(pid, signal.SIGKILL)


def _ended(pid: int) -> int | None:
    """Exit code of a child (minus the signal's number), None while it runs; it stays there for others to wait for."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0  # waited for already, and a death would have ended the round
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def run_ranks(
    arguments: Sequence[str],
    processes: int,
    folder: LaunchFolder,
    restarts_after: Callable[[list[Death]], bool],
    place: NodePlace | None = None,
    run_id: str | None = None,
) -> bool:
    """Run `processes` ranks of this Python with `arguments` to their end; whether all ended with 0.

    Call on the main thread. SIGTERM and SIGUSR1 are passed on to the ranks that listen (see `LaunchFolder`).

    Args:
        arguments: of Python, for every rank.
        processes: how many ranks.
        folder: what the ranks and this process share.
        restarts_after: called with the deaths that came first; whether all ranks are started again.
        place: this node among several, or None on one machine.
        run_id: what all nodes of the run call it, where there are several.

    Raises:
        KeyboardInterrupt: SIGINT came; the ranks have been ended.
        SystemExit: SIGHUP or SIGQUIT came; the ranks have been ended.
    """
    # torchrun's agent ends the ranks on these; a hangup that is ignored (nohup) stays so.
    own = ["SIGINT", "SIGQUIT"] + (["SIGHUP"] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else [])
    touched = [*STOP_SIGNALS, *(getattr(signal, name) for name in own)]
    before = {number: signal.getsignal(number) for number in touched}
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(own)
    try:
        for attempt in itertools.count():
            os.environ[RESTARTS_VARIABLE] = str(attempt)
            deaths = _run_once(arguments, processes, folder, f"{run_id or os.getpid()}.{attempt}", place)
            if not deaths or not restarts_after(deaths):
                return not deaths
        raise AssertionError("attempts do not end by themselves")
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None
    finally:
        os.environ.pop(RESTARTS_VARIABLE, None)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _run_once(
    arguments: Sequence[str], processes: int, folder: LaunchFolder, run_id: str, place: NodePlace | None
) -> list[Death]:
    """Start all ranks and wait for them; the deaths that came first.

    torch's agent could start ranks again itself, but through the same store, where they find the addresses of the dead
    ones (pytorch/pytorch#135712): each attempt gets an agent and a store of its own. Among several nodes, ranks are in the
    order of the nodes, as the scheduler has placed them (a c10d rendezvous would sort them by address).
    """
    if place is None:
        parameters = RendezvousParameters(
            backend="c10d", endpoint="localhost:0", run_id=run_id, min_nodes=1, max_nodes=1, timeout=_RENDEZVOUS_SECONDS
        )
    else:
        parameters = RendezvousParameters(
            backend="static", endpoint=place.endpoint, run_id=run_id, min_nodes=place.nodes, max_nodes=place.nodes,
            rank=place.rank, timeout=_RENDEZVOUS_SECONDS,
        )  # fmt: skip
    rendezvous = get_rendezvous_handler(parameters)
    spec = WorkerSpec(
        role="trainer", local_world_size=processes, entrypoint=sys.executable, args=tuple(arguments),
        rdzv_handler=rendezvous, max_restarts=0, monitor_interval=_MONITOR_SECONDS,
    )  # fmt: skip
    agent = RankAgent(spec, folder, place)
    try:
        agent.handle_stop_signals()
        failed = agent.run().is_failed()
    finally:
        rendezvous.shutdown()
    return agent.deaths or ([Death(0, 1)] if failed else [])
