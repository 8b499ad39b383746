"""What can be wrong with a run is said in one paragraph, with exit code 2, before anything starts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.data.indexed import IndexedWriter
from tests.distributed import REPOSITORY
from tests.tiny_models import make_tiny_model

Config = dict[str, Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A run that would work."""
    folder = tmp_path_factory.mktemp("pretrain")
    import_hf(make_tiny_model(folder / "hf", "llama3.1"), folder / "imported", reference_logits=False)
    with IndexedWriter(folder / "tokens_text_document", np.uint16) as writer:
        for start in range(20):
            writer.add_document(np.arange(start, start + 60, dtype=np.uint16))
    config = {
        "run_dir": str(folder / "run"),
        "platform": "cpu",
        "model": {"checkpoint": str(folder / "imported")},
        "data": {"seq_length": 32, "blend": [{"prefix": str(folder / "tokens_text_document")}]},
        "training": {"steps": 2, "global_batch_size": 2, "precision": "fp32"},
    }
    return folder, config


def pretrain(tmp_path: Path, config: Config, *words: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return subprocess.run(
        [sys.executable, "-m", "megatron_native", "pretrain", "--config", str(path), *words],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.blnd=1"], "unknown key data.blnd: did you mean 'blend'?"),
        (["training.steps=many"], "training.steps = 'many'"),
        (["training.precision=fp7"], "training.precision = 'fp7'"),
        (["optimizer.lr=1e-6"], "optimizer.min_lr 2e-06 is above optimizer.lr 1e-06"),
        (["data.blend.0.prefix=/nowhere/ar"], "data.blend.0.prefix = /nowhere/ar: there is no /nowhere/ar.bin"),
        (["model.checkpoint=/nowhere"], "model.checkpoint = /nowhere is not a checkpoint"),
        (["--nproc", "3", "parallel.tensor_model_parallel_size=3"], "does not divide 8 attention heads"),
        (["--nproc", "3", "parallel.pipeline_model_parallel_size=3"], "4 layers cannot be split evenly"),
        (["--nproc", "3", "parallel.pipeline_model_parallel_size=2"], "3 processes cannot be split"),
        (["--nproc", "4"], "training.global_batch_size 2 is no multiple"),
        (["parallel.sequence_parallel=true"], "sequence_parallel needs tensor_model_parallel_size above 1"),
        (["data.seq_length=100000"], "data.seq_length 100000 is longer than the model's max_position_embeddings 512"),
        (["platform=cuda"], "torch sees no CUDA device"),
    ],
)
def test_a_wrong_setting_is_named(base: tuple[Path, Config], tmp_path: Path, words: list[str], said: str) -> None:
    done = pretrain(tmp_path, base[1], *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (base[0] / "run" / "config.yaml").exists(), "nothing has started"


def test_a_missing_configuration_file_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "megatron_native", "pretrain", "--config", "/nowhere/run.yaml"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "/nowhere/run.yaml" in done.stderr


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: truncate(folder / "tokens_text_document.idx"), "tokens_text_document.idx"),
        (lambda folder: truncate(folder / "tokens_text_document.bin"), "tokens_text_document.bin"),
        (lambda folder: truncate(folder / "imported" / "__0_0.distcp"), "__0_0.distcp"),
        (lambda folder: (folder / "imported" / "run" / "checksums.json").unlink(), "was cut short"),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_damaged_data_or_checkpoint_is_named(
    base: tuple[Path, Config], tmp_path: Path, damage: Callable[[Path], None], said: str, processes: int
) -> None:
    import shutil

    shutil.copytree(base[0], tmp_path / "copy", ignore=shutil.ignore_patterns("run.yaml"))
    config = yaml.safe_load(yaml.safe_dump(base[1]).replace(str(base[0]), str(tmp_path / "copy")))
    damage(tmp_path / "copy")
    done = pretrain(tmp_path, config, *(["--nproc", "2"] if processes == 2 else []))
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_stops_early_wants_to_be_started_again(base: tuple[Path, Config], tmp_path: Path) -> None:
    config = {**base[1], "run_dir": str(tmp_path / "run")}
    stopped = pretrain(tmp_path, config, "--nproc", "2", "training.stop_after=1")
    assert stopped.returncode == 75, stopped.stderr
    changed = pretrain(tmp_path, config, "--nproc", "2", "seed=7")
    assert changed.returncode == 2
    assert "seed is 7, and the run began with 1234" in changed.stderr
    assert "Traceback" not in changed.stderr
    finished = pretrain(tmp_path, config, "--nproc", "2")
    assert finished.returncode == 0, finished.stderr
    assert "resumed from" in finished.stdout
    assert (tmp_path / "run" / "checkpoints" / "step_00000002" / "run" / "config.yaml").is_file()
    again = pretrain(tmp_path, config, "--nproc", "2")
    assert again.returncode == 0
    assert "all 2 steps are done already" in again.stdout


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("parallel.use_distributed_optimizer=false", "has no optimizer.state.param.*use_distributed_optimizer or"),
        ("checkpointing.save_optimizer=false", "was saved without optimizer state.*model.checkpoint set to it"),
    ],
)
def test_a_run_that_cannot_go_on_exactly_says_why(
    base: tuple[Path, Config], tmp_path: Path, before: str, said: str
) -> None:
    config = {**base[1], "run_dir": str(tmp_path / "run")}
    assert pretrain(tmp_path, config, before, "training.stop_after=1").returncode == 75
    done = pretrain(tmp_path, config)
    assert done.returncode == 2, done.stderr
    assert re.search(said, " ".join(done.stderr.split())), done.stderr
    assert "Traceback" not in done.stderr
