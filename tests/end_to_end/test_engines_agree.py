"""The whole recipe on real news: local processes, a Ray cluster of two nodes and a job array write the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_native.manifest import file_digest
from tests.data.small_tokenizers import write_llama3

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = """
import os, subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
done = subprocess.run([sys.executable, "-m", "megatron_native", *sys.argv[1:], "--engine", "ray", "--address", cluster.address])
cluster.shutdown()
os._exit(done.returncode)
"""


def digests(folder):
    return {
        str(path.relative_to(folder)): file_digest(path)
        for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith("manifest.json")
    }  # fmt: skip


def accounts(folder):
    manifests = (json.loads(path.read_text()) for path in sorted(folder.rglob("*manifest.json")))
    return [
        (manifest["stage"], manifest["counts"], [entry.get("records") for entry in manifest["inputs"]])
        for manifest in manifests
    ]


@pytest.mark.timeout(1500)
def test_local_ray_and_a_job_array_give_the_same_hashes(tmp_path):
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA")
    if not data:
        pytest.skip("MEGATRON_NATIVE_TEST_DATA names no folder of real test data")
    pytest.importorskip("ray")
    write_llama3(tmp_path / "tokenizer")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "output: unused\n"
        "stages:\n"
        f"  - clean: {{input: ['{data}/saudinewsnet'], text_key: content, id_key: url, part_bytes: 8000000}}\n"
        "  - dedup: {part_bytes: 8000000, repeated_lines: 30}\n"
        f"  - tokenize: {{name: ar, input: '@dedup/ar', tokenizer_model: {tmp_path}/tokenizer, part_bytes: 8000000}}\n"
    )
    command = ["corpus", "--recipe", str(recipe), "--output"]

    def run(words, **more):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, **more)
        assert done.returncode in (0, 75), done.stderr[-3000:]
        return done.stdout

    native = [sys.executable, "-m", "megatron_native"]
    run([*native, *command, str(tmp_path / "local"), "--workers", "2"])
    run([sys.executable, "-c", CLUSTER, *command, str(tmp_path / "ray")], timeout=900)
    for _ in range(6):
        shares = [["--task-index", str(index), "--task-count", "3", "--workers", "1"] for index in (1, 2, 0)]
        said = [run([*native, *command, str(tmp_path / "array"), *share]) for share in shares]
        if (tmp_path / "array/tokens/ar_text_document.manifest.json").exists():
            break
    else:
        raise AssertionError(said)
    wanted = digests(tmp_path / "local")
    assert len(wanted) > 15
    assert digests(tmp_path / "ray") == wanted
    assert digests(tmp_path / "array") == wanted
    assert accounts(tmp_path / "ray") == accounts(tmp_path / "local") == accounts(tmp_path / "array")
    assert json.loads((tmp_path / "local/clean/manifest.json").read_text())["counts"]["read"] == 20_329
