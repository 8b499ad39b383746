"""Leases: files that say who works on what, so that any number of engines share one folder without a server.

The n-th holder of a thing makes `NAME.n`, which only one can; the highest number holds it. A lease ends when it is
given back, when its holder's process is gone (on the same host), or when its heartbeat is older than a limit; then the
next number may be taken. So the number also says how many holders ended without finishing.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEASE_SECONDS = 600.0
"""Age of a heartbeat from which its holder counts as gone. Slow network disks show times late; this is generous."""
GIVEN_UP = "given up"


@dataclass(frozen=True)
class Lease:
    """Something held: its name, and how many held it before and didn't finish."""

    name: str
    attempt: int
    path: Path


class Leases:
    """The leases of a folder, as one holder sees them.

    A thread of its own keeps the heartbeat of what is held; `close` ends it.

    Args:
        folder: where the leases are.
        seconds: age of a heartbeat from which its holder counts as gone.
    """

    def __init__(self, folder: Path, seconds: float = LEASE_SECONDS) -> None:
        self.folder, self.seconds = folder, seconds
        self._held: dict[str, Lease] = {}
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._token = uuid.uuid4().hex  # in the names of files on their way: hosts and threads never share one
        self._me = {
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "start": _start_of(os.getpid()),
        }
        folder.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._beat, daemon=True, name="leases").start()

    def take(self, name: str) -> Lease | None:
        """Hold `name`, or None where another holds it."""
        newest = self._newest(name)
        if newest is not None and not self._is_over(self.folder / f"{name}.{newest}"):
            return None
        number = 0 if newest is None else newest + 1
        path = self.folder / f"{name}.{number}"
        partial = self.folder / f".{name}.{number}.{self._token}"
        partial.write_text(json.dumps(self._me), encoding="utf-8")
        try:
            os.link(partial, path)  # fails where the file is there, and never shows half of it
        except FileExistsError:
            return None
        finally:
            partial.unlink()
        lease = Lease(name, number, path)
        with self._guard:
            self._held[name] = lease
        return lease

    def finish(self, lease: Lease) -> None:
        """What was held is done: its leases are taken away."""
        self._forget(lease)
        for number in range(lease.attempt, -1, -1):
            (self.folder / f"{lease.name}.{number}").unlink(missing_ok=True)

    def give_back(self, lease: Lease) -> None:
        """What was held is not done and nothing speaks against it: as if it had not been taken."""
        self._forget(lease)
        lease.path.unlink(missing_ok=True)

    def give_up(self, lease: Lease) -> None:
        """What was held is not done, and the engine died with it: the next holder is told."""
        self._forget(lease)
        _give_up(lease.path)

    def held(self) -> list[Lease]:
        """What is held now."""
        with self._guard:
            return list(self._held.values())

    def close(self) -> None:
        """Give back what is held, and end the heartbeat."""
        for lease in self.held():
            self.give_back(lease)
        self._ended.set()

    def _forget(self, lease: Lease) -> None:
        with self._guard:
            self._held.pop(lease.name, None)

    def _newest(self, name: str) -> int | None:
        number = None
        while (self.folder / f"{name}.{0 if number is None else number + 1}").exists():
            number = 0 if number is None else number + 1
        return number

    def _is_over(self, path: Path) -> bool:
        try:
            holder: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            age = self._now() - path.stat().st_mtime
        except FileNotFoundError:
            return False  # finished or given back just now: the next look will tell
        if holder.get(GIVEN_UP):
            return True
        if (holder["host"], holder["boot"]) == (self._me["host"], self._me["boot"]):
            if holder["pid"] == self._me["pid"]:
                return holder["start"] != self._me["start"]
            return _start_of(holder["pid"]) != holder["start"]
        return age > self.seconds

    def _now(self) -> float:
        """The time as the disk has it: clocks of hosts differ."""
        clock = self.folder / f".clock.{self._token}"
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink(missing_ok=True)
        return now

    def _beat(self) -> None:
        while not self._ended.wait(self.seconds / 10):
            for lease in self.held():
                try:
                    os.utime(lease.path)
                except OSError:  # taken away by another who thought us gone, or the disk is: finishing will tell
                    continue


@contextmanager
def leases_in(folder: Path, seconds: float = LEASE_SECONDS) -> Iterator[Leases]:
    """The leases of a folder; what is still held at the end is given back."""
    leases = Leases(folder, seconds)
    try:
        yield leases
    finally:
        leases.close()


def give_up_all(folder: Path) -> None:
    """All leases of a folder in which nobody works: their holders were killed."""
    if folder.is_dir():
        for path in folder.iterdir():
            if not path.name.startswith("."):
                _give_up(path)


def _give_up(path: Path) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    partial.write_text(json.dumps({GIVEN_UP: True}), encoding="utf-8")
    partial.replace(path)


def _boot_id() -> str:
    """Boot and PID namespace: containers of one host share its name and its boot, and don't see each other's processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process began, in clock ticks since the start of the machine; "" where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
