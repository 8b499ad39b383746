"""Signals that ask a run to save and stop: SIGTERM (a scheduler takes the machine back) and SIGUSR1 (time is nearly up).

A signal only leaves a note; the loop reads it between two steps, where all ranks agree on it. So it never interrupts a
save or a collective, however often it comes.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from types import FrameType, TracebackType
from typing import Any, Self

from megatron_native.training.launch_folder import LaunchFolder

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""The signals that ask for a stop. SIGINT stays an interruption; SIGUSR2 is left to the user."""


class StopRequest:
    """Handlers of the stop signals, from its making to `close`. Other signals are not touched.

    Under this project's launcher it also tells it that signals may be passed on now, and hears of one that came before.

    Raises:
        RuntimeError: not made on the main thread, where Python alone can handle signals.
    """

    def __init__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("StopRequest must be made on the main thread: Python handles signals nowhere else")
        self._requested: str | None = None
        self._counts: Counter[str] = Counter()
        self._before: dict[signal.Signals, Any] = {}
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._note)
            signal.siginterrupt(number, False)  # system calls of libraries go on as if nothing had happened
        folder = LaunchFolder.of_environment()
        if folder is not None:
            self._requested = folder.listen() or self._requested

    @property
    def requested(self) -> str | None:
        """Name of the first signal that came (such as "SIGTERM"), or None."""
        return self._requested

    def count(self, name: str) -> int:
        """How often the signal of that name has come to this process."""
        return self._counts[name]

    def close(self) -> None:
        """Put the handlers back that were there before; a second call does nothing."""
        for number, handler in self._before.items():
            # None: a handler that was not installed from Python, which Python can't put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # In a handler: no printing (buffers are not reentrant), nothing that could fail.
        name = "signal"
        with contextlib.suppress(ValueError):
            name = signal.Signals(number).name
        self._counts[name] += 1
        if self._requested is None:
            self._requested = name
