"""The local engine: one spawned process a worker, progress through a shared counter, no orphan left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from megatron_native.engine.tasks import Work
from megatron_native.errors import UserError
from megatron_native.progress import Progress

_REPORT_SECONDS = 0.5
_TASKS_AHEAD = 4
_read_by_workers: list[Synchronized[int]] = []
"""In a worker process: the counter, shared by all of them, of bytes read."""


class LocalEngine:
    """Tasks in up to `workers` processes; with one worker, or one task, in this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, work: Work, tasks: Sequence[Any], bar: Progress) -> Iterator[tuple[int, Any]]:
        """(place in `tasks`, result) as tasks finish; the first error stops all."""
        if self.workers == 1 or len(tasks) <= 1:
            for place, task in enumerate(tasks):
                yield place, work(task, bar.advance)
            return
        context = get_context("spawn")
        read: Synchronized[int] = context.Value("q", 0)
        shown = 0
        with ProcessPoolExecutor(min(self.workers, len(tasks)), context, _start_worker, (read,)) as pool:
            waiting = iter(enumerate(tasks))
            running: dict[Any, int] = {}
            try:
                while True:
                    while len(running) < _TASKS_AHEAD * self.workers and (next_task := next(waiting, None)) is not None:
                        running[pool.submit(work, next_task[1], _count_read)] = next_task[0]
                    if not running:
                        return
                    finished, _ = wait(running, _REPORT_SECONDS, FIRST_COMPLETED)
                    now = read.value
                    bar.advance(now - shown)
                    shown = now
                    for future in finished:
                        yield running.pop(future), future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    "a worker process died, most likely killed for want of memory (dmesg says so). What is finished is "
                    "kept: run the same command again with fewer --workers."
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _start_worker(read: Synchronized[int]) -> None:
    """Keep the shared counter, and end when the main process is killed, lest this one writes into the next run's parts."""
    _read_by_workers[:] = [read]
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _count_read(size: int) -> None:
    (read,) = _read_by_workers
    with read.get_lock():
        read.value += size
