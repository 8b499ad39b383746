"""The benchmark of one GPU: its FLOP, what it does when memory runs out, and a whole run at toy size."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_train.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_train", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flop_of_llama3_70b_are_the_published_ones(benchmark: Any) -> None:
    """Megatron-LM states 3.94e15 FLOP for a sequence of 8,192 tokens, Megatron-Bridge 3.68e15."""
    flops = benchmark.flops_a_token(benchmark.MODELS["llama3-70b"], 80, 8192)
    assert 8192 * flops["full"] == pytest.approx(3.94e15, rel=0.005)
    assert 8192 * flops["causal"] == pytest.approx(3.68e15, rel=0.005)


@pytest.mark.parametrize(("model", "billions"), [("llama3-8b", 8.03), ("llama3-70b", 70.55)])
def test_slices_have_the_true_widths(benchmark: Any, model: str, billions: float) -> None:
    assert benchmark.parameters(benchmark.MODELS[model], benchmark.LAYERS[model]) == pytest.approx(
        billions * 1e9, rel=0.001
    )


def test_layers_are_chosen_by_memory(benchmark: Any) -> None:
    small, large = (benchmark.fitting_layers("llama3-8b", gib * 2**30, 8192) for gib in (80, 140))
    assert 1 < small < large < 32
    assert benchmark.fitting_layers("llama3-70b", 80 * 2**30, 8192) == 1
    assert benchmark.fitting_layers("toy", 2**40, 32) == 4


def test_out_of_memory_takes_micro_batches_then_layers_and_says_so(benchmark: Any) -> None:
    job = {"layers": 4, "micro_batch_size": 2, "note": ""}
    tried = []
    while job is not None:
        tried.append((job["micro_batch_size"], job["layers"]))
        last, job = job, benchmark.smaller(job)
    assert tried == [(2, 4), (1, 4), (1, 3), (1, 2), (1, 1)]
    assert last["note"].startswith("micro-batch 2 → 1: out of memory; layers 4 → 3: out of memory")


def test_a_part_that_fails_is_a_row_that_says_why(benchmark: Any) -> None:
    job = {"model": "llama3-8b", "precision": "fp8", "spec": "transformer_engine", "seq_length": 8192}
    line = benchmark.row(
        job, {"layers": 3, "note": "layers 4 → 3: out of memory"}, {"failed": "given up after 150 s"}, {}
    )
    assert line["note"] == "layers 4 → 3: out of memory; given up after 150 s" and "tokens_s" not in line
    assert benchmark.run_part({"toy": False}, deadline=0.0)["failed"].startswith("not measured")


def test_a_toy_run_writes_every_part(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--toy", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "gpu_train.json").read_text())
    assert [row["what"] for row in record["rows"]] == ["megatron-native, plain torch", "transformers"]
    for row in record["rows"]:
        assert row["tokens_s"] > 0 and 5.5 < row["loss"] < 7.0, "near ln 512 = 6.24, as random weights give"
    assert record["bf16_tflops"] > 0 and "12·L·q·d·s·c" in record["formula"] and record["gpu"] is None
    assert "toy sizes" in (tmp_path / "gpu_train.md").read_text()
    refused = subprocess.run([*command[:-2]], capture_output=True, text=True)
    assert refused.returncode == 2 and "--output" in refused.stderr
