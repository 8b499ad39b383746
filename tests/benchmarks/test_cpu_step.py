"""The guard of the CPU step works at toy size, and both sides train the same kind of model."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "cpu_step.py"


def test_both_sides_take_turns_on_the_same_tokens() -> None:
    command = [sys.executable, str(SCRIPT), "--toy", "--rounds", "2", "--precision", "fp32", "--seq-length", "32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    row = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert row["rounds"] == 2 and row["tokens_a_step"] == 64 and row["ratio"] > 0 and row["processor_ratio"] > 0
    for side in ("loss_ours", "loss_transformers"):
        assert 5.5 < row[side] < 7.0, "near ln 512 = 6.24"
