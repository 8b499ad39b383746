"""The engines of one command: in this process, in processes of this machine with their GPUs, or on a Ray cluster.

Every engine is a `Puller` over the same job. One that dies is told of and the others take over what it had begun.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from megatron_native.alignment.backends.backend import BackendDownError
from megatron_native.alignment.backends.budget import BudgetSpentError
from megatron_native.alignment.backends.choice import BackendChoice
from megatron_native.alignment.rewriting.leases import LEASE_SECONDS, give_up_all, leases_in
from megatron_native.alignment.rewriting.parts_of_conduct import checks_of
from megatron_native.alignment.rewriting.pulling import Job, Puller
from megatron_native.errors import RunStoppedError, UserError
from megatron_native.progress import progress

LEASES = "leases"
_LOOK_SECONDS = 1.0
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class FleetSettings:
    """Where the engines run; nothing of it changes what is asked.

    Attributes:
        engines: engines of this command.
        gpus: GPUs of each engine; 0 on a CPU.
        alone: no other command works on the same output, so that leases found there are of dead engines.
        first: the part that the first engine begins with.
        lease_seconds: age of a heartbeat from which an engine counts as gone.
        ray: whether the engines run on a Ray cluster.
    """

    engines: int = 1
    gpus: int = 0
    alone: bool = True
    first: int = 0
    lease_seconds: float = LEASE_SECONDS
    ray: bool = False

    def __post_init__(self) -> None:
        if self.engines < 1:
            raise UserError(f"--engines {self.engines}: it must be 1 or more.")
        if self.lease_seconds < 1:
            raise UserError(f"--lease-seconds {self.lease_seconds}: it must be 1 or more.")


class Stopped(Exception):  # noqa: N818 (no error: a signal asked for it)
    """The run was asked to stop; what was finished is kept."""


def run_fleet(job: Job, choice: BackendChoice, settings: FleetSettings) -> list[str]:
    """Work on a job until nothing is free.

    Returns:
        What the engines that died said; empty where all went well.

    Raises:
        Stopped: SIGTERM, SIGINT or SIGUSR1 asked for it.
        UserError: what was asked for can't work with any engine.
    """
    total = job.passages()
    done = job.answered()
    if done == total:
        return []
    if settings.alone:
        give_up_all(job.work / LEASES)
    with stop_requests() as stopping, progress("rewrite", total, "passages") as bar:
        bar.advance(done)
        if settings.ray:
            from megatron_native.alignment.rewriting.on_ray import run_on_ray

            deaths = run_on_ray(job, choice, settings, stopping, _Shown(job, bar.advance, done))
        elif settings.engines == 1:
            deaths = _here(job, choice, settings, stopping, bar.advance)
        else:
            deaths = _in_processes(job, choice, settings, stopping, _Shown(job, bar.advance, done))
        if stopping():
            raise Stopped
    return deaths


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM, SIGINT and SIGUSR1 raise `Stopped`: for work whose finished tasks are kept and whose others are begun anew."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    kept = {number: signal.signal(number, stop) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def stop_requests(command: str = "rewrite") -> Iterator[Callable[[], bool]]:
    """Whether a signal asked to stop; a second SIGINT or SIGTERM ends the process as usual. `command` says so."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    kept: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: Any) -> None:
        asked.set()
        name = signal.Signals(number).name
        print(f"{command}: {name}: leaving; run the same command again to go on.", file=sys.stderr)
        for one, handler in kept.items():
            signal.signal(one, handler)

    for number in _STOPS:
        kept[number] = signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class _Shown:
    """Progress of engines in other processes, seen from what they wrote."""

    def __init__(self, job: Job, advance: Callable[[float], None], done: int) -> None:
        self._job, self._advance, self._done = job, advance, done

    def look(self) -> None:
        now = self._job.answered()
        self._advance(max(0, now - self._done))
        self._done = max(now, self._done)


def pull_with(
    job: Job,
    choice: BackendChoice,
    settings: FleetSettings,
    place: int,
    stopping: Callable[[], bool],
    report: Callable[[int], None] = lambda passages: None,
) -> str:
    """One engine, number `place` of its fleet, made and put to work; what it said if it died, else ""."""
    with leases_in(job.work / LEASES, settings.lease_seconds) as leases:
        first = settings.first + place * max(1, len(job.parts) // settings.engines)
        with choice.running(f"{settings.first}-{place}") as backend:
            try:
                Puller(job, backend, checks_of(job.settings), leases, first, report, stopping).pull()
            except BackendDownError as error:
                return str(error)
            except BudgetSpentError as error:
                raise RunStoppedError(f"{error} What is finished is kept.") from None
    return ""


def _here(
    job: Job,
    choice: BackendChoice,
    settings: FleetSettings,
    stopping: Callable[[], bool],
    report: Callable[[int], None],
) -> list[str]:
    death = pull_with(job, choice, settings, 0, stopping, report)
    return [death] if death else []


def _in_processes(
    job: Job, choice: BackendChoice, settings: FleetSettings, stopping: Callable[[], bool], shown: _Shown
) -> list[str]:
    for place in range(settings.engines):  # before any is started
        with _gpus_of(place, settings.gpus):
            pass
    context = get_context("spawn")
    said: Any = context.SimpleQueue()
    processes = [
        context.Process(target=_engine_process, args=(job, choice, settings, place, said), name=f"engine {place}")
        for place in range(settings.engines)
    ]
    for place, process in enumerate(processes):
        with _gpus_of(place, settings.gpus):
            process.start()
    asked = False
    while any(process.is_alive() for process in processes):
        time.sleep(_LOOK_SECONDS)
        shown.look()
        if stopping() and not asked:
            asked = True
            for process in processes:
                if process.is_alive():
                    process.terminate()
    shown.look()
    deaths: list[str] = []
    wrong: list[str] = []
    while not said.empty():
        kind, text = said.get()
        (wrong if kind == "wrong" else deaths).append(text)
    silent = [process for process in processes if process.exitcode not in (0, 1, 2) and not asked]
    deaths += [f"{process.name} died with exit code {process.exitcode}" for process in silent]
    if wrong and len(wrong) == len(processes):
        raise UserError(wrong[0])
    return deaths + wrong


def _engine_process(job: Job, choice: BackendChoice, settings: FleetSettings, place: int, said: Any) -> None:
    _end_with_parent()
    try:
        with stop_requests() as stopping:
            death = pull_with(job, choice, settings, place, stopping)
        if death:
            said.put(("down", f"engine {place}: {death}"))
            sys.exit(1)
    except UserError as error:
        said.put(("wrong", str(error)))
        sys.exit(2)
    except Exception:
        said.put(("down", f"engine {place}: {traceback.format_exc()}"))
        sys.exit(1)


def _end_with_parent() -> None:
    """End when the main process is killed, lest this one works on beside the next run."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _gpus_of(place: int, gpus: int) -> Iterator[None]:
    """The engine's own GPUs in the environment that its process inherits."""
    if not gpus:
        yield
        return
    before = os.environ.get(_GPUS)
    all_of_them = before.split(",") if before else [str(number) for number in range((place + 1) * gpus)]
    own = all_of_them[place * gpus : (place + 1) * gpus]
    if len(own) < gpus:
        raise UserError(
            f"--engines with {gpus} GPUs each need {(place + 1) * gpus} GPUs, but {_GPUS}={before} names {len(all_of_them)}."
        )
    os.environ[_GPUS] = ",".join(own)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_GPUS, None)
        else:
            os.environ[_GPUS] = before
