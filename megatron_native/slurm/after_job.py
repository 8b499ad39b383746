"""What becomes of a run after a job: `python -m megatron_native.slurm.after_job`, once, on the job's first node.

In comes what every node has left (`training/node_place.py`); out goes one word on stdout for the job script (`done`,
`requeue` or `stop` with an exit code), and on stderr what a person wants to know: where a rank died, which was first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from megatron_native.errors import EXIT_DONE, EXIT_FAILURE, EXIT_REQUEUE, EXIT_USER_ERROR
from megatron_native.slurm.progress import Progress, no_progress
from megatron_native.training.incidents import GAVE_UP, RANK_DIED, RESTART, Incidents
from megatron_native.training.launch import tells_lost_connection
from megatron_native.training.node_place import NodeOutcome, read_outcomes, stderr_file
from megatron_native.training.restarts import Death

_TAIL_BYTES, _TAIL_LINES = 16384, 20


@dataclass(frozen=True)
class Verdict:
    """What is to be done with the run."""

    action: Literal["done", "requeue", "stop"]
    exit_code: int
    message: str = ""

    def __str__(self) -> str:
        return f"{self.action} {self.exit_code}"


def judge(
    outcomes: Sequence[NodeOutcome],
    nodes: int,
    stop_requested: bool,
    progress: Progress,
    fruitless_jobs: int,
    failures: int,
) -> Verdict:
    """What is to be done, by how the ranks of every node ended; `progress` is brought up to date.

    Args:
        outcomes: what nodes left; one that was ended from outside left nothing.
        nodes: how many nodes the job has.
        stop_requested: whether the job was told to stop.
        progress: that of the run.
        fruitless_jobs: jobs in a row without a new checkpoint after which the run ends.
        failures: jobs in a row with a dead rank after which it ends.
    """
    states = [outcome.state for outcome in outcomes]
    for outcome in outcomes:
        if outcome.state in ("user_error", "stopped"):
            progress.judge()
            return Verdict("stop", EXIT_USER_ERROR if outcome.state == "user_error" else EXIT_FAILURE, outcome.message)
    if states.count("done") == nodes:
        progress.judge()
        return Verdict("done", EXIT_DONE)
    saved = "requeue" in states and "failed" not in states
    stopping = (stop_requested or "stopping" in states) and "failed" not in states
    progress.judge(failed=not saved and not stopping)
    fruitless = no_progress(progress, fruitless_jobs)
    if fruitless is not None:
        return Verdict("stop", EXIT_FAILURE, fruitless)
    if saved:
        return Verdict("requeue", EXIT_REQUEUE)
    if stopping:
        message = "not every node had stopped in time: what was not saved by then is done again"
        return Verdict("requeue", EXIT_REQUEUE, message)
    if progress.failures > failures:
        message = f"a rank has died in {progress.failures} jobs in a row (faults.max_restarts {failures}): none is tried again"
        return Verdict("stop", EXIT_FAILURE, message)
    message = f"queued again, after a check of the nodes (failure {progress.failures} of {failures} that are allowed in a row)"
    return Verdict("requeue", EXIT_REQUEUE, message)


def failure_report(outcomes: Sequence[NodeOutcome], nodes: int, logs: Path) -> str | None:
    """Which rank died first, where, and the end of what it said; None where none did.

    A rank that only lost its connection to another one is not taken for the first, if there is a better one.
    """
    deaths = [
        (_lost_connection(logs, int(death["rank"])), outcome.time, int(death["rank"]), int(death["exit_code"]), outcome)
        for outcome in outcomes for death in outcome.deaths
    ]  # fmt: skip
    missing = sorted(set(range(nodes)) - {outcome.node_rank for outcome in outcomes})
    if not deaths:
        if not missing:
            return None
        return f"node {', '.join(map(str, missing))} of the job left no word: ended from outside, or lost"
    _, when, rank, code, outcome = first = min(deaths, key=lambda death: death[:3])
    clock = datetime.fromtimestamp(when, UTC).strftime("%H:%M:%S UTC")
    text = [f"{Death(rank, code)} first, on {outcome.host} (node {outcome.node_rank} of the job), at {clock}."]
    said = _tail(stderr_file(logs, rank))
    text += [f"The end of its stderr ({stderr_file(logs, rank)}):", *(f"  | {line}" for line in said)] if said else []
    others = sorted(one[2] for one in deaths if one is not first and one[2] != rank)
    if others:
        text.append(f"After it: rank {', '.join(map(str, others))}.")
    if missing:
        text.append(f"Ended with it: the ranks of node {', '.join(map(str, missing))} of the job.")
    return "\n".join(text)


def _tail(path: Path) -> list[str]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    except OSError:
        return []


def _lost_connection(logs: Path, rank: int) -> bool:
    return tells_lost_connection(" ".join(_tail(stderr_file(logs, rank))[-1:]))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True, help="the run folder")
    parser.add_argument("--job-dir", type=Path, required=True, help="the folder of this job's logs")
    parser.add_argument("--nodes", type=int, required=True, help="nodes of the job")
    parser.add_argument("--fruitless-jobs", type=int, default=1, help="jobs in a row without progress that are enough")
    parser.add_argument("--failures", type=int, default=3, help="jobs in a row with a dead rank that are allowed")
    parser.add_argument("--stop-requested", action="store_true", help="the job was told to stop")
    arguments = parser.parse_args(argv)
    outcomes, progress = read_outcomes(arguments.job_dir), Progress.read(arguments.run_dir)
    verdict = judge(
        outcomes, arguments.nodes, arguments.stop_requested, progress, arguments.fruitless_jobs, arguments.failures
    )
    report = None if verdict.action == "done" else failure_report(outcomes, arguments.nodes, arguments.job_dir)
    incidents = Incidents(arguments.run_dir / "incidents.jsonl")
    if report is not None:
        (arguments.job_dir / "failure.txt").write_text(f"{report}\n", encoding="utf-8")
        incidents.record(RANK_DIED, report)
    if verdict.action == "done":
        progress.done()
    elif verdict.action == "stop":
        reason = verdict.message or "the run has stopped"
        progress.stop(reason)
        if verdict.exit_code != EXIT_USER_ERROR:
            incidents.record(GAVE_UP, reason)
    elif verdict.message:
        incidents.record(RESTART, verdict.message)
    print(verdict, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
