"""A Slurm script against the run it is to start."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_native.training.plan.checkpoint_size import Saving
from megatron_native.training.plan.slurm_script import read_slurm_script, slurm_findings

GOOD = """#!/usr/bin/env bash
#SBATCH --job-name=pretrain
#SBATCH --nodes=64
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=USR1@300
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
srun torchrun --nnodes 64 --nproc-per-node 8 tools/pretrain.py --config run.yaml
"""


def wrong(
    tmp_path: Path, old: str, new: str, world_size: int = 512, save: float = 60.0, kind: str = "error"
) -> list[str]:
    path = tmp_path / "job.sbatch"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    saving = Saving(int(save * 1e9), 1.0, "given")
    return [str(finding) for finding in slurm_findings(path, world_size, saving, 10.0) if finding.kind == kind]


def test_a_good_script_has_no_findings(tmp_path: Path) -> None:
    assert wrong(tmp_path, "", "") == wrong(tmp_path, "", "", kind="note") == []


@pytest.mark.parametrize("old, new, said", [
    ("--nodes=64", "--nodes=32", "32 nodes × 8 GPUs = 256 processes, and the plan is for 512"),
    ("#SBATCH --nodes=64", "#SBATCH -N 16", "Set --nodes=64, or plan with --world-size 128"),
    ("--gpus-per-node=8", "--gres=gpu:h100:4", "64 nodes × 4 GPUs = 256"),
    ("--nproc-per-node 8", "--nproc-per-node 4", "starts 4 processes a node and asks for 8 GPUs"),
    ("--nproc-per-node 8", "--nproc 4", "starts 4 processes a node and asks for 8 GPUs"),
    ("--ntasks-per-node=1", "--ntasks-per-node=8", "torchrun is to run once a node"),
    ("--signal=USR1@300", "--signal=USR1@60", "and 60 s for Slurm that is 190 s"),
    ("#SBATCH --signal=USR1@300\n", "", "has no --signal"),
    ("--signal=USR1@300", "--signal=INT@300", "sends SIGINT: a run saves and stops on TERM and USR1"),
    ("--signal=USR1@300", "--signal=B:USR1@300", "batch shell alone"),
    ("set -euo pipefail", "if true; then", "no valid bash"),
    ("set -euo pipefail\n", "set -e\n#SBATCH --exclusive\n", "after the first command"),
])  # fmt: skip
def test_what_is_wrong_is_named_with_the_way_out(tmp_path: Path, old: str, new: str, said: str) -> None:
    findings = wrong(tmp_path, old, new)
    assert 1 <= len(findings) <= 2  # other GPUs a node don't fit torchrun's processes either
    assert said in findings[0] and str(tmp_path / "job.sbatch") in findings[0]


def test_the_margin_follows_the_save(tmp_path: Path) -> None:
    """Two saves, a step, a minute: 600 s a save need 1,270 s."""
    (said,) = wrong(tmp_path, "", "", save=600.0)
    assert "1270 s" in said and "--signal=USR1@1320" in said
    assert wrong(tmp_path, "USR1@300", "USR1@1320", save=600.0) == []


@pytest.mark.parametrize(
    "old, new", [("#SBATCH --requeue\n", ""), ("#SBATCH --time=24:00:00\n", ""), ("#SBATCH --nodes=64\n", "")]
)
def test_what_is_only_to_be_looked_at_is_a_note(tmp_path: Path, old: str, new: str) -> None:
    assert wrong(tmp_path, old, new) == []
    assert len(wrong(tmp_path, old, new, kind="note")) == 1


def test_a_script_that_chooses_not_to_be_queued_again(tmp_path: Path) -> None:
    assert wrong(tmp_path, "--requeue", "--no-requeue", kind="note") == []


def test_options_in_every_spelling(tmp_path: Path) -> None:
    path = tmp_path / "job"
    path.write_text(
        "#!/bin/bash\n#SBATCH -N4 -t 1:00:00 # a comment\n#SBATCH --gres gpu:8 --signal=10@30\n#SBATCH --requeue\nsrun x\n"
    )
    script = read_slurm_script(path)
    assert script.number("nodes") == 4 and script.gpus_a_node == 8 and script.options["time"] == "1:00:00"
    assert script.signal == ("USR1", 30, False)
