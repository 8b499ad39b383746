"""The watchdog over real gloo ranks: who stalls, who waits in what, who does not answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_native.training.incidents import STALL
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.stall import RankReport, describe_stack, summarize
from megatron_native.training.watchdog import Watchdog
from tests.distributed import REPOSITORY

WORKER = Path(__file__).with_name("fault_worker.py")


class Ranks:
    """Watched ranks, one a role, with what each said on stderr."""

    def __init__(self, folder: Path, roles: Sequence[str]) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        self.processes = []
        for rank, role in enumerate(roles):
            command = [sys.executable, str(WORKER), "watch", role, str(folder), str(rank), str(len(roles))]
            with open(folder / f"said.{rank}", "w") as said:
                self.processes.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=said))

    def said(self, rank: int) -> str:
        return (self.folder / f"said.{rank}").read_text()

    def wait(self, ranks: Sequence[int]) -> list[int]:
        return [self.processes[rank].wait(timeout=200) for rank in ranks]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def test_the_rank_that_stalls_is_named(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, ["reduce", "receive", "read", "reduce"])
    try:
        assert ranks.wait(range(4)) == [1, 1, 1, 1]
    finally:
        ranks.end()
    summary = ranks.said(0)
    assert "the run stands still at step 3: 4 of 4 rank(s) answered" in summary
    [blamed] = [line for line in summary.splitlines() if "stalls:" in line]
    assert "rank 2 stalls: reading data in step 3" in blamed
    assert f"in read_slow_shard ({WORKER}:" in blamed
    assert "ranks 0, 3 wait in all_reduce in step 3, forward and backward" in summary
    assert "rank 1 waits in request.wait() in step 3" in summary
    assert f"called by watch ({WORKER}:" in summary
    assert [ranks.said(rank) for rank in (1, 2, 3)] == ["", "", ""]  # one summary
    folder = tmp_path / "logs" / "stall" / "step_00000003"
    assert (folder / "summary.txt").read_text().strip() == summary.strip()
    stacks = (folder / "rank_0002.txt").read_text()
    assert stacks.startswith("rank 2, step 3, reading data for")
    assert "in read_slow_shard\n    time.sleep(0.1)" in stacks
    assert "faulthandler:" in stacks
    assert "watchdog" in stacks
    [incident] = read_json_lines(tmp_path / "incidents.jsonl")
    assert (incident["kind"], incident["step"]) == (STALL, 3)
    assert [report["rank"] for report in incident["details"]["reports"]] == [0, 1, 2, 3]


def test_ranks_that_do_not_answer_are_named(tmp_path: Path) -> None:
    """One is stopped, one keeps the interpreter in a C call: the handler in C still shows that one's stack."""
    ranks = Ranks(tmp_path, ["reduce", "reduce", "stop", "hold"])
    try:
        assert ranks.wait([0, 1]) == [1, 1]
        deadline = time.monotonic() + 60
        while "Timeout" not in ranks.said(3) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        ranks.end()
    summary = ranks.said(0)
    assert "the run stands still at step 3: 2 of 4 rank(s) answered" in summary
    assert "ranks 0–1 wait in all_reduce in step 3" in summary
    assert "ranks 2–3 do not answer: stopped, dead, or" in summary
    assert "stalls:" not in summary
    assert "fault_worker.py" in ranks.said(3)
    assert " in watch" in ranks.said(3)


def stalled(
    tmp_path: Path, rank: int, world_size: int, codes: list[int], summaries: list[str], grace_seconds: float = 0.4
) -> Watchdog:
    return Watchdog(
        tmp_path, rank, world_size, stall_seconds=0.4, grace_seconds=grace_seconds, end=codes.append,
        on_stall=lambda step, summary, details: summaries.append(summary),
    )  # fmt: skip


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_rank_that_is_busy_keeps_quiet(tmp_path: Path) -> None:
    codes: list[int] = []
    summaries: list[str] = []
    with stalled(tmp_path, 0, 1, codes, summaries) as watchdog:
        began = time.monotonic()
        while time.monotonic() - began < 1.5:
            watchdog.at(1, "updating")
            time.sleep(0.01)
        assert (codes, summaries) == ([], [])
        wait_for(lambda: codes)
    assert codes == [1]
    assert "rank 0 stalls: updating in step 1" in summaries[0]
    assert "in wait_for (" in summaries[0]


