"""The same tasks in this process, in local processes and on a real Ray cluster of two nodes: results, errors, progress."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_native.engine.tasks import make_engine
from megatron_native.errors import UserError
from megatron_native.progress import progress


def squared(task, on_read):
    on_read(task)
    return {"square": task * task, "process": os.getpid()}


def slowly_squared(task, on_read):
    time.sleep(0.2)  # so that one process can't take all tasks before the other has started
    return squared(task, on_read)


def fails_on_three(task, on_read):
    if task == 3:
        raise UserError("three is bad")
    return task


def results(engine, work, tasks):
    with progress("test", sum(tasks), "B") as bar:
        found = dict(engine.run(work, tasks, bar))
    return found, bar.done


@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (2, 2)])
def test_local_processes_give_every_result_with_its_place(workers, processes):
    tasks = list(range(20, 40))
    found, read = results(make_engine("local", workers), squared, tasks)
    assert [found[place]["square"] for place in range(20)] == [task * task for task in tasks]
    used = {result["process"] for result in found.values()}
    assert (os.getpid() in used) == (workers == 1)
    assert len(used) <= processes
    assert read == sum(tasks)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_is_told_as_it_is(workers):
    with pytest.raises(UserError, match="three is bad"):
        results(make_engine("local", workers), fails_on_three, list(range(8)))


def dies(task, on_read):
    os._exit(9)


def test_a_process_that_is_killed_is_told_with_what_to_do():
    with pytest.raises(UserError, match="fewer --workers"):
        results(make_engine("local", 2), dies, [1, 2])


@pytest.mark.parametrize(("name", "workers", "said"), [("spark", 1, "one of local, ray"), ("local", 0, "must be 1 or more")])
def test_engines_that_are_not_there(name, workers, said):
    with pytest.raises(UserError, match=said):
        make_engine(name, workers)


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
from tests.engine.test_engines import results, slowly_squared, fails_on_three
from megatron_native.engine.tasks import make_engine
from megatron_native.errors import UserError
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
engine = make_engine("ray", 1, cluster.address)
found, read = results(engine, slowly_squared, list(range(20, 40)))
assert [found[place]["square"] for place in range(20)] == [task * task for task in range(20, 40)]
assert read == sum(range(20, 40))
import ray
assert len(ray.nodes()) == 2, ray.nodes()
assert len({result["process"] for result in found.values()}) == 2
try:
    results(engine, fails_on_three, list(range(8)))
except UserError as error:
    assert str(error) == "three is bad"
else:
    raise AssertionError("no error")
print("both nodes worked", flush=True)
import os
ray.shutdown()
cluster.shutdown()
os._exit(0)  # Ray's own threads may end the process with another code
"""


def test_a_ray_cluster_of_two_nodes_gives_the_same():
    pytest.importorskip("ray")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER], cwd=root, capture_output=True, text=True, timeout=180, check=False,
        env={**os.environ, "PYTHONPATH": str(root), "RAY_DEDUP_LOGS": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "both nodes worked" in done.stdout


def test_no_cluster_at_an_address_is_one_paragraph():
    pytest.importorskip("ray")
    code = "from megatron_native.engine.tasks import make_engine\nmake_engine('ray', 1, '127.0.0.1:1')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    assert "UserError: --address 127.0.0.1:1: no Ray cluster answers" in done.stderr
