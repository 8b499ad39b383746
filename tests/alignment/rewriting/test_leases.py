import json
import os
import subprocess
import sys
import time
from pathlib import Path

from megatron_native.alignment.rewriting.leases import Leases, give_up_all, leases_in

HOLD = """
import os, sys
from pathlib import Path
from megatron_native.alignment.rewriting.leases import Leases
lease = Leases(Path(sys.argv[1])).take("x")
print("none" if lease is None else lease.attempt, flush=True)
sys.stdin.read()
os._exit(0)
"""
RACE = """
import os, sys, time
from pathlib import Path
from megatron_native.alignment.rewriting.leases import Leases
leases = Leases(Path(sys.argv[1]))
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
print(*[number for number in range(200) if leases.take(str(number)) is not None], flush=True)
sys.stdin.read()
os._exit(0)
"""


def start(code: str, *arguments: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_what_is_held_is_not_given_to_another(tmp_path: Path) -> None:
    with leases_in(tmp_path) as mine:
        assert mine.take("x") is not None
        assert mine.take("x") is None
        holder = start(HOLD, tmp_path)
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "none"
        holder.kill()
        holder.wait()


def test_what_a_killed_process_held_is_free_at_once_and_counts_as_an_attempt(tmp_path: Path) -> None:
    holder = start(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "0"
    with leases_in(tmp_path) as mine:
        assert mine.take("x") is None
        holder.kill()
        holder.wait()
        lease = mine.take("x")
        assert lease is not None
        assert lease.attempt == 1


def test_what_is_given_back_was_no_attempt(tmp_path: Path) -> None:
    with leases_in(tmp_path) as mine:
        lease = mine.take("x")
        assert lease is not None
        mine.give_back(lease)
        again = mine.take("x")
        assert again is not None
        assert again.attempt == 0


def test_what_is_given_up_is_free_and_was_an_attempt(tmp_path: Path) -> None:
    with leases_in(tmp_path) as mine:
        for attempt in range(3):
            lease = mine.take("x")
            assert lease is not None
            assert lease.attempt == attempt
            mine.give_up(lease)


def test_what_is_finished_leaves_nothing(tmp_path: Path) -> None:
    with leases_in(tmp_path) as mine:
        lease = mine.take("x")
        assert lease is not None
        mine.give_up(lease)
        second = mine.take("x")
        assert second is not None
        mine.finish(second)
    assert list(tmp_path.iterdir()) == []


def test_the_end_gives_back_what_is_held(tmp_path: Path) -> None:
    with leases_in(tmp_path) as mine:
        mine.take("x")
    with leases_in(tmp_path) as others:
        lease = others.take("x")
        assert lease is not None
        assert lease.attempt == 0


def foreign(path: Path, age: float) -> None:
    """A lease of another host whose heartbeat is `age` seconds old."""
    path.write_text(json.dumps({"host": "elsewhere", "boot": "", "pid": 1, "start": "1"}), encoding="utf-8")
    os.utime(path, (time.time() - age, time.time() - age))


def test_a_lease_of_another_host_ends_with_its_heartbeat(tmp_path: Path) -> None:
    with leases_in(tmp_path, seconds=100) as mine:
        foreign(tmp_path / "alive.0", age=90)
        foreign(tmp_path / "silent.0", age=110)
        assert mine.take("alive") is None
        lease = mine.take("silent")
        assert lease is not None
        assert lease.attempt == 1


def test_a_container_on_the_same_host_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    """Its process numbers mean nothing here: the one it names is not there, and yet it lives."""
    with leases_in(tmp_path) as mine:
        lease = mine.take("x")
        assert lease is not None
        holder = json.loads(lease.path.read_text(encoding="utf-8"))
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    assert holder["boot"] == f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    elsewhere = {"host": holder["host"], "boot": f"{boot} pid:[1]", "pid": 2**22 + 1, "start": "1"}
    (tmp_path / "x.0").write_text(json.dumps(elsewhere), encoding="utf-8")
    with leases_in(tmp_path) as mine:
        assert mine.take("x") is None
        (tmp_path / "x.0").write_text(json.dumps(elsewhere | {"boot": holder["boot"]}), encoding="utf-8")
        assert mine.take("x") is not None


def test_the_heartbeat_keeps_a_lease(tmp_path: Path) -> None:
    with leases_in(tmp_path, seconds=1.0) as mine:
        lease = mine.take("x")
        assert lease is not None
        before = lease.path.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while lease.path.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline, "no heartbeat in ten seconds"
            time.sleep(0.02)


def test_where_nobody_works_all_leases_are_given_up(tmp_path: Path) -> None:
    foreign(tmp_path / "x.0", age=0)
    give_up_all(tmp_path)
    with leases_in(tmp_path) as mine:
        lease = mine.take("x")
        assert lease is not None
        assert lease.attempt == 1


def taken_in_a_race(folder: Path, go: Path) -> list[int]:
    """What three processes that begin together got, in order."""
    racers = [start(RACE, folder, go) for _ in range(3)]
    time.sleep(0.5)
    go.touch()
    taken = []
    for racer in racers:
        assert racer.stdout is not None
        taken += racer.stdout.readline().split()
    for racer in racers:
        racer.kill()
        racer.wait()
    return sorted(map(int, taken))


def test_processes_that_race_get_each_thing_once(tmp_path: Path) -> None:
    assert taken_in_a_race(tmp_path / "leases", tmp_path / "go") == list(range(200))


def test_a_dead_lease_is_taken_by_one_of_many(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    with leases_in(folder):
        pass
    for number in range(200):
        foreign(folder / f"{number}.0", age=0)
    give_up_all(folder)
    assert taken_in_a_race(folder, tmp_path / "go") == list(range(200))


def test_a_pid_that_was_given_to_another_process_holds_nothing(tmp_path: Path) -> None:
    mine = Leases(tmp_path)
    lease = mine.take("x")
    assert lease is not None
    holder = json.loads(lease.path.read_text(encoding="utf-8"))
    (tmp_path / "y.0").write_text(json.dumps(holder | {"start": "1"}), encoding="utf-8")
    assert mine.take("y") is not None
    mine.close()
