"""The processes of the tokenize stage: one spawned worker a core, one input file at a time.

A worker loads the tokenizer once and reports each batch. The first failure stops all; a worker ends when its parent
does, so that a killed run leaves nothing that still writes.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from megatron_native.data.encode_part import PartAccount, TokenizeSettings, encode_part
from megatron_native.errors import UserError
from megatron_native.progress import Progress, progress

Job = tuple[Path, Path]
"""An input file, and the part it becomes."""

WORKERS_LOCK = "workers.lock"
"""The file beside the parts that every worker holds a shared lock on while it lives."""

TEXT_PER_FILE_BYTE = {".gz": 4.0, ".zst": 4.0, ".parquet": 2.5}
"""Bytes of text in a byte of file, by suffix, until finished files tell; only the ETA depends on it."""

_worker: dict[str, Any] = {}
"""A worker process's tokenizer, settings, report queue, stop event and lock."""


def encode_in_processes(
    jobs: Sequence[Job], settings: TokenizeSettings, workers: int, label: str, say: Callable[[str], None]
) -> None:
    """Tokenize every job in up to `workers` processes; spare workers become engine threads.

    Raises:
        UserError: a worker died; or whatever a job raised first.
    """
    # the largest files first, so that no worker is left alone with one at the end
    jobs = sorted(jobs, key=lambda job: -job[0].stat().st_size)
    processes, folder = min(workers, len(jobs)), jobs[0][1].parent
    threads = max(1, workers // processes)
    context = multiprocessing.get_context("spawn")
    reports, stop = context.Queue(), context.Event()
    executor = ProcessPoolExecutor(processes, context, _start_worker, (settings, threads, folder, reports, stop))
    try:
        with progress(label, unit="B") as bar:
            meter = _Meter(bar, jobs)
            running = {executor.submit(_encode_in_worker, *job): job for job in jobs}
            waiting: set[Future[PartAccount]] = set(running)
            while waiting:
                finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                meter.take(reports)
                for future in finished:
                    meter.finish(running[future], future.result())
        say(meter.summary())
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, most likely killed for want of memory (dmesg says so). What is finished is kept: "
            "run the same command with fewer --workers."
        ) from error
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


class _Meter:
    """What is done, and an estimate of the text there is."""

    def __init__(self, bar: Progress, jobs: Sequence[Job]) -> None:
        self._bar, self._started = bar, time.monotonic()
        self._tokens = self._text = 0
        self._expected = {
            job: job[0].stat().st_size * TEXT_PER_FILE_BYTE.get(job[0].suffix, 0.9) for job in jobs
        }
        self._corrections: list[float] = []
        bar.total = sum(self._expected.values())

    def take(self, reports: Any) -> None:
        """Show what the workers have reported since."""
        try:
            while True:
                self._bar.advance(reports.get_nowait())
        except queue.Empty:
            return

    def finish(self, job: Job, account: PartAccount) -> None:
        """A finished file says how much text there was; the unfinished ones are expected to be like the finished."""
        self._text += account.text_bytes
        self._tokens += account.tokens
        self._corrections.append(account.text_bytes / self._expected.pop(job) if self._expected[job] else 1.0)
        correction = sum(self._corrections) / len(self._corrections)
        self._bar.total = max(self._text + sum(self._expected.values()) * correction, 1.0)

    def summary(self) -> str:
        """The rates of the whole."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        return (
            f"tokenized {self._text / 1e6:,.1f} MB of text in {seconds:,.1f} s: "
            f"{self._text / 1e6 / seconds:,.1f} MB/s, {self._tokens / seconds:,.0f} tokens/s"
        )


def _start_worker(settings: TokenizeSettings, threads: int, folder: Path, reports: Any, stop: Any) -> None:
    """Set a fresh process up: engine threads before the engine is imported, and an end when the parent ends."""
    lock = open(folder / WORKERS_LOCK, "w")  # noqa: SIM115 — held as long as the process lives
    fcntl.flock(lock, fcntl.LOCK_SH)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C and tells its workers
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.update(tokenizer=settings.load_tokenizer(), settings=settings, reports=reports, stop=stop, lock=lock)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(path: Path, part: Path) -> PartAccount:
    def report(text_bytes: int) -> None:
        _worker["reports"].put(text_bytes)
        if _worker["stop"].is_set():
            raise InterruptedError("the run was stopped")

    return encode_part(path, part, _worker["tokenizer"], _worker["settings"], report)
