"""One run at a time in a folder: refusals, stale locks, other hosts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_native.errors import UserError
from megatron_native.training import launch, run_lock
from megatron_native.training.run_lock import LOCK_FILE, RunLock
from tests.distributed import REPOSITORY

HOLDER = """
import sys, time
from pathlib import Path
from megatron_native.training.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(600)
"""


def content(run: Path) -> dict[str, Any]:
    return json.loads((run / LOCK_FILE).read_text())


def left_by(run: Path, host: str, age: float, pid: int = 4242) -> None:
    run.mkdir(exist_ok=True)
    now = time.time()
    record = {"host": host, "pid": pid, "user": "amal", "started": now - 5000, "beat": now - age}
    (run / LOCK_FILE).write_text(json.dumps(record))


@pytest.fixture
def holder(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_with_who_holds_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError) as refusal:
        RunLock(tmp_path / "run").acquire()
    said = str(refusal.value)
    assert f"process {holder.pid} of " in said
    assert f" on {socket.gethostname()}, started 2" in said
    assert f"kill -TERM {holder.pid}" in said
    assert "choose another run_dir" in said
    assert content(tmp_path / "run")["pid"] == holder.pid


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunLock(tmp_path / "run"):
        assert content(tmp_path / "run")["pid"] == os.getpid()


def test_a_released_lock_is_free(tmp_path: Path) -> None:
    first = RunLock(tmp_path)
    first.acquire()
    with pytest.raises(UserError):
        RunLock(tmp_path).acquire()
    first.release()
    first.release()
    assert (tmp_path / LOCK_FILE).read_text() == ""
    with RunLock(tmp_path):
        pass


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    reading, writing = os.pipe()
    ready, forked = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(forked, b"1")
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    os.read(ready, 1)
    os.close(ready)
    os.close(forked)
    try:
        # As the kernel does when the holder is killed: its descriptor goes, without an unlock.
        assert lock._descriptor is not None
        os.close(lock._descriptor)
        lock._descriptor = None
        with RunLock(tmp_path):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.close(writing)
        os.waitpid(child, 0)
        lock.release()


def test_another_host_with_a_fresh_heartbeat_refuses(tmp_path: Path) -> None:
    left_by(tmp_path, "node17", age=100)
    with pytest.raises(UserError) as refusal:
        RunLock(tmp_path).acquire()
    said = str(refusal.value)
    assert "process 4242 of amal on node17" in said
    assert "it was alive 100 s ago" in said
    assert "10 minutes after its last heartbeat" in said
    assert content(tmp_path)["host"] == "node17"


def test_another_host_that_has_been_silent_is_taken_over(tmp_path: Path) -> None:
    left_by(tmp_path, "node17", age=601)
    with RunLock(tmp_path):
        assert content(tmp_path)["host"] == socket.gethostname()


def test_patience_waits_until_the_other_host_is_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left_by(tmp_path, "node17", age=598)
    with RunLock(tmp_path, patience=60):
        assert content(tmp_path)["host"] == socket.gethostname()
    assert "waiting to see whether it still is" in capsys.readouterr().err


def test_patience_ends_when_the_other_host_lives(tmp_path: Path) -> None:
    left_by(tmp_path, "node17", age=100)
    done = threading.Event()

    def other_host() -> None:
        while not done.wait(0.3):
            left_by(tmp_path, "node17", age=0)

    thread = threading.Thread(target=other_host)
    thread.start()
    try:
        with pytest.raises(UserError, match="its heartbeat moves"):
            RunLock(tmp_path, patience=300).acquire()
    finally:
        done.set()
        thread.join()


def test_without_flock_the_process_itself_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(run_lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", no_locks)
    left_by(tmp_path, socket.gethostname(), age=5, pid=os.getppid())
    with pytest.raises(UserError, match=f"process {os.getppid()} of amal"):
        RunLock(tmp_path).acquire()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left_by(tmp_path, socket.gethostname(), age=5, pid=dead.pid)
    with RunLock(tmp_path):
        assert content(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", '{"host": "node17", "pi', "[]", '{"host": "node17"}'])
def test_a_file_that_says_nothing_is_no_lock(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_FILE).write_text(text)
    with RunLock(tmp_path):
        assert content(tmp_path)["pid"] == os.getpid()


def test_the_heartbeat_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.02)
    with RunLock(tmp_path) as lock:
        first, deadline = content(tmp_path)["beat"], time.monotonic() + 60
        while True:
            try:
                if content(tmp_path)["beat"] > first:
                    break
            except ValueError:
                pass  # read while it was written
            assert time.monotonic() < deadline
        lock.beat()


def test_ranks_of_a_launcher_that_holds_the_lock_do_not_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with RunLock(tmp_path):
        with pytest.raises(UserError), launch._lock_of_rank(tmp_path):
            pass
        monkeypatch.setenv(run_lock.HELD_VARIABLE, str(tmp_path.resolve()))
        with launch._lock_of_rank(tmp_path):
            pass
        with launch._lock_of_rank(tmp_path / "another") as lock:
            assert isinstance(lock, RunLock)
    monkeypatch.delenv(run_lock.HELD_VARIABLE)
    monkeypatch.setenv("RANK", "1")
    with launch._lock_of_rank(tmp_path) as lock:
        assert lock is None
