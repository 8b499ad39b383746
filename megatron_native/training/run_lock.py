"""One run at a time in a run folder.

`run_dir/.lock` is locked with flock, which the kernel lets go of when its holder dies, and says who holds it. Between
hosts flock may not work (a network disk), so the holder also writes its heartbeat there: what another host wrote less
than ten minutes ago counts as held.
"""

from __future__ import annotations

import errno
import fcntl
import getpass
import json
import os
import socket
import sys
import threading
import time
import weakref
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megatron_native.errors import UserError

LOCK_FILE = ".lock"
HELD_VARIABLE = "MEGATRON_NATIVE_RUN_LOCK"
"""Environment variable by which a launcher tells its ranks that it holds the lock of this run folder."""
STALE_SECONDS = 600.0
"""Age of another host's heartbeat from which it counts as gone."""
BEAT_SECONDS = 30.0
"""Time between heartbeats."""

_open_locks: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """The lock of a run folder. Not reentrant; a context manager that acquires and releases.

    A thread of its own keeps the heartbeat going while the lock is held.

    Args:
        run_dir: the run folder, made where it is missing.
        patience: seconds to watch a heartbeat of another host that is neither old nor seen to move, before refusing. A
            run that was requeued to another host after a crash goes on by itself with a patience of `STALE_SECONDS`;
            one whose holder lives is refused as soon as the heartbeat moves.
    """

    def __init__(self, run_dir: Path, patience: float = 0.0) -> None:
        self.run_dir, self.patience = Path(run_dir), patience
        self._descriptor: int | None = None
        self._holder: dict[str, Any] = {}
        self._writing = threading.Lock()
        self._released = threading.Event()

    @staticmethod
    def held_by_launcher(run_dir: Path) -> bool:
        """Whether the launcher that started this process holds the lock of `run_dir` for it."""
        held = os.environ.get(HELD_VARIABLE)
        return held is not None and held == str(Path(run_dir).resolve())

    def acquire(self) -> None:
        """Take the lock; what a dead process or a silent host left is taken over.

        Raises:
            UserError: another run holds it, with who that is and how to go on.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        deadline, seen = time.monotonic() + self.patience, None
        while True:
            descriptor, locked = self._open_and_lock()
            holder = _read(descriptor)
            try:
                awaited = self._check_free(holder, locked)
                if awaited is None:
                    break
                moved = seen is not None and holder["beat"] != seen
                if moved or time.monotonic() >= deadline:
                    raise UserError(_refusal(self.run_dir, holder, "its heartbeat moves" if moved else awaited))
            except UserError:
                os.close(descriptor)
                raise
            os.close(descriptor)
            if seen is None:
                print(
                    f"{self.run_dir}: a run on {holder['host']} was alive {awaited}; waiting to see whether it still is",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            seen = holder["beat"]
            time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
        self._descriptor = descriptor
        now = time.time()
        self._holder = {"host": socket.gethostname(), "pid": os.getpid(), "user": _user(), "started": now, "beat": now}
        self.beat()
        _open_locks.add(self)
        self._released.clear()
        threading.Thread(target=self._keep_beating, name="run-lock-heartbeat", daemon=True).start()

    def beat(self) -> None:
        """Write the heartbeat; called by the lock's own thread every `BEAT_SECONDS`."""
        with self._writing:
            if self._descriptor is not None:
                self._holder["beat"] = time.time()
                content = json.dumps(self._holder).encode() + b"\n"
                os.pwrite(self._descriptor, content, 0)
                os.ftruncate(self._descriptor, len(content))
                os.fsync(self._descriptor)

    def release(self) -> None:
        """Let the lock go; a second call does nothing. The empty file stays: removing it would be a race."""
        self._released.set()
        with self._writing:
            if self._descriptor is not None:
                os.ftruncate(self._descriptor, 0)
                os.close(self._descriptor)
                self._descriptor = None
        _open_locks.discard(self)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _keep_beating(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            try:
                self.beat()
            except OSError as error:
                print(
                    f"{self.run_dir / LOCK_FILE}: the heartbeat can't be written ({error})", file=sys.stderr, flush=True
                )

    def _open_and_lock(self) -> tuple[int, bool | None]:
        """A descriptor of the lock file and whether it is locked: False where another has it, None where it can't be."""
        path = self.run_dir / LOCK_FILE
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return descriptor, False
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                    return descriptor, None
                os.close(descriptor)
                raise
            # Somebody may have removed the file between opening and locking: then this is a lock on nothing.
            try:
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor, True
            except FileNotFoundError:
                pass
            os.close(descriptor)

    def _check_free(self, holder: dict[str, Any], locked: bool | None) -> str | None:
        """None where the lock may be taken; when it was last seen, where only waiting can tell; else UserError."""
        if locked is False:
            raise UserError(_refusal(self.run_dir, holder, None))
        if not holder:
            return None
        if holder["host"] == socket.gethostname():
            # flock works on one host, so its being free means that the holder is gone.
            if locked is None and holder["pid"] != os.getpid() and _is_alive(holder["pid"]):
                raise UserError(_refusal(self.run_dir, holder, None))
            return None
        age = time.time() - holder["beat"]
        return f"{max(0.0, age):.0f} s ago" if age < STALE_SECONDS else None


def _read(descriptor: int) -> dict[str, Any]:
    """Who holds the lock, as the file says; empty where nobody does or what is there can't be read as that."""
    for _ in range(5):
        content = os.pread(descriptor, 65536, 0)
        try:
            holder = json.loads(content) if content.strip() else {}
            if isinstance(holder, dict) and holder:
                return {
                    "host": str(holder["host"]), "pid": int(holder["pid"]), "user": str(holder.get("user", "?")),
                    "started": float(holder["started"]), "beat": float(holder["beat"]),
                }  # fmt: skip
        except (ValueError, KeyError, TypeError):
            pass
        time.sleep(0.02)  # its holder may be about to write it
    return {}


def _refusal(run_dir: Path, holder: dict[str, Any], seen: str | None) -> str:
    if not holder:
        return (
            f"another run has just been started in {run_dir} and holds its lock ({LOCK_FILE}): wait for it to end, or choose "
            "another run_dir."
        )
    host, pid = holder["host"], holder["pid"]
    started = datetime.fromtimestamp(holder["started"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    who = f"another run works in {run_dir}: process {pid} of {holder['user']} on {host}, started {started}"
    if host == socket.gethostname():
        return f"{who}. Wait for it to end, stop it (kill -TERM {pid} lets it save), or choose another run_dir."
    last = f"it was alive {seen}" if seen and seen.endswith("ago") else (seen or "it holds the lock")
    return (
        f"{who}; {last}. Wait for it to end, stop it there (kill -TERM {pid} lets it save), or choose another run_dir. If "
        f"that host is gone for good, its lock expires {STALE_SECONDS / 60:.0f} minutes after its last heartbeat."
    )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _forget_in_child() -> None:
    # A forked child (a checkpoint writer) shares the open file and with it the lock: it must not outlive its parent there.
    for lock in list(_open_locks):
        if lock._descriptor is not None:
            os.close(lock._descriptor)
            lock._descriptor = None
        lock._writing = threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)
