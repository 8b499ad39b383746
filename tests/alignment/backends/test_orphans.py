"""Children of a killed process are ended; those of a living one are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import subprocess, sys, time
from megatron_native.alignment.backends.orphans import start_guard
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
plain = "import time; print('up', flush=True); time.sleep(600)"
children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for code in PROGRAMS]
[child.stdout.readline() for child in children]
guard = start_guard([child.pid for child in children])
print(guard.pid, *(child.pid for child in children), flush=True)
time.sleep(600)
"""


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("programs", ["[plain, plain]", "[stubborn]"])
def test_children_of_a_killed_process_are_ended(programs: str) -> None:
    code = PARENT.replace("PROGRAMS", programs)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    guard, *children = map(int, parent.stdout.readline().split())
    time.sleep(0.5)
    assert all(is_running(process) for process in (guard, *children))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while any(is_running(process) for process in (guard, *children)):
        assert time.monotonic() < deadline, "a child or the guard is still there"
        time.sleep(0.1)
