"""An independent trainer agrees: plain transformers, torch.optim.AdamW and a schedule written out here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.torch_dist import TorchDistReader
from megatron_native.data.indexed import IndexedTokens
from megatron_native.data.sequence_index import SequenceIndex
from megatron_native.training.line_file import read_json_lines
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import SEQ_LENGTH, run_config

STEPS, BATCH, PEAK, MINIMUM, WARMUP, DECAY, CLIP = 20, 8, 2e-3, 2e-4, 3, 0.1, 1.0


def learning_rate(step: int) -> float:
    """Linear warm-up over 3 steps, cosine to the minimum at step 20."""
    if step <= WARMUP:
        return PEAK * step / WARMUP
    return MINIMUM + (PEAK - MINIMUM) * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


@pytest.mark.parametrize("shape", ["llama3.1", "qwen1.5", "qwen3"])
def test_losses_equal_those_of_transformers_and_adamw(tmp_path: Path, token_dataset: Path, shape: str) -> None:
    hf = make_tiny_model(tmp_path / "hf", shape)
    import_hf(hf, tmp_path / "imported")
    config = run_config(
        tmp_path / "run", tmp_path / "imported", token_dataset,
        training={"steps": STEPS, "global_batch_size": BATCH}, data={"document_boundaries": False},
        optimizer={"lr": PEAK, "min_lr": MINIMUM, "warmup_steps": WARMUP, "weight_decay": DECAY, "clip_grad": CLIP},
    )  # fmt: skip
    run_jobs(tmp_path, 1, [{"train": config}])
    ours = [record for record in read_json_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in record]

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    index = SequenceIndex(IndexedTokens(token_dataset), SEQ_LENGTH, 1234, token_dataset.name)
    theirs, norms = [], []
    for step in range(1, STEPS + 1):
        samples = np.stack([index.sequence(i) for i in range((step - 1) * BATCH, step * BATCH)])
        ids = torch.from_numpy(samples)
        logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        theirs.append(float(loss))

    assert [line["loss"] for line in ours] == pytest.approx(theirs, abs=1e-4)
    assert [line["grad_norm"] for line in ours] == pytest.approx(norms, rel=1e-3)
    assert theirs[0] - theirs[-1] >= 0.5, "the model learns"
    if shape == "qwen3":  # decayed like a matrix, they would be some 3e-3 lower
        reader = TorchDistReader(tmp_path / "run" / "checkpoints" / f"step_{STEPS:08d}")
        for ours_of, theirs_of in (("q_layernorm", "q_norm"), ("k_layernorm", "k_norm")):
            expected = torch.stack([getattr(layer.self_attn, theirs_of).weight for layer in model.model.layers])
            found = reader.read(f"decoder.layers.self_attention.{ours_of}.weight")
            assert (found - expected).abs().max() <= 3e-4
    assert max(norms) > CLIP, "clipping was active"
    assert [line["lr"] for line in ours] == pytest.approx([learning_rate(step) for step in range(1, STEPS + 1)])