def test_reports_of_an_earlier_attempt_do_not_count(tmp_path: Path) -> None:
    codes: list[int] = []
    summaries: list[str] = []
    for attempt in (1, 2):
        for rank in (0, 1):
            stalled(tmp_path, rank, 2, codes, summaries, grace_seconds=60).start()
        wait_for(lambda ended=2 * attempt: len(codes) == ended)
    assert len(summaries) == 2
    assert all("2 of 2 rank(s) answered" in summary for summary in summaries)
    folders = [tmp_path / "logs" / "stall" / name for name in ("step_00000000", "step_00000000.2", "step_00000000.3")]
    first, second = (sorted((path.name, path.read_bytes()) for path in folder.iterdir()) for folder in folders[:2])
    with stalled(tmp_path, 0, 2, codes, summaries):
        wait_for(lambda: len(summaries) == 3)
    assert "rank 1 does not answer" in summaries[2]
    assert str(folders[2]) in summaries[2]
    assert (folders[2] / "rank_0000.txt").exists()
    assert not (folders[2] / "rank_0001.txt").exists()
    ranks = [f"rank_000{rank}.{kind}" for rank in (0, 1) for kind in ("json", "txt")]
    for folder, files in zip(folders[:2], (first, second), strict=True):  # what an earlier attempt wrote stays to be read
        assert [name for name, _ in files] == [*ranks, "summary.txt"]
        assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == files


def test_a_report_is_asked_of_ranks_that_have_not_noticed_yet(tmp_path: Path) -> None:
    codes: list[int] = []
    summaries: list[str] = []
    slow = Watchdog(tmp_path, 1, 2, stall_seconds=8.0, grace_seconds=20.0, end=codes.append)
    quick = Watchdog(
        tmp_path, 0, 2, stall_seconds=0.4, grace_seconds=20.0, end=codes.append,
        on_stall=lambda step, summary, details: summaries.append(summary),
    )  # fmt: skip
    slow.start()
    slow.at(4, "saving")
    quick.start()
    quick.at(3, "reducing")
    wait_for(lambda: len(codes) == 2)
    assert "2 of 2 rank(s) answered" in summaries[0]
    assert "rank 1 stalls: saving in step 4" in summaries[0]
    assert {path.name for path in (tmp_path / "logs" / "stall").glob("step_*")} == {"step_00000003"}


def report(rank: int, collective: str | None = None, **fields: Any) -> RankReport:
    values: dict[str, Any] = {
        "rank": rank, "step": 7, "activity": "updating", "seconds": 30.0, "time": 0.0, "attempt": "",
        "collective": collective, "caller": "reduce (a.py:1)" if collective else None, "frame": "work (a.py:2)",
    }  # fmt: skip
    return RankReport(**{**values, **fields})


def test_summary_of_ranks_in_different_collectives() -> None:
    reports = [
        report(0, "all_reduce"),
        report(1, "all_reduce"),
        report(2, "broadcast"),
        report(3, "all_reduce", step=8),
    ]
    lines = summarize(reports, 4, Path("logs")).splitlines()
    assert "every one waits in a collective: they do not wait in the same one" in lines[0]
    assert [line.split(" in step")[0].strip() for line in lines[1:4]] == [
        "ranks 0–1 wait in all_reduce",
        "rank 2 waits in broadcast",
        "rank 3 waits in all_reduce",
    ]
    assert "in step 8" in lines[3]


def test_summary_where_the_silent_rank_is_the_one_waited_for() -> None:
    text = summarize([report(0, "barrier"), report(2, "barrier")], 3, Path("logs"))
    assert "rank 1 does not answer" in text
    assert "the others wait for it" in text


def test_stack_of_a_process_that_waits_in_nothing() -> None:
    import threading

    stack = describe_stack(threading.main_thread().ident)
    assert stack.collective is None
    assert "describe_stack" in stack.frame
    assert "main thread" in stack.text


@pytest.mark.parametrize("seconds", [5.0, 1800.0])
def test_grace_follows_the_time_to_a_stall(tmp_path: Path, seconds: float) -> None:
    assert Watchdog(tmp_path, 0, 1, seconds).grace_seconds == {5.0: 2.0, 1800.0: 30.0}[seconds]
