"""The corpus as a job array under a real Slurm: tasks wait for each other between stages, and write what one process writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from tests.distributed import REPOSITORY
from tests.end_to_end.test_engines_agree import digests
from tests.slurm.one_machine import Slurm


def test_two_tasks_write_what_one_process_writes(slurm: Slurm, tmp_path: Path) -> None:
    data = str(REPOSITORY / "examples" / "quickstart" / "data")
    recipe = {"output": str(tmp_path / "alone"), "workers": 1, "stages": [{"clean": {"input": [data]}}, {"dedup": {}}]}
    site = {
        "partition": "debug", "gpus_per_node": 0, "python": sys.executable, "cpu_jobs": {"cpus_per_task": 1},
        "environment": {"PYTHONPATH": str(REPOSITORY), "CORPUS_WAIT_SECONDS": "1"}, "logs": str(tmp_path / "logs"),
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    command = [sys.executable, "-m", "megatron_native"]
    words = [
        "launch",
        "--slurm",
        "site.yaml",
        "--what",
        "corpus",
        "--recipe",
        "recipe.yaml",
        "--output",
        "array",
        "--tasks",
        "2",
    ]
    environment = {**slurm.environment, "PYTHONPATH": str(REPOSITORY)}
    said = subprocess.run(
        [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    subprocess.run(
        [*command, "corpus", "--recipe", "recipe.yaml"], cwd=tmp_path, env=environment, check=True, capture_output=True
    )
    job = said.split(": job ")[1].split()[0]
    for task in ("0", "1"):
        state = slurm.wait_for(f"{job}_{task}", lambda state: state["JobState"] in ("COMPLETED", "FAILED", "CANCELLED"))
        log = tmp_path / "logs" / "corpus-recipe" / f"{job}_{task}.log"
        assert state["JobState"] == "COMPLETED", log.read_text()
    alone = digests(tmp_path / "alone")
    assert alone
    assert digests(tmp_path / "array") == alone
