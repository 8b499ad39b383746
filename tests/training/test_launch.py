"""The local launcher: restarts, final outcomes, stop signals, finished runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_native.checkpoint import layout
from megatron_native.config.load import load_run_config
from megatron_native.errors import UserError
from megatron_native.training import launch
from megatron_native.training.launch_folder import FOLDER_VARIABLE, LaunchFolder
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.restarts import Death, RestartPolicy, last_step
from megatron_native.training.run_lock import RunLock
from tests.distributed import REPOSITORY
from tests.tiny_models import BASE, PLAIN_ROPE
from tests.training.conftest import write_token_dataset

WORKER = Path(__file__).with_name("fault_worker.py")


def write_config(folder: Path, **sections: Any) -> Path:
    hf_config = folder / "config.json"
    shape = {**BASE, "rope_parameters": PLAIN_ROPE, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    hf_config.write_text(json.dumps(shape))
    if not (folder / "tokens.idx").is_file():
        write_token_dataset(folder / "tokens", seed=1, documents=3)
    config = {
        "run_dir": str(folder / "run"),
        "platform": "cpu",
        "model": {"hf_config": str(hf_config)},
        "data": {"seq_length": 32, "blend": [{"prefix": str(folder / "tokens")}]},
        "training": {"steps": 8, "global_batch_size": 2, "precision": "fp32"},
        **sections,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(folder: Path, mode: str, **sections: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    config = write_config(folder, **sections)
    (folder / "run").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(WORKER), "launch", mode, "--config", str(config)],
        cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        stdout, stderr = process.communicate(timeout=200)
    finally:
        process.kill()
    return process.returncode, stdout + stderr


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            _, said = finish(process)
            raise AssertionError(f"it never came to that: {said}")
        time.sleep(0.05)


def attempts(folder: Path) -> int:
    return len({path.name.split(".")[1] for path in (folder / "run").glob("started.*")})


def kinds(folder: Path) -> list[str]:
    return [event["kind"] for event in read_json_lines(folder / "run" / "incidents.jsonl")]


def test_a_killed_rank_makes_all_ranks_start_again(tmp_path: Path) -> None:
    code, said = finish(start(tmp_path, "killed-once"))
    assert code == 0, said
    assert attempts(tmp_path) == 2
    assert last_step(tmp_path / "run") == 8
    assert "rank 1 was killed by SIGKILL" in said
    assert "at step 3; restart 1 of 3: all 2 rank(s) start again" in said
    assert "Traceback" not in said  # of the rank that was left
    assert kinds(tmp_path) == ["restart"]


def test_a_defect_shows_its_traceback_and_makes_all_ranks_start_again(tmp_path: Path) -> None:
    code, said = finish(start(tmp_path, "exception"))
    assert code == 0, said
    assert "a defect in rank 1" in said
    assert "rank 1 ended with exit code 1 at step 2; restart 1 of 3" in said
    assert said.count("Traceback") == 1


def test_restarts_are_used_up(tmp_path: Path) -> None:
    code, said = finish(start(tmp_path, "killed-after-a-step", faults={"max_restarts": 2}))
    assert code == 1, said
    assert attempts(tmp_path) == 3
    assert "all 2 restarts (faults.max_restarts) are used up" in said
    assert "at step 3" in said
    assert kinds(tmp_path) == ["restart", "restart", "gave_up"]


def test_a_user_error_is_final(tmp_path: Path) -> None:
    code, said = finish(start(tmp_path, "user-error"))
    assert code == 2
    assert said.count("the shard of rank 1 is missing: put it back.") == 1
    assert "Traceback" not in said
    assert attempts(tmp_path) == 1
    assert kinds(tmp_path) == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_stop_signal_is_passed_on_and_waited_for(tmp_path: Path, name: str) -> None:
    process = start(tmp_path, "stop")
    run = tmp_path / "run"
    wait_until(lambda: last_step(run) > 3, process)
    process.send_signal(signal.Signals[name])
    for came in range(1 if name == "SIGTERM" else 0, 2):  # a save that goes on is not cut short by more of them
        wait_until(lambda came=came: all((run / f"saving.{rank}.{came}").exists() for rank in (0, 1)), process)
        process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 75, said
    assert attempts(tmp_path) == 1
    for rank in (0, 1):
        assert (run / f"saved.{rank}").read_text() == f"{name} 2"


def test_a_stop_signal_reaches_ranks_that_are_still_starting(tmp_path: Path) -> None:
    process = start(tmp_path, "stop-while-starting")
    wait_until(lambda: len(list((tmp_path / "run").glob("started.*"))) == 2, process)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 75, said
    assert (tmp_path / "run" / "saved.1").read_text() == "SIGTERM 0"
    assert last_step(tmp_path / "run") == 0
    assert attempts(tmp_path) == 1


def test_ranks_die_with_a_killed_launcher(tmp_path: Path) -> None:
    process = start(tmp_path, "stop")
    wait_until(lambda: last_step(tmp_path / "run") > 1, process)
    pids = [int(path.name.split(".")[3]) for path in (tmp_path / "run").glob("started.*")]
    assert len(pids) == 2
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text() for pid in pids):
        assert time.monotonic() < deadline, "a rank goes on without its launcher"
        time.sleep(0.05)


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        code, said = finish(start(tmp_path, "killed-once"))
    assert code == 2
    assert f"process {os.getpid()} of" in said
    assert attempts(tmp_path) == 0


def test_a_stop_before_the_ranks_listened_is_an_incident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ranks(
        arguments: Any,
        processes: int,
        folder: LaunchFolder,
        restarts_after: Callable[[list[Death]], bool],
        *several: Any,
    ) -> bool:
        folder.request_stop("SIGTERM")
        assert not restarts_after([Death(1, -signal.SIGTERM)])
        return False

    monkeypatch.setattr("megatron_native.training.agent.run_ranks", ranks)
    for name in ("OMP_NUM_THREADS", "PYTHONPATH"):  # which the launcher sets for its ranks
        monkeypatch.setenv(name, os.environ.get(name, ""))
    assert launch.launch_local(write_config(tmp_path), [], 2) == 75
    (event,) = read_json_lines(tmp_path / "run" / "incidents.jsonl")
    assert event["kind"] == "stop_requested"
    assert "SIGTERM while the ranks were starting" in event["message"]


# What a rank leaves to its launcher.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LaunchFolder:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(launch, "_die_with_launcher", lambda: None)
    monkeypatch.setattr(launch, "_LAUNCHER_NOTICES_SECONDS", 0.0)
    return LaunchFolder(tmp_path)


def raising(error: BaseException) -> Callable[[], int]:
    def train() -> int:
        raise error

    return train


def test_a_rank_that_stopped_as_asked_tells_the_launcher_and_ends_with_0(folder: LaunchFolder) -> None:
    assert launch.rank_outcome(lambda: 75) == 0
    assert folder.wants_requeue()
    assert launch.rank_outcome(raising(AssertionError("trained again"))) == 0


def test_a_user_error_of_a_rank_is_left_to_the_launcher(folder: LaunchFolder) -> None:
    assert launch.rank_outcome(raising(UserError("no such file."))) == 2
    assert str(folder.user_error()) == "no such file."
    assert launch.rank_outcome(raising(AssertionError("trained again"))) == 0


def test_other_ends_of_a_rank_leave_nothing(folder: LaunchFolder) -> None:
    assert launch.rank_outcome(lambda: 0) == 0
    for error in (RuntimeError("Connection closed by peer [127.0.0.1]:7"), ValueError("a defect")):
        with pytest.raises(type(error)):
            launch.rank_outcome(raising(error))
    assert not folder.has_outcome()


def test_without_our_launcher_codes_and_errors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert launch.rank_outcome(lambda: 75) == 75
    with pytest.raises(UserError, match="no such file"):
        launch.rank_outcome(raising(UserError("no such file.")))


# What a restart is decided by.


def write_steps(run: Path, *steps: int) -> None:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))


def test_two_restarts_without_progress_are_enough(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2, 3)
    policy = RestartPolicy(tmp_path, 4, max_restarts=10)
    deaths = [Death(2, -9)]
    assert policy.judge(deaths).restart
    write_steps(tmp_path, 1, 2)
    assert policy.judge(deaths).restart
    write_steps(tmp_path, 1, 2, 3)
    verdict = policy.judge(deaths)
    assert not verdict.restart
    assert "got no further than step 3" in verdict.message


def test_progress_resets_the_count(tmp_path: Path) -> None:
    policy = RestartPolicy(tmp_path, 4, max_restarts=10)
    for steps in ((1,), (1,), (1, 2), (1, 2), (1, 2, 3), (1, 2, 3)):
        write_steps(tmp_path, *steps)
        assert policy.judge([Death(0, 1)]).restart
    assert policy.restarts == 6


def test_a_checkpoint_counts_as_progress_and_a_torn_line_as_nothing(tmp_path: Path) -> None:
    assert last_step(tmp_path) == 0
    write_steps(tmp_path, 1, 2)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9')
    assert last_step(tmp_path) == 2
    (tmp_path / "checkpoints" / "step_00000004").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000006.partial").mkdir()
    assert last_step(tmp_path) == 4
    assert last_step(tmp_path / "checkpoints" / "step_00000004") == 4, "a checkpoint is known by its name"
    message = RestartPolicy(tmp_path, 4, max_restarts=1).judge([Death(0, -15), Death(3, -15)]).message
    assert "rank 0 was killed by SIGTERM (and with it rank 3) at step 4; restart 1 of 1" in message
    assert "start again from checkpoint step_00000004" in message


def test_the_last_step_is_in_the_end_of_the_metrics(tmp_path: Path) -> None:
    write_steps(tmp_path, *range(1, 20_001))
    assert (tmp_path / "metrics.jsonl").stat().st_size > 1 << 18
    assert last_step(tmp_path) == 20_000
    write_steps(tmp_path, *range(1, 20_001), 7)  # such as a save that ended late
    assert last_step(tmp_path) == 20_000


def test_no_restarts_asked_for(tmp_path: Path) -> None:
    verdict = RestartPolicy(tmp_path, 2, max_restarts=0).judge([Death(1, 1)])
    assert not verdict.restart
    assert "rank 1 ended with exit code 1" in verdict.message


# What a finished run is.


def finished(folder: Path, record: Any, **sections: Any) -> bool:
    run = load_run_config(write_config(folder, **sections), [])
    run.run_dir.mkdir(exist_ok=True)
    text = record if isinstance(record, str) else json.dumps(record)
    (run.run_dir / launch.FINISHED_FILE).write_text(text)
    return launch.is_finished(run)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoints" / "step_00000008"
    (folder / layout.RUN).mkdir(parents=True)
    (folder / "weights.distcp").write_bytes(b"weights")
    layout.write_checksums(folder)
    return folder


def test_finished_as_recorded(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"step": 8, "checkpoint": "checkpoints/step_00000008", "plan": []}
    assert finished(tmp_path, record)
    assert f"all 8 steps are done already, saved as {checkpoint}; skipped" in capsys.readouterr().out
    assert finished(tmp_path, record, training={"steps": 5, "global_batch_size": 2})
    assert not finished(tmp_path, record, training={"steps": 9, "global_batch_size": 2})
    assert not finished(tmp_path, record, checkpointing={"resume": False})


def test_finished_only_with_the_same_phases(tmp_path: Path, checkpoint: Path) -> None:
    training, phases = {"global_batch_size": 2}, [{"name": "one", "steps": 8}]
    run = load_run_config(write_config(tmp_path, training=training, phases=phases), [])
    plan = run.model_dump(mode="json")["phases"]
    record = {"step": 8, "checkpoint": str(checkpoint), "plan": plan}
    assert finished(tmp_path, record, training=training, phases=phases)
    longer = [*phases, {"name": "two", "steps": 4}]
    assert not finished(tmp_path, record, training=training, phases=longer)
    assert not finished(tmp_path, {**record, "plan": []}, training=training, phases=phases)
    assert not finished(tmp_path, record)


def test_not_finished_where_the_record_or_the_checkpoint_is_not_whole(tmp_path: Path, checkpoint: Path) -> None:
    record = {"step": 8, "checkpoint": "checkpoints/step_00000008", "plan": []}
    assert finished(tmp_path, record)
    for broken in ('{"step": 8, "check', "[]", "{}", '{"step": null, "checkpoint": "x"}'):
        assert not finished(tmp_path, broken)
    (checkpoint / "weights.distcp").write_bytes(b"weigh")
    assert not finished(tmp_path, record)
