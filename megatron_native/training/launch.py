"""Starting a run: as one rank, or as a local torchrun over several processes.

What can be wrong with a configuration is found before any process is started. When a rank of the local launcher dies, all
ranks start again from the newest checkpoint, `faults.max_restarts` times. A user error and a stop that was asked for are
final: the rank leaves them to the launcher (`launch_folder.py`), so that they are said once and not once a rank.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from megatron_native.checkpoint.layout import check_complete
from megatron_native.config.environment import check_environment, cuda_environment
from megatron_native.config.layout import check_layout
from megatron_native.config.load import load_run_config
from megatron_native.config.requirements import check_requirements
from megatron_native.config.run import RunConfig
from megatron_native.errors import EXIT_DONE, EXIT_FAILURE, EXIT_REQUEUE, UserError
from megatron_native.training.incidents import GAVE_UP, RANK_DIED, RESTART, STOP_REQUESTED, Incidents
from megatron_native.training.launch_folder import FOLDER_VARIABLE, LaunchFolder
from megatron_native.training.node_place import NodePlace
from megatron_native.training.restarts import Death, RestartPolicy
from megatron_native.training.run_lock import HELD_VARIABLE, STALE_SECONDS, RunLock
from megatron_native.training.signals import STOP_SIGNALS

FINISHED_FILE = "finished.json"
"""What the trainer leaves in the run folder at its end: `step`, `checkpoint` (relative to the run folder, or absolute),
`plan` (the configuration's `phases` as JSON), and `early_stop`, the rule that ended the run before its last step, or None."""
PRETRAIN = ("-m", "megatron_native", "pretrain")
"""Arguments of Python that make it one rank of a run, before `--config` and the overrides."""

_LAUNCHER_NOTICES_SECONDS = 3.0


def run_rank(config: Path, overrides: Sequence[str]) -> int:
    """Be one rank of a run (torchrun's environment says which, or the only one); its exit code."""
    return rank_outcome(lambda: _train(config, overrides))


def rank_outcome(train: Callable[[], int]) -> int:
    """Do `train` as one rank and return its exit code, with its outcome left to the launcher where that is ours.

    Under our launcher a rank that stopped as asked ends with 0, so that the others are not ended while they still save,
    and a rank that is started again although another has left an outcome ends at once.

    Raises:
        UserError: what `train` raised, where there is no launcher to tell it.
    """
    folder = LaunchFolder.of_environment()
    if folder is None:
        return train()
    if folder.has_outcome():
        return EXIT_DONE
    _die_with_launcher()
    rank = int(os.environ.get("RANK", "0"))
    try:
        code = train()
    except UserError as error:
        folder.leave_user_error(rank, error)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # the launcher says so
    except Exception as error:
        if _is_lost_connection(error):
            # Another rank died, and the launcher is about to end this one: a traceback from each would hide the cause.
            time.sleep(_LAUNCHER_NOTICES_SECONDS)
        raise
    if code == EXIT_REQUEUE:
        folder.leave_requeue(rank)
        return EXIT_DONE
    return code


def _train(config: Path, overrides: Sequence[str]) -> int:
    run = load_run_config(config, overrides)
    if is_finished(run):
        return EXIT_DONE
    with _lock_of_rank(run.run_dir):
        if LaunchFolder.of_environment() is None and int(os.environ.get("LOCAL_RANK", "0")) == 0:
            _check_data(run)
        from megatron_native.platform import start_platform, stop_platform

        platform = start_platform(run.platform, cuda_environment=cuda_environment(run))
        import torch

        from megatron_native.training.qualify.record import check_qualified
        from megatron_native.training.trainer import Trainer

        if platform.name == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, _cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        try:
            if platform.name == "cuda":
                check_machine(run)
            check_qualified(run, platform)
            return Trainer(run, platform).fit()
        finally:
            stop_platform()


def check_machine(run: RunConfig) -> None:
    """Refuse what the GPUs, the installed packages or the environment can't do as configured.

    Raises:
        UserError: names every setting that asks for too much, and what would do.
    """
    from megatron_native.platform.machine import this_machine
    from megatron_native.training.shape import read_model

    check_environment(run, os.environ)
    check_requirements(run, read_model(run), this_machine())


def _lock_of_rank(run_dir: Path) -> AbstractContextManager[Any]:
    """The run's lock, in rank 0 of a run that no launcher of ours holds it for."""
    if int(os.environ.get("RANK", "0")) != 0 or RunLock.held_by_launcher(run_dir):
        return nullcontext()
    return RunLock(run_dir, patience=STALE_SECONDS)


def launch_local(config: Path, overrides: Sequence[str], processes: int, worker: Sequence[str] = PRETRAIN) -> int:
    """Start `processes` ranks on this machine with torchrun's agent and wait for them; the exit code of the run.

    SIGTERM and SIGUSR1 are passed on to the ranks, which save and stop, however long that takes.

    Args:
        config: the run's YAML file.
        overrides: settings that override the file's.
        processes: how many ranks.
        worker: arguments of Python that make it a rank; `--config`, the file and the overrides follow them.

    Raises:
        UserError: the configuration does not fit or another run works in the folder (found before anything starts), or a
            rank met a user error.
    """
    return launch_ranks(config, overrides, processes, worker, lambda run, folder: _restarts(run, folder, processes))


def launch_ranks(
    config: Path,
    overrides: Sequence[str],
    processes: int,
    worker: Sequence[str],
    restarts: Callable[[RunConfig, LaunchFolder], Callable[[list[Death]], bool]],
    place: NodePlace | None = None,
    run_id: str | None = None,
) -> int:
    """Check what can be checked, run this machine's ranks, and turn what they left into an exit code.

    Args:
        config: the run's YAML file.
        overrides: settings that override the file's.
        processes: how many ranks this machine has, and every other.
        worker: arguments of Python that make it a rank; `--config`, the file and the overrides follow them.
        restarts: what `agent.run_ranks` asks after deaths, made for the run and the folder that its ranks share with us.
        place: this node among several, or None on one machine.
        run_id: what all nodes of the run call it, where there are several.

    Raises:
        UserError: see `launch_local`.
    """
    run = load_run_config(config, overrides)
    if processes < 1:
        raise UserError(f"--nproc {processes}: a run needs at least one process.")
    from megatron_native.training.shape import read_model

    check_layout(run, read_model(run), processes * (1 if place is None else place.nodes))
    if is_finished(run):
        return EXIT_DONE
    locks = place is None or place.rank == 0
    lock: AbstractContextManager[Any] = RunLock(run.run_dir, patience=STALE_SECONDS) if locks else nullcontext()
    with lock, tempfile.TemporaryDirectory(prefix="megatron-native-") as shared:
        _check_data(run)
        folder = LaunchFolder(Path(shared))
        arguments = [*worker, "--config", str(config), *overrides]
        with _launch_environment(run, folder, processes):
            from megatron_native.platform.quiet import silence_libraries

            silence_libraries()
            from megatron_native.training.agent import run_ranks

            logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
            succeeded = run_ranks(arguments, processes, folder, restarts(run, folder), place, run_id)
        error = folder.user_error()
        if error is not None:
            raise error
        if folder.wants_requeue():
            return EXIT_REQUEUE
        return EXIT_DONE if succeeded else EXIT_FAILURE


def _check_data(run: RunConfig) -> None:
    """Refuse damaged or foreign data before any device is touched; once a node."""
    from megatron_native.data.startup_check import check_datasets
    from megatron_native.training.shape import read_model

    check_datasets(run, read_model(run), lambda line: print(line, flush=True))


@contextmanager
def _launch_environment(run: RunConfig, folder: LaunchFolder, processes: int) -> Iterator[None]:
    """The environment in which ranks are started: they find their launcher's folder and know that the run is locked."""
    os.environ[FOLDER_VARIABLE] = str(folder.path)
    os.environ[HELD_VARIABLE] = str(run.run_dir.resolve())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // processes)))
    os.environ.update(with_this_package(os.environ))
    try:
        yield
    finally:
        for name in (FOLDER_VARIABLE, HELD_VARIABLE):
            os.environ.pop(name)


def with_this_package(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Python imports the same package as this process, also from a clone that is not installed."""
    package_root = str(Path(__file__).resolve().parents[2])
    there = environment.get("PYTHONPATH")
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, [package_root, there]))}


def _restarts(run: RunConfig, folder: LaunchFolder, processes: int) -> Callable[[list[Death]], bool]:
    """What decides after deaths whether all ranks start again, and writes down why."""
    incidents = Incidents(run.run_dir / "incidents.jsonl")
    policy = RestartPolicy(run.run_dir, processes, run.faults.max_restarts)

    def restarts_after(deaths: list[Death]) -> bool:
        if folder.has_outcome():
            return False
        if died_of_a_stop(deaths, folder):
            folder.leave_requeue(deaths[0].rank)
            incidents.record(STOP_REQUESTED, f"stopped by {folder.stop_requested()} while the ranks were starting")
            return False
        details = {"deaths": [vars(death) for death in deaths], "restarts": policy.restarts}
        if folder.stop_requested() is not None:
            message = (
                f"{deaths[0]} while the run was stopping on {folder.stop_requested()}: what it had not saved by then is "
                "lost. The same command goes on from the newest checkpoint."
            )
            incidents.record(RANK_DIED, message, details=details)
            return False
        verdict = policy.judge(deaths)
        incidents.record(RESTART if verdict.restart else GAVE_UP, verdict.message, details=details)
        return verdict.restart

    return restarts_after


def died_of_a_stop(deaths: Sequence[Death], folder: LaunchFolder) -> bool:
    """Whether ranks died of a stop signal before they could handle it, so that nothing is lost.

    A scheduler signals every process of a job by itself, in any order: give the launcher's own signal time to arrive.
    """
    if not all(-death.exit_code in STOP_SIGNALS for death in deaths):
        return False
    deadline = time.monotonic() + 1.0
    while folder.stop_requested() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return folder.stop_requested() is not None


def is_finished(run: RunConfig) -> bool:
    """Whether the trainer says that the run is through, with no more asked for than then; then says so."""
    if not run.checkpointing.resume:
        return False
    try:
        record = json.loads((run.run_dir / FINISHED_FILE).read_text(encoding="utf-8"))
        done, checkpoint, plan = int(record["step"]), run.run_dir / str(record["checkpoint"]), record.get("plan") or []
        ended_early = record.get("early_stop")
        check_complete(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        return False  # not finished, or no longer whole: the trainer goes on from what is
    settings = run.model_dump(mode="json")
    if plan != settings["phases"] or (ended_early and ended_early != settings["evaluation"]["early_stop"]):
        return False
    if not ended_early and (run.training.steps or 0) > done:
        return False
    if int(os.environ.get("RANK", "0")) == 0:
        what = (
            f"evaluation.early_stop ended the run after step {done}"
            if ended_early
            else f"all {done} steps are done already"
        )
        print(f"pretrain: {what}, saved as {checkpoint}; skipped")
    return True


def _die_with_launcher() -> None:
    """End this process when its launcher is killed: it holds the run's lock, so a rank must not outlive it."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))


def _is_lost_connection(error: Exception) -> bool:
    return tells_lost_connection(f"{type(error).__name__} {error}")


def tells_lost_connection(said: str) -> bool:
    """Whether a rank that said so at its end had only lost its connection to another one."""
    signs = ("closed by peer", "reset by peer", "broken pipe", "nccl", "gloo", "connection")
    return any(sign in said.lower() for sign in signs)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
