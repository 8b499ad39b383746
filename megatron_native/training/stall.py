"""What a stalled rank says about itself, read off its Python stacks, and the summary of what all ranks said."""

from __future__ import annotations

import sys
import sysconfig
import threading
import traceback
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_COLLECTIVE_FILES = (
    "torch/distributed/distributed_c10d.py",
    "torch/distributed/_functional_collectives.py",
    "torch/distributed/rendezvous.py",
)
_WAITS = (".wait()", ".wait(", "wait_tensor(", ".monitored_barrier(")
_DEVICE_WAITS = (".item()", ".tolist()", ".cpu()", "synchronize(")


@dataclass(frozen=True)
class RankReport:
    """Where one rank is; all of it fits JSON."""

    rank: int
    step: int
    activity: str
    seconds: float
    """Since when, in seconds."""
    time: float
    """When it was written, in seconds since 1970."""
    attempt: str
    collective: str | None
    """The collective it waits in, None where it waits in none."""
    caller: str | None
    """What called the collective: project function and place."""
    frame: str
    """Innermost function of the project (not of a library) and its place."""

    def headline(self) -> str:
        """One line for people."""
        doing = f"waits in {self.collective}, called by {self.caller}" if self.collective else f"is in {self.frame}"
        return f"rank {self.rank}, step {self.step}, {self.activity} for {self.seconds:.0f} s: {doing}"


@dataclass(frozen=True)
class StackDescription:
    """What the stacks of a process show."""

    collective: str | None
    caller: str | None
    frame: str
    text: str


def describe_stack(main_thread: int | None) -> StackDescription:
    """Read the stacks of all threads of this process.

    Args:
        main_thread: identity of the thread that trains.
    """
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    texts = []
    for ident in sorted(frames, key=lambda ident: ident != main_thread):
        what = "main thread" if ident == main_thread else f"thread {names.get(ident, ident)}"
        texts.append(f"{what} (most recent call last):\n" + "".join(traceback.format_stack(frames[ident])))
    main = frames.get(main_thread) if main_thread is not None else None
    if main is None:
        return StackDescription(None, None, "no Python code", "\n".join(texts))
    inner_first = list(_outward(main))
    collective, depth = _collective(inner_first)
    frame = _project_place(inner_first)
    caller = _project_place(inner_first[depth:]) if collective else None
    return StackDescription(collective, caller, frame, "\n".join(texts))


def _outward(frame: FrameType | None) -> Iterable[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _collective(inner_first: Sequence[FrameType]) -> tuple[str | None, int]:
    """Name of the collective that the innermost frames wait in, and how many frames belong to it."""
    inside = [
        (depth, frame.f_code.co_name)
        for depth, frame in enumerate(inner_first)
        if frame.f_code.co_filename.replace("\\", "/").endswith(_COLLECTIVE_FILES)
    ]
    public = [(depth, name) for depth, name in inside if not name.startswith("_") and name != "wrapper"]
    # Only torch.distributed's own frames lie further in: a callback out of it back into the project is no wait.
    if public and not any(_is_project(frame) for frame in inner_first[: public[0][0]]):
        innermost, outermost = public[0][1], public[-1][1]
        name = innermost if innermost == outermost else f"{innermost} (of {outermost})"
        return name, public[-1][0] + 1
    executing = _executing(inner_first[0])
    if any(sign in executing for sign in _WAITS):  # threads and processes wait in Python code of their own, further in
        return executing, 0
    if any(sign in executing for sign in _DEVICE_WAITS) and _is_on_device():
        return f"{executing} (a wait for the device)", 0
    return None, 0


def _executing(frame: FrameType) -> str:
    """Source of the very expression that a frame executes, its line where the expression is not known."""
    summary = traceback.StackSummary.extract([(frame, frame.f_lineno)])[0]
    line = (summary.line or "").strip()
    positions = list(frame.f_code.co_positions())[frame.f_lasti // 2] if frame.f_lasti >= 0 else (None,) * 4
    start, end, column, end_column = positions
    if start is None or start != end or column is None or end_column is None:
        return line
    import linecache

    source = linecache.getline(frame.f_code.co_filename, start).encode()
    return source[column:end_column].decode(errors="replace") or line


def _is_on_device() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available()


def _is_project(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    if path.startswith(_PACKAGE):
        return True
    outside = path.startswith("<") or "site-packages" in path or "dist-packages" in path
    return not outside and not path.startswith(_LIBRARIES)


def _project_place(inner_first: Sequence[FrameType]) -> str:
    for frame in inner_first:
        if _is_project(frame):
            return _place(frame)
    return _place(inner_first[0]) if inner_first else "no Python code"


def _place(frame: FrameType) -> str:
    path = frame.f_code.co_filename
    if path.startswith(_PACKAGE):
        path = str(Path(path).relative_to(Path(_PACKAGE).parent))
    return f"{frame.f_code.co_name} ({path}:{frame.f_lineno})"


def summarize(reports: Sequence[RankReport], world_size: int, folder: Path) -> str:
    """One readable account of a stall: who waits where, who does not wait and therefore stalls, who does not answer.

    Args:
        reports: of the ranks that answered, at least one.
        world_size: how many ranks there are.
        folder: where the full stacks are.
    """
    silent = sorted(set(range(world_size)) - {report.rank for report in reports})
    busy = [report for report in reports if report.collective is None]
    waiting: dict[tuple[str, ...], list[RankReport]] = defaultdict(list)
    for report in reports:
        if report.collective is not None:
            waiting[(report.collective, str(report.step), report.activity, str(report.caller))].append(report)
    step = min(report.step for report in reports)
    lines = [
        f"the run stands still at step {step}: {len(reports)} of {world_size} rank(s) answered"
        f"{'' if busy or silent else ', and every one waits in a collective: they do not wait in the same one'}"
    ]
    for report in sorted(busy, key=lambda report: report.rank):
        lines.append(
            f"  rank {report.rank} stalls: {report.activity} in step {report.step} for {report.seconds:.0f} s, "
            f"in {report.frame}; it is in no collective"
        )
    for (collective, at, activity, caller), members in sorted(waiting.items(), key=lambda item: item[1][0].rank):
        seconds = max(member.seconds for member in members)
        lines.append(
            f"  {_ranks([member.rank for member in members])} in {collective} in step {at}, {activity} for "
            f"{seconds:.0f} s, called by {caller}"
        )
    if silent:
        verb = "does not answer" if len(silent) == 1 else "do not answer"
        lines.append(
            f"  {_numbers(silent)} {verb}: stopped, dead, or in a C call that never lets the interpreter go"
            f"{'' if busy else '; the others wait for it'}"
        )
    lines.append(f"  the stacks of every thread are in {folder}")
    return "\n".join(lines)


def _ranks(ranks: Sequence[int]) -> str:
    return f"{_numbers(ranks)} {'waits' if len(ranks) == 1 else 'wait'}"


def _numbers(ranks: Sequence[int]) -> str:
    """Such as "rank 3" or "ranks 0–2, 5"."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"
