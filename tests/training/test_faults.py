"""Stop signals, the judgement of losses, and the record of incidents."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from pathlib import Path

import pytest

from megatron_native.config.run import SpikeSection
from megatron_native.errors import RunStoppedError, UserError
from megatron_native.training import incidents
from megatron_native.training.incidents import Incidents
from megatron_native.training.launch_folder import FOLDER_VARIABLE, LaunchFolder
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.signals import StopRequest
from megatron_native.training.spikes import LossMonitor, Spike

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


def test_signals_leave_a_note_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as stop:
        assert stop.requested is None
        assert [signal.getsignal(number) for number in SIGNALS[2:]] == before[2:]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested == "SIGUSR1"
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.count("SIGTERM"), stop.count("SIGUSR1"), stop.requested) == (3, 1, "SIGUSR1")
    assert [signal.getsignal(number) for number in SIGNALS] == before
    stop.close()
    assert stop.requested == "SIGUSR1"


def test_signals_of_another_thread_are_refused() -> None:
    raised: list[BaseException] = []

    def other() -> None:
        try:
            StopRequest()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])


def test_a_stop_that_came_before_the_handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = LaunchFolder(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with StopRequest() as stop:
        assert stop.requested is None
    assert folder.listeners() == {os.getpid()}
    folder.request_stop("SIGTERM")
    folder.request_stop("SIGUSR1")
    with StopRequest() as stop:
        assert stop.requested == "SIGTERM"
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "gone"))
    assert LaunchFolder.of_environment() is None


def test_outcomes_of_ranks(tmp_path: Path) -> None:
    folder = LaunchFolder(tmp_path)
    assert not folder.has_outcome()
    folder.listen()
    assert not folder.has_outcome()
    for rank, message in enumerate(["a file is missing.", "a file is missing.", "another."]):
        folder.leave_user_error(rank, UserError(message))
    assert str(folder.user_error()) == "a file is missing. another."
    assert folder.has_outcome()
    assert not folder.wants_requeue()
    folder.leave_requeue(0)
    assert folder.wants_requeue()


def test_a_rule_that_stops_a_run_is_final_and_no_user_error(tmp_path: Path) -> None:
    folder = LaunchFolder(tmp_path)
    folder.leave_user_error(0, RunStoppedError("the loss jumped."))
    assert folder.has_outcome()
    stopped = folder.user_error()
    assert isinstance(stopped, RunStoppedError)
    assert (str(stopped), stopped.exit_code) == ("the loss jumped.", 1)


SPIKES = SpikeSection(window=5, deviations=4.0, minimum_increase=0.1)


def monitor(*losses: float, settings: SpikeSection = SPIKES) -> LossMonitor:
    made = LossMonitor(settings)
    for loss in losses:
        made.accept(loss)
    return made


def test_a_spike_by_hand() -> None:
    # Median 2.2; deviations 0.2, 0.1, 0, 0.1, 0.3, of which the median is 0.1: the line is 2.2 + 4 × 0.1 = 2.6.
    judged = monitor(2.0, 2.1, 2.2, 2.3, 2.5)
    assert judged.judge(2.59) is None
    spike = judged.judge(2.61)
    assert isinstance(spike, Spike)
    assert (spike.loss, spike.median) == (2.61, 2.2)
    assert spike.mad == pytest.approx(0.1)
    assert "4.1 median absolute deviations above the median 2.2000" in str(spike)
    assert judged.judge(0.1) is None


def test_nothing_is_judged_until_the_window_is_full() -> None:
    judged = monitor(2.0, 2.1, 2.2, 2.3)
    assert judged.judge(1000.0) is None
    judged.accept(2.5)
    assert judged.judge(1000.0) is not None


def test_only_accepted_losses_count_and_old_ones_leave() -> None:
    judged = monitor(2.0, 2.1, 2.2, 2.3, 2.5)
    for _ in range(10):
        assert judged.judge(3.0) is not None
    for loss in (3.0, 3.1, 3.2, 3.3, 3.5):
        judged.accept(loss)
    assert judged.judge(3.59) is None
    assert judged.judge(3.61) is not None


def test_equal_losses_need_the_minimum_increase() -> None:
    judged = monitor(2.0, 2.0, 2.0, 2.0, 2.0)
    assert judged.judge(2.09) is None
    spike = judged.judge(2.11)
    assert spike is not None
    assert spike.mad == 0.0
    assert "is far above" in str(spike)
    strict = monitor(*[2.0] * 5, settings=SpikeSection(window=5, deviations=4.0, minimum_increase=0.0))
    assert strict.judge(2.0) is None
    assert strict.judge(2.001) is not None


def test_losses_that_are_not_finite() -> None:
    judged = monitor(2.0, 2.1, 2.2, 2.3, 2.5)
    assert judged.judge(math.nan) is None
    assert judged.judge(math.inf) is not None
    for loss in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="nothing to compare"):
            judged.accept(loss)


def test_a_resumed_monitor_judges_alike() -> None:
    losses = [2.0 + 0.1 * math.sin(number) / 3 for number in range(40)]
    through, first = LossMonitor(SPIKES), LossMonitor(SPIKES)
    for loss in losses[:23]:
        through.accept(loss)
        first.accept(loss)
    second = LossMonitor(SPIKES)
    second.restore(json.loads(json.dumps(first.state())))
    for loss in losses[23:]:
        assert second.judge(loss + 0.2) == through.judge(loss + 0.2)
        through.accept(loss)
        second.accept(loss)
    assert second.state() == through.state()
    shorter = LossMonitor(SpikeSection(window=4))
    shorter.restore(through.state())
    assert shorter.state()["losses"] == losses[-4:]


def test_incidents_are_written_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run" / "incidents.jsonl"
    assert read_json_lines(path) == []
    record = Incidents(path)
    details = {"loss": math.nan, "norms": [1.5, math.inf], "file": Path("a/b"), "set": {"ar": -math.inf}}
    record.record(incidents.NOT_FINITE, "الخسارة ليست عددا", step=12, details=details)
    record.record(incidents.STALL, "stands still")
    first, second = read_json_lines(path)
    assert (first["kind"], first["step"], first["message"]) == ("not_finite", 12, "الخسارة ليست عددا")
    assert first["details"] == {"loss": "nan", "norms": [1.5, "inf"], "file": "a/b", "set": {"ar": "-inf"}}
    assert (second["step"], second["details"]) == (None, {})
    assert first["time"] <= second["time"]
    assert capsys.readouterr().err == "الخسارة ليست عددا\nstands still\n"
    with pytest.raises(ValueError, match="no kind of incident 'other'"):
        record.record("other", "?")


def test_other_ranks_write_no_incidents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Incidents(tmp_path / "incidents.jsonl", enabled=False).record(incidents.LOSS_SPIKE, "back to step 3")
    assert not (tmp_path / "incidents.jsonl").exists()
    assert capsys.readouterr().err == ""


def test_a_line_cut_short_costs_that_line_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "incidents.jsonl"
    record = Incidents(path)
    record.record(incidents.LOSS_SPIKE, "قفزة", step=1)
    record.record(incidents.LOSS_SPIKE, "قفزة", step=2)
    whole = path.read_bytes()
    for cut in (3, len(whole) // 4, len(whole) - 60, len(whole) - 1):
        path.write_bytes(whole[:cut])
        Incidents(path).record(incidents.RESTART, "again")
        events = read_json_lines(path)
        assert events[-1]["kind"] == "restart"
        expected = 2 if cut == len(whole) - 1 else 1 if cut > len(whole) // 2 else 0
        assert [event["step"] for event in events[:-1]] == list(range(1, expected + 1))
    assert "cut short" in capsys.readouterr().err
