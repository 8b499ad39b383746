"""Which steps a request names, and what becomes of traces that nobody can write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_native.training.profiler import StepProfiler, parse_request


@pytest.mark.parametrize(
    ("text", "steps"),
    [("120", {120}), ("120 122-124\n", {120, 122, 123, 124}), ("7,8,, 9", {7, 8, 9}), ("", set()), ("5-5", {5})],
)
def test_requests(text: str, steps: set[int]) -> None:
    assert parse_request(text) == steps


@pytest.mark.parametrize("text", ["next", "12-", "9-3", "1-1001", "-4"])
def test_requests_that_name_no_steps_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="step"):
        parse_request(text)


def test_a_changed_request_is_read_again(tmp_path: Path) -> None:
    said: list[str] = []
    profiler = StepProfiler(tmp_path, [], [0], 0, False, said.append)
    assert not profiler.begin(1)
    (tmp_path / "profile.request").write_text("2")
    assert profiler.begin(2)
    path = profiler.end()
    assert path is not None
    assert json.loads(path.read_text())["traceEvents"]
    (tmp_path / "profile.request").write_text("soon")
    assert not profiler.begin(3)
    assert "'soon' is neither a step" in said[-1]


def test_ranks_that_are_not_chosen_do_nothing(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, [1], [0], 3, False, print)
    assert not profiler.begin(1)
    assert profiler.end() is None
    assert not (tmp_path / "profile").exists()


def test_a_trace_that_cannot_be_written_is_said_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("a file in the folder's place")
    said: list[str] = []
    profiler = StepProfiler(tmp_path, [1], [0], 0, False, said.append)
    assert profiler.begin(1)
    assert profiler.end() is None
    assert "can't be written" in said[0]
    assert not profiler.recording
