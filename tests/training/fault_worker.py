"""A stand-in for the trainer in tests of what is around it: gloo ranks that count steps, and go wrong on order.

    python fault_worker.py launch MODE --config FILE      the launcher, over two ranks
    python fault_worker.py MODE --config FILE             one of its ranks
    python fault_worker.py watch ROLE FOLDER RANK WORLD   one rank under a watchdog

A rank "resumes" after the last line of metrics.jsonl.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

from megatron_native.config.load import load_run_config
from megatron_native.errors import EXIT_DONE, EXIT_REQUEUE, UserError
from megatron_native.training.incidents import STALL, Incidents
from megatron_native.training.launch import launch_local, rank_outcome
from megatron_native.training.launch_folder import LaunchFolder
from megatron_native.training.restarts import last_step
from megatron_native.training.signals import StopRequest
from megatron_native.training.watchdog import Watchdog

LAST_STEP = 8


def launch(mode: str, config: Path) -> int:
    try:
        return launch_local(config, [], 2, worker=(__file__, mode))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def wait_for_stop_request_without_listening() -> None:
    folder = LaunchFolder.of_environment()
    assert folder is not None
    while folder.stop_requested() is None:
        time.sleep(0.05)


def train(mode: str, run_dir: Path) -> int:
    import torch
    import torch.distributed as dist

    attempt = int(os.environ["MEGATRON_NATIVE_RESTARTS"])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    (run_dir / f"started.{attempt}.{rank}.{os.getpid()}").touch()
    if mode == "stop-while-starting" and rank == 1:
        wait_for_stop_request_without_listening()
    start = last_step(run_dir)
    dist.barrier()
    with StopRequest() as stop, contextlib.ExitStack() as files:
        files.callback(dist.destroy_process_group)  # as the trainer's rank does: gloo's threads would abort a process that ends
        if rank == 0:
            metrics = files.enter_context(open(run_dir / "metrics.jsonl", "a", encoding="utf-8"))
        for step in range(start + 1, LAST_STEP + 1 if not mode.startswith("stop") else sys.maxsize):
            wants = torch.tensor([0 if stop.requested is None else 1])
            dist.all_reduce(wants)
            if wants.item():
                # "Saving" goes on until signals have come meanwhile.
                if mode == "stop":
                    deadline = time.monotonic() + 100
                    while stop.count("SIGTERM") < 2 and time.monotonic() < deadline:
                        (run_dir / f"saving.{rank}.{stop.count('SIGTERM')}").touch()
                        time.sleep(0.05)
                (run_dir / f"saved.{rank}").write_text(f"{stop.requested} {stop.count('SIGTERM')}")
                dist.barrier()
                return EXIT_REQUEUE
            if rank == 0:
                metrics.write(json.dumps({"step": step}) + "\n")
                metrics.flush()
            dist.barrier()
            go_wrong(mode, rank, step, start, attempt)
            if mode.startswith("stop"):
                time.sleep(0.02)
    return EXIT_DONE


def go_wrong(mode: str, rank: int, step: int, start: int, attempt: int) -> None:
    if rank != 1:
        return
    killed = {
        "killed-once": step == 3 and attempt == 0,
        "killed-after-a-step": step == start + 1,
        "killed-at-once": step == start + 1 and start == 0,
    }
    if mode == "killed-at-once" and start > 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if killed.get(mode, False):
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "user-error" and step == 2:
        raise UserError("the shard of rank 1 is missing: put it back.")
    if mode == "exception" and step == 2 and attempt == 0:
        raise ZeroDivisionError("a defect in rank 1")


def read_slow_shard() -> None:
    while True:
        time.sleep(0.1)


def watch(role: str, folder: Path, rank: int, world_size: int) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world_size)
    incidents = Incidents(folder / "incidents.jsonl")
    watchdog = Watchdog(
        folder, rank, world_size, stall_seconds=5, grace_seconds=4,
        on_stall=lambda step, summary, details: incidents.record(STALL, summary, step, details),
    )  # fmt: skip
    with watchdog:
        for step in (1, 2):
            watchdog.at(step, "reducing")
            dist.all_reduce(torch.ones(1))
        (folder / f"ready.{rank}").touch()
        if role == "read":
            watchdog.at(3, "reading data")
            read_slow_shard()
        elif role == "stop":
            watchdog.at(3, "updating")
            os.kill(os.getpid(), signal.SIGSTOP)
        elif role == "hold":
            watchdog.at(3, "updating")
            ctypes.PyDLL(None).sleep(600)  # a C call that keeps the interpreter
        elif role == "receive":
            watchdog.at(3, "forward and backward")
            request = dist.irecv(torch.ones(1), src=2)
            request.wait()
        else:
            watchdog.at(3, "forward and backward")
            dist.all_reduce(torch.ones(1))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] == "watch":
        watch(arguments[1], Path(arguments[2]), int(arguments[3]), int(arguments[4]))
    elif arguments[0] == "launch":
        sys.exit(launch(arguments[1], Path(arguments[3])))
    else:
        run = load_run_config(Path(arguments[2]), [])
        sys.exit(rank_outcome(lambda: train(arguments[0], run.run_dir)))
