"""A Slurm for the tests of this folder, and a tiny run to give it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_native.training.line_file import read_json_lines
from tests.distributed import REPOSITORY
from tests.slurm.one_machine import Slurm, missing_programs
from tests.tiny_models import BASE, PLAIN_ROPE
from tests.training.conftest import write_token_dataset


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """A running Slurm of two nodes."""
    missing = missing_programs()
    if missing:
        pytest.skip(f"Slurm is not installed here: there is no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own needs root: its daemons start jobs for users")
    with Slurm() as running:
        yield running


@dataclass
class TinyRun:
    """A run of a tiny model on two ranks, with its files in a folder."""

    folder: Path
    config: Path
    cluster: Path
    run_dir: Path

    def launch(self, slurm: Slurm, *words: str) -> list[str]:
        """`megatron-native launch` with these words; the ids of what it submitted."""
        done = subprocess.run(
            [sys.executable, "-m", "megatron_native", "launch", "--slurm", self.cluster, "--config", self.config, *words],
            cwd=self.folder, env={**slurm.environment, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return [line.split(": job ")[1].split()[0].rstrip(",") for line in done.stdout.splitlines() if ": job " in line]

    def losses(self, run_dir: Path | None = None) -> dict[int, float]:
        """Step → loss, as the run has written it."""
        records = read_json_lines((run_dir or self.run_dir) / "metrics.jsonl")
        return {record["step"]: record["loss"] for record in records if "loss" in record}

    def said(self) -> str:
        """Everything that the jobs have said."""
        logs = self.run_dir / "logs" / "slurm"
        files = [*sorted(logs.glob("*.log")), *sorted(logs.glob("*/*/stderr/*"))]
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')}" for path in files)


def write_run(folder: Path, cluster: dict[str, Any] | None = None, **sections: Any) -> TinyRun:
    """A run of two ranks, one on each node; `sections` go over its settings, `cluster` over those of the site."""
    shape = {**BASE, "rope_parameters": PLAIN_ROPE, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(shape))
    write_token_dataset(folder / "tokens", seed=3, documents=60)
    run = {
        "run_dir": str(folder / "run"),
        "platform": "cpu",
        "model": {"hf_config": str(folder / "config.json")},
        "data": {"seq_length": 32, "blend": [{"prefix": str(folder / "tokens")}]},
        "training": {"steps": 60, "global_batch_size": 4, "precision": "fp32"},
        "optimizer": {"lr": 1e-3, "min_lr": 1e-4},
        "logging": {"tensorboard": False},
        **sections,
    }
    site = {
        "partition": "debug",
        "gpus_per_node": 0,
        "exclusive": False,
        "cpus_per_task": 2,
        "time": "1:00:00",
        "python": sys.executable,
        "environment": {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        "health": {"enabled": False},  # another start of Python on every node
        **(cluster or {}),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    (folder / "cluster.yaml").write_text(yaml.safe_dump(site))
    return TinyRun(folder, folder / "run.yaml", folder / "cluster.yaml", folder / "run")
