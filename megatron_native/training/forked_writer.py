"""A piece of work in a forked process, while this process goes on changing the memory that the work reads.

The fork sees memory as it was (copy on write). It does nothing but the work: it closes every inherited descriptor, so
that no connection of the process group stays open through it, runs no handlers of its parent's signals or exit, and
ends when its parent does. Its result comes back through an anonymous file in memory, which no full disk can refuse;
there is no pipe to fill and no queue to wait on, so a writer that dies in whatever way is noticed and never waited for.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import warnings
from collections.abc import Callable
from typing import Any

import torch

from megatron_native.checkpoint.layout import in_one_line

_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Sent to a whole process group or job; the parent decides what they mean, and may still want the checkpoint."""


class OrphanedError(Exception):
    """The process that forked this one is gone."""


class ForkedWriter:
    """Runs `work` in a forked process from now on.

    Args:
        work: gets a function that raises `OrphanedError` once the parent is gone, to be called now and then; its
            result must be picklable. It must neither touch a device nor the process group.

    Raises:
        OSError: the process can't be forked (no memory, too many processes).
    """

    def __init__(self, work: Callable[[Callable[[], None]], Any]) -> None:
        self._result = os.memfd_create("checkpoint-writer")
        self._ended: int | None = None
        collecting = gc.isenabled()
        gc.disable()  # a collection in the child would end objects that belong to the parent
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads; the child starts none
                parent = os.getpid()
                self._pid = os.fork()
            if self._pid == 0:
                _child(work, self._result, parent)
        except BaseException:
            os.close(self._result)
            raise
        finally:
            if collecting:
                gc.enable()

    def done(self) -> bool:
        """Whether the process has ended; returns at once."""
        if self._ended is None:
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has asked; its result says how it went
                pid, status = self._pid, 0
            if pid:
                self._ended = os.waitstatus_to_exitcode(status)
        return self._ended is not None

    def result(self) -> tuple[Any, str | None]:
        """What `work` returned and None, or None and why it failed. Only once, when `done`."""
        assert self._ended is not None
        with os.fdopen(self._result, "rb") as file:
            file.seek(0)
            data = file.read()
        if self._ended == 0 and data:
            value, failed = pickle.loads(data)
            return value, failed
        how = f"was killed by signal {-self._ended}" if self._ended < 0 else f"ended with status {self._ended}"
        return None, f"the writing process {how}"


def _child(work: Callable[[Callable[[], None]], Any], result: int, parent: int) -> None:
    """Do the work and leave, without anything that an interpreter does at its end."""
    status = 1
    try:
        for number in _IGNORED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        os.closerange(3, result)
        most = os.sysconf("SC_OPEN_MAX")
        os.closerange(result + 1, most if most > 0 else 1 << 16)
        torch.set_num_threads(1)  # the threads of the parent's pools do not exist here

        def require_parent() -> None:
            if os.getppid() != parent:
                raise OrphanedError

        try:
            answer: tuple[Any, str | None] = (work(require_parent), None)
        except BaseException as error:
            answer = (None, f"{type(error).__name__}: {in_one_line(error)}")
        data = memoryview(pickle.dumps(answer))
        while data:
            data = data[os.write(result, data) :]
        status = 0
    finally:
        os._exit(status)
