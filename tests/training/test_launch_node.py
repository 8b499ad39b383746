"""Two nodes of one run, each with a launcher of its own: how they meet, stop and fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_native.errors import UserError
from megatron_native.training.node_place import NodePlace, read_outcomes, stderr_file
from megatron_native.training.restarts import last_step
from tests.distributed import REPOSITORY
from tests.slurm.one_machine import free_ports
from tests.training.test_launch import WORKER, finish, wait_until, write_config

NODE = """
import sys
from pathlib import Path
from megatron_native.errors import UserError
from megatron_native.training.launch_node import launch_node
from megatron_native.training.node_place import NodePlace
worker, mode, config, rank, endpoint, logs = sys.argv[1:]
try:
    sys.exit(launch_node(Path(config), [], 1, NodePlace(2, int(rank), endpoint, Path(logs)), (worker, mode)))
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def start(folder: Path, mode: str) -> list[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    config = write_config(folder)
    (folder / "run").mkdir(exist_ok=True)
    endpoint = f"127.0.0.1:{free_ports(1)[0]}"
    words: list[Any] = [sys.executable, "-c", NODE, WORKER, mode, config]
    return [
        subprocess.Popen(
            [*words, str(rank), endpoint, folder / "logs"], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip


def test_nodes_train_together_to_the_end(tmp_path: Path) -> None:
    ended = [finish(node) for node in start(tmp_path, "well")]
    assert [code for code, _ in ended] == [0, 0], "\n".join(said for _, said in ended)
    assert last_step(tmp_path / "run") == 8
    assert [(outcome.node_rank, outcome.state) for outcome in read_outcomes(tmp_path / "logs")] == [
        (0, "done"),
        (1, "done"),
    ]


def test_a_stop_of_one_node_saves_and_stops_all(tmp_path: Path) -> None:
    nodes = start(tmp_path, "stop-at-once")
    wait_until(lambda: last_step(tmp_path / "run") > 3, nodes[0])
    nodes[1].send_signal(signal.SIGUSR1)
    ended = [finish(node) for node in nodes]
    assert [code for code, _ in ended] == [75, 75], "\n".join(said for _, said in ended)
    assert [outcome.state for outcome in read_outcomes(tmp_path / "logs")] == ["requeue", "requeue"]
    assert (tmp_path / "run" / "saved.0").read_text() == "None 0"  # the signal came to the other node's rank
    assert (tmp_path / "run" / "saved.1").read_text() == "SIGUSR1 0"


def test_the_first_death_is_told_apart_from_those_that_follow(tmp_path: Path) -> None:
    ended = [finish(node) for node in start(tmp_path, "exception")]
    assert [code for code, _ in ended] == [1, 1], "\n".join(said for _, said in ended)
    first, second = sorted(read_outcomes(tmp_path / "logs"), key=lambda outcome: outcome.time)
    assert (first.state, first.deaths) == ("failed", [{"rank": 1, "exit_code": 1}])
    assert second.deaths[0]["rank"] == 0
    assert "a defect in rank 1" in stderr_file(tmp_path / "logs", 1).read_text()
    assert "a defect in rank 1" not in stderr_file(tmp_path / "logs", 0).read_text()


def test_a_user_error_is_left_with_its_message(tmp_path: Path) -> None:
    nodes = start(tmp_path, "user-error")
    code, said = finish(nodes[1])
    finish(nodes[0])
    assert code == 2
    assert said.count("the shard of rank 1 is missing: put it back.") == 1
    outcome = read_outcomes(tmp_path / "logs")[1]
    assert (outcome.state, outcome.message) == ("user_error", "the shard of rank 1 is missing: put it back.")


@pytest.mark.parametrize(
    ("nodes", "rank", "endpoint"), [(2, 2, "host:1"), (2, 0, "host"), (0, 0, "host:1"), (2, 1, ":80")]
)
def test_places_that_can_not_be(nodes: int, rank: int, endpoint: str) -> None:
    with pytest.raises(UserError):
        NodePlace(nodes, rank, endpoint)
