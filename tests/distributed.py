"""Running jobs on real process groups: ranks of a worker module, several jobs one after another.

Importing torch and Megatron costs a process seconds of two cores. So the jobs of one world size share their processes, and
all ranks of a test session are forked from one process that has imported everything and computed nothing.
"""

from __future__ import annotations

import atexit
import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_server: subprocess.Popen[str] | None = None


def run_jobs(
    folder: Path, world_size: int, jobs: list[dict[str, Any]], timeout: float = 500, module: str = "tests.distributed"
) -> None:
    """Run jobs on `world_size` gloo processes; fails the test with their output if one fails.

    `main` of `module` takes the path of their description; see `main` for this one's jobs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = folder / f"jobs_{world_size}.json"
    description.write_text(json.dumps(jobs), encoding="utf-8")
    logs = [folder / f"jobs_{world_size}.rank_{rank}.log" for rank in range(world_size)]
    order = {"module": module, "description": str(description), "logs": [str(log) for log in logs], "timeout": timeout}
    server = _start_server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    said = "\n".join(f"rank {n}:\n{log.read_text(errors='replace')[-4000:]}" for n, log in enumerate(logs) if log.exists())
    assert answer, f"the process that ranks are forked from has died; {module} said:\n{said}"
    assert set(json.loads(answer)) == {0}, f"{module} on {world_size} processes ended with {answer}\n{said}"


def _start_server() -> subprocess.Popen[str]:
    global _server
    if _server is None or _server.poll() is not None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        for name in _TORCHRUN:
            environment.pop(name, None)
        _server = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed"], cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        atexit.register(_server.kill)
    return _server


def _serve() -> None:
    """Fork the ranks of every order on stdin; the exit codes of each go to stdout."""
    from megatron_native.platform.quiet import silence_libraries

    silence_libraries()
    from megatron_native.platform import cpu

    cpu.install()
    import megatron_native.training.trainer  # noqa: F401 (for the ranks)

    for line in sys.stdin:
        order = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = [_fork(order, rank, port) for rank in range(len(order["logs"]))]
        print(json.dumps(_wait(pids, order["timeout"])), flush=True)


def _fork(order: dict[str, Any], rank: int, port: int) -> int:
    """Start a rank as torchrun would: its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(order["logs"][rank], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(target, stream)
        size = len(order["logs"])
        if size > 1:
            os.environ.update(zip(_TORCHRUN, (str(rank), str(size), str(rank), str(size), "127.0.0.1", str(port))))
        importlib.import_module(order["module"]).main(Path(order["description"]))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for child in multiprocessing.active_children():  # megatron-core's writer leaves the server of its queue behind
            child.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pids: list[int], timeout: float) -> list[int]:
    """Exit codes of processes; when one fails or the time is over, the others are killed."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) or time.monotonic() > deadline:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def leave_groups() -> None:
    """Take down the groups of a job, but for that of all processes: each keeps threads and connections of its own."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)


def main(description: Path) -> None:
    """Do the jobs of a file, in order, on this process's place in the group.

    A job is `{"train": RunConfig}`, which builds a Trainer and fits it, or `{"logits": {"checkpoint", "ids",
    "output", "precision"}}`, which saves the logits of a checkpoint for sequences of ids, in FP32 or as it says.
    """
    from megatron_native.platform import start_platform

    platform = start_platform("cpu")

    for job in json.loads(description.read_text(encoding="utf-8")):
        if "train" in job:
            from megatron_native.config.load import check_run_config
            from megatron_native.training.trainer import Trainer

            Trainer(check_run_config(job["train"], "test"), platform).fit()
        else:
            import torch

            from megatron_native.training.forward import checkpoint_logits

            asked = job["logits"]
            precision = asked.get("precision", "fp32")
            logits = checkpoint_logits(Path(asked["checkpoint"]), asked["ids"], platform, precision)
            torch.save(logits, asked["output"])
        leave_groups()


if __name__ == "__main__":
    _serve()
