"""A tiny token dataset and run configurations shared by the trainer's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_native.data.indexed import IndexedWriter
from tests.tiny_models import VOCAB_SIZE

SEQ_LENGTH = 48


def write_token_dataset(prefix: Path, seed: int, vocab_size: int = VOCAB_SIZE, documents: int = 120) -> Path:
    """Documents of random length whose tokens follow a rule that a model can learn."""
    generator = np.random.default_rng(seed)
    with IndexedWriter(prefix, np.uint16) as writer:
        for _ in range(documents):
            length, start = int(generator.integers(5, 160)), int(generator.integers(0, 40))
            ids = (start + np.arange(length) * 7) % 40 + generator.integers(0, 2, length)
            writer.add_document((ids % vocab_size).astype(np.uint16))
    return prefix


@pytest.fixture(scope="module")
def token_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of a `.bin`/`.idx` pair over the tiny models' vocabulary."""
    return write_token_dataset(tmp_path_factory.mktemp("data") / "tokens_text_document", seed=7)


def run_config(run_dir: Path, checkpoint: Path, prefix: Path, **sections: Any) -> dict[str, Any]:
    """A run of ten FP32 steps of 8 × 48 tokens on one process; `sections` update its sections."""
    config: dict[str, Any] = {
        "run_dir": str(run_dir),
        "platform": "cpu",
        "model": {"checkpoint": str(checkpoint), "import_gate": False},
        "data": {"seq_length": SEQ_LENGTH, "blend": [{"prefix": str(prefix)}]},
        "training": {"steps": 10, "micro_batch_size": 2, "global_batch_size": 8, "precision": "fp32"},
        "optimizer": {"lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 2, "clip_grad": 1.0},
        "parallel": {},
        "logging": {"tensorboard": False},
    }
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values} if isinstance(values, dict) else values
    return config
