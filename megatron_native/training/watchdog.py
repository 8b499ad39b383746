"""Notices that a run stands still, and says which rank is to blame.

A thread of every rank watches what its main thread last said it does. When nothing was said for too long, every rank
writes where it is, in the Python stack of each of its threads: most wait in a collective for the one that does not come.
The lowest rank that answers makes one summary of it. Then all ranks end, so that a launcher can start them again.

Ranks talk through files under `run_dir/logs/stall/`, since a stalled process group can carry no message. The thread needs
the interpreter, which collectives let go of; a main thread that holds it in a C call is shown by `faulthandler` alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megatron_native.training.stall import RankReport, describe_stack, summarize

_CALL = "call.json"
_SUMMARY = "summary.txt"


class Watchdog:
    """Watches one rank, from `start` to `close`.

    Args:
        run_dir: the run folder; reports go to `logs/stall/step_XXXXXXXX/`, or to `step_XXXXXXXX.2/` and so on where an
            earlier attempt stalled in the same step.
        rank: this process.
        world_size: of how many.
        stall_seconds: how long the main thread may be silent.
        on_stall: called with the step, the summary and the reports' fields by the one rank that makes the summary, before
            it ends.
        grace_seconds: how long to wait for other ranks' reports; by default a tenth of `stall_seconds`, within 2 … 30 s.
        end: ends the process; called with its exit code in every rank that answered.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        world_size: int,
        stall_seconds: float,
        on_stall: Callable[[int, str, Mapping[str, Any]], None] | None = None,
        grace_seconds: float | None = None,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self.rank, self.world_size, self.stall_seconds = rank, world_size, stall_seconds
        self.folder = run_dir / "logs" / "stall"
        self.grace_seconds = min(30.0, max(2.0, stall_seconds / 10)) if grace_seconds is None else grace_seconds
        self._on_stall, self._end = on_stall, end
        self._attempt = _attempt()
        self._main = threading.main_thread().ident
        self._started = time.time()
        self._at = (0, "starting", time.monotonic())
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Begin to watch; what comes before the first `at` counts as "starting"."""
        self._at = (self._at[0], self._at[1], time.monotonic())
        self._arm_faulthandler()  # the main thread may take the interpreter before this one's first look
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def at(self, step: int, activity: str) -> None:
        """The main thread goes on: it is in `step` and begins `activity` ("reading data", "saving", …). Cheap."""
        self._at = (step, activity, time.monotonic())

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _watch(self) -> None:
        interval = min(5.0, self.stall_seconds / 4)
        try:
            while not self._closed.wait(interval):
                self._arm_faulthandler()
                if time.monotonic() - self._at[2] >= self.stall_seconds or self._called() is not None:
                    self._stalled()
                    return
        finally:
            with contextlib.suppress(RuntimeError):
                faulthandler.cancel_dump_traceback_later()

    def _arm_faulthandler(self) -> None:
        """Where a C call of the main thread keeps the interpreter, this thread can't run: then stacks go to stderr."""
        with contextlib.suppress(AttributeError, ValueError, OSError, RuntimeError):
            faulthandler.dump_traceback_later(self.stall_seconds, exit=False, file=sys.stderr)

    def _called(self) -> Path | None:
        """The folder in which another rank of this attempt asks for reports, if one does."""
        call = _read_json(self.folder / _CALL)
        if call is None or not self._is_fresh(call):
            return None
        return self.folder / str(call["folder"])

    def _is_fresh(self, record: Mapping[str, Any]) -> bool:
        return record.get("attempt") == self._attempt and float(record.get("time", 0.0)) >= self._started

    def _stalled(self) -> None:
        """Report, collect or wait for the collector, and end."""
        try:
            folder = self._report()
            self._collect(folder)
        except Exception as error:  # the disk may be what stalls; ending is what matters
            print(f"rank {self.rank}: the stall could not be written down ({error!r})", file=sys.stderr)
            faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self._end(1)

    def _report(self) -> Path:
        step, activity, since = self._at
        stack = describe_stack(self._main)
        called = self._called()
        folder = called or self._folder_of(step)
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        report = RankReport(
            rank=self.rank, step=step, activity=activity, seconds=time.monotonic() - since, time=now,
            attempt=self._attempt, collective=stack.collective, caller=stack.caller, frame=stack.frame,
        )  # fmt: skip
        text = f"{report.headline()}\n\n{stack.text}\n{_faulthandler_text()}"
        (folder / f"rank_{self.rank:04d}.txt").write_text(text, encoding="utf-8")
        self._write_json(folder / f"rank_{self.rank:04d}.json", vars(report))
        if called is None:
            self._write_json(self.folder / _CALL, {"folder": folder.name, "time": now, "attempt": self._attempt})
        return folder

    def _folder_of(self, step: int) -> Path:
        """The first of the step's folders without reports of an earlier attempt: ranks that notice at once find the same."""
        for number in itertools.count(1):
            folder = self.folder / (f"step_{step:08d}" if number == 1 else f"step_{step:08d}.{number}")
            records = map(_read_json, folder.glob("rank_*.json"))
            if all(record is None or self._is_fresh(record) for record in records):
                break
        return folder

    def _collect(self, own_folder: Path) -> None:
        """Make the summary if this is the lowest rank that answers; otherwise wait until another has made it."""
        started = time.monotonic()
        while True:
            reports = self._reports()
            ranks = sorted(reports)
            waited = time.monotonic() - started
            position = ranks.index(self.rank)
            complete = len(ranks) == self.world_size
            if position == 0 and (complete or waited >= self.grace_seconds):
                break
            if self._summary_is_there():
                return
            if position <= 2 and waited >= (2 + position) * self.grace_seconds:
                break  # those before it died in between
            if waited >= 6 * self.grace_seconds:
                return
            time.sleep(min(0.2, self.grace_seconds / 10))
        folder = self._called() or own_folder
        step = min(report.step for report in reports.values())
        summary = summarize(list(reports.values()), self.world_size, folder)
        temporary = folder / f"{_SUMMARY}.{self.rank}.partial"
        temporary.write_text(summary + "\n", encoding="utf-8")
        temporary.replace(folder / _SUMMARY)
        if self._on_stall is None:
            print(summary, file=sys.stderr, flush=True)
        else:
            self._on_stall(step, summary, {"reports": [vars(reports[rank]) for rank in sorted(reports)]})

    def _write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        temporary = path.with_name(f"{path.name}.{self.rank}.partial")  # nodes share the folder, but not their pids
        temporary.write_text(json.dumps(dict(value)), encoding="utf-8")
        temporary.replace(path)

    def _reports(self) -> dict[int, RankReport]:
        """Reports of this attempt, by rank; ranks that noticed at once may have chosen different folders."""
        found = {}
        for path in self.folder.glob("step_*/rank_*.json"):
            record = _read_json(path)
            if record is not None and self._is_fresh(record):
                found[int(record["rank"])] = RankReport(**record)
        return found

    def _summary_is_there(self) -> bool:
        return any(path.stat().st_mtime >= self._started for path in self.folder.glob(f"step_*/{_SUMMARY}"))


def _attempt() -> str:
    """What all ranks of one attempt of a run have in common, and those of another attempt have not."""
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "MASTER_PORT")
    return ":".join(os.environ.get(name, "") for name in names)


def _faulthandler_text() -> str:
    """All threads as the C-level handler sees them: those without a Python frame too."""
    with tempfile.TemporaryFile() as file:
        try:
            faulthandler.dump_traceback(file=file, all_threads=True)
        except (RuntimeError, io.UnsupportedOperation) as error:
            return f"faulthandler: {error}\n"
        file.seek(0)
        return "faulthandler:\n" + file.read().decode(errors="replace")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
