"""SmolLM2-135M has 9 heads and 3 key/value heads: TP3 is its tensor parallelism, and it agrees with one process.

Its first layers only: all thirty are alike, and take gigabytes a checkpoint.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.torch_dist import TorchDistReader
from megatron_native.data.indexed import IndexedWriter
from megatron_native.data.tokenizers import load_tokenizer
from megatron_native.training.line_file import read_json_lines
from tests.distributed import REPOSITORY, run_jobs
from tests.real_models import smollm2
from tests.training.conftest import run_config

STEPS = 5
LAYERS = 6


def test_tp3_agrees_with_one_process(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2())
    model.model.layers = model.model.layers[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    model.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "imported", reference_logits=False)
    # Real text and a usual learning rate: text the model has no idea of makes steps so steep that rounding grows tenfold
    # with each.
    tokenizer = load_tokenizer("HuggingFaceTokenizer", smollm2())
    prefix = tmp_path / "tokens_text_document"
    lines = (REPOSITORY / "examples" / "quickstart" / "source" / "en.jsonl").read_text(encoding="utf-8").splitlines()
    with IndexedWriter(prefix, np.uint16) as writer:
        for ids in tokenizer.encode_batch([json.loads(line)["text"] for line in lines]):
            writer.add_document(ids.astype(np.uint16))
    runs = {}
    for size in (1, 3):
        runs[size] = tmp_path / f"tp{size}"
        jobs = []
        for stop in (1, STEPS):
            config = run_config(
                runs[size], tmp_path / "imported", prefix,
                data={"seq_length": 32},
                training={"steps": STEPS, "stop_after": stop, "micro_batch_size": 1, "global_batch_size": 2},
                optimizer={"lr": 2e-5, "min_lr": 2e-6, "adam_eps": 1e-5},
                parallel={"tensor_model_parallel_size": size},
            )  # fmt: skip
            jobs.append({"train": config})
        run_jobs(tmp_path / str(size), size, jobs)
    losses = {
        size: [record["loss"] for record in read_json_lines(run / "metrics.jsonl") if "loss" in record]
        for size, run in runs.items()
    }
    assert losses[3] == pytest.approx(losses[1], abs=1e-5)

    one, three = (TorchDistReader(run / "checkpoints" / "step_00000001") for run in runs.values())
    for key in (key for key in one.tensors if key.startswith("optimizer.state.exp_avg.")):
        gradient = one.read(key)
        assert (gradient - three.read(key)).abs().max() <= 1e-4 * gradient.abs().max(), key
    one, three = (TorchDistReader(run / "checkpoints" / f"step_{STEPS:08d}") for run in runs.values())
    weights = [key for key in one.tensors if not key.startswith("optimizer.")]
    assert len(weights) == 8, "embedding, final norm and six stacked weights of the layers"
    for key in weights:
        assert torch.allclose(one.read(key), three.read(key), rtol=0, atol=1e-5), key
    shutil.rmtree(tmp_path)
