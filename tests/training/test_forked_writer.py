"""Work in a forked process: its result, its failures, and its end when nobody wants it any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_native.training.forked_writer import ForkedWriter
from tests.distributed import REPOSITORY


def outcome(writer: ForkedWriter) -> tuple[Any, str | None]:
    while not writer.done():
        time.sleep(0.005)
    return writer.result()


def test_the_result_comes_back_however_large() -> None:
    assert outcome(ForkedWriter(lambda _: b"x" * (8 << 20))) == (b"x" * (8 << 20), None)


def test_an_exception_comes_back_as_its_reason() -> None:
    def work(_: Callable[[], None]) -> None:
        raise OSError(28, "No space left on device", "/disk/file")

    value, failed = outcome(ForkedWriter(work))
    assert value is None and failed is not None
    assert "No space left on device" in failed and "/disk/file" in failed


@pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(3)])
def test_a_process_that_dies_is_a_failure(end: Callable[[], None]) -> None:
    value, failed = outcome(ForkedWriter(lambda _: end()))
    assert value is None and failed in (
        "the writing process was killed by signal 9",
        "the writing process ended with status 3",
    )


def test_the_fork_sees_memory_as_it_was(tmp_path: Path) -> None:
    tensor = torch.arange(1 << 16, dtype=torch.float32)

    def work(_: Callable[[], None]) -> list[float]:
        while not (tmp_path / "gate").exists():
            time.sleep(0.005)
        return [float(tensor[0]), float(tensor[-1])]

    writer = ForkedWriter(work)
    assert not writer.done()
    tensor.fill_(-1)
    (tmp_path / "gate").touch()
    assert outcome(writer) == ([0.0, 65535.0], None)


def test_the_fork_holds_no_descriptor_of_its_parent() -> None:
    reading, writing = os.pipe()
    writer = ForkedWriter(lambda _: sorted(int(name) for name in os.listdir("/proc/self/fd")))
    held, failed = outcome(writer)
    os.close(reading)
    os.close(writing)
    assert failed is None
    assert reading not in held and writing not in held


def test_the_fork_outlives_the_signals_of_its_job(tmp_path: Path) -> None:
    def work(_: Callable[[], None]) -> str:
        (tmp_path / "ready").touch()
        while not (tmp_path / "gate").exists():
            time.sleep(0.005)
        return "done"

    writer = ForkedWriter(work)
    while not (tmp_path / "ready").exists():
        time.sleep(0.005)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(writer._pid, number)
    (tmp_path / "gate").touch()
    assert outcome(writer) == ("done", None)


def test_the_fork_ends_with_its_parent_and_runs_nothing_of_its_exit(tmp_path: Path) -> None:
    script = f"""
import atexit, os, time
from pathlib import Path
from megatron_native.training.forked_writer import ForkedWriter
folder = Path({str(tmp_path)!r})
atexit.register(lambda: (folder / f"exit_{{os.getpid()}}").touch())
def work(require_parent):
    (folder / "pid.new").write_text(str(os.getpid()))
    (folder / "pid.new").rename(folder / "pid")
    while True:
        require_parent()
        time.sleep(0.005)
ForkedWriter(work)
while not (folder / "pid").exists():
    time.sleep(0.005)
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    child = int((tmp_path / "pid").read_text())

    def runs() -> bool:
        try:
            return Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    while runs():  # the test's own timeout ends this
        time.sleep(0.01)
    assert len(list(tmp_path.glob("exit_*"))) == 1 and not (tmp_path / f"exit_{child}").exists()
