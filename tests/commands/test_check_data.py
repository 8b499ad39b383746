"""`check-data`: the check of a run's datasets from the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_native.cli import main
from megatron_native.data.indexed import bin_path
from tests.data.planted_datasets import VOCABULARY, complete_dataset, documents, write_dataset

HF_CONFIG = {
    "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of two datasets, the second without a manifest."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(HF_CONFIG))
    complete_dataset(tmp_path / "ar", documents(20, 30))
    write_dataset(tmp_path / "en", documents(10, seed=2))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({
        "run_dir": str(tmp_path / "run"), "model": {"hf_config": str(tmp_path / "model")},
        "data": {"seq_length": 16, "verify": "off", "blend": [{"prefix": str(tmp_path / name)} for name in ("ar", "en")]},
        "training": {"steps": 2, "global_batch_size": 2},
    }))  # fmt: skip
    return path


def test_a_table_of_what_was_found(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", "--config", str(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["dataset", "documents", "tokens", "dtype", "checked", "manifest", "seconds"]
    assert lines[1].split()[:6] == [str(tmp_path / "ar"), "2", "50", "uint16", "sampled", "agrees"]
    assert lines[2].split()[:6] == [str(tmp_path / "en"), "1", "10", "uint16", "sampled", "none"]
    assert "without a manifest" in lines[3]


def test_json(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", "--config", str(config), "--full", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["datasets"]
    assert [(fact["prefix"], fact["tokens"], fact["mode"]) for fact in found] == [
        (str(tmp_path / "ar"), 50, "full"), (str(tmp_path / "en"), 10, "full"),
    ]  # fmt: skip


def test_a_fault_is_one_paragraph_and_code_2(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(bin_path(tmp_path / "en"), 12)
    assert main(["check-data", "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert "en.bin is cut short: it has 12 bytes, and en.idx describes 20" in said
    assert said.count("\n") == 1


def test_it_looks_again_whatever_was_found_before(config: Path, tmp_path: Path) -> None:
    assert main(["check-data", "--config", str(config)]) == 0
    path = bin_path(tmp_path / "en")
    status = path.stat()
    with open(path, "r+b") as file:
        file.write(np.array([VOCABULARY], dtype="<u2").tobytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert main(["check-data", "--config", str(config)]) == 2


def test_without_torch(config: Path) -> None:
    import subprocess
    import sys

    script = "import sys; from megatron_native.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script, "check-data", "--config", str(config)], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
