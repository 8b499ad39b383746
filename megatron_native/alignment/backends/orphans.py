"""Ends an engine's processes when the process that started them is gone: vLLM's go on without it, and hold the GPUs.

Run as a script it is the guard: `python orphans.py PARENT CHILD...` waits for the parent's end, without limit.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress

_GRACE_SECONDS = 5.0


def start_guard(processes: Iterable[int]) -> subprocess.Popen[bytes] | None:
    """A guard over processes of ours, in a session of its own so that it outlives us; kill it when they have ended.

    None where the system has no pidfd (Linux has, from 5.3).
    """
    if not hasattr(os, "pidfd_open"):
        return None
    command = [sys.executable, "-I", __file__, str(os.getpid()), *map(str, processes)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def _guard(parent: int, children: list[int]) -> None:
    opened = []
    for child in children:
        with suppress(OSError):
            opened.append(os.pidfd_open(child))  # unlike a number, it can't come to mean another process
    with suppress(OSError):
        living = os.pidfd_open(parent)
        if os.getppid() == parent:
            select.select([living], [], [])
    for which in (signal.SIGTERM, signal.SIGKILL):
        for child in opened:
            with suppress(OSError):
                signal.pidfd_send_signal(child, which)
        waiting = select.poll()
        for child in opened:
            waiting.register(child, select.POLLIN)
        waiting.poll(_GRACE_SECONDS * 1000)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), [int(number) for number in sys.argv[2:]])
