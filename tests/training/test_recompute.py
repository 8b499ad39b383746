"""Activation recomputation trades time for memory and changes nothing else."""

from __future__ import annotations

from pathlib import Path

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.training.line_file import read_json_lines
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config


def test_recomputed_activations_give_the_same_losses_bit_for_bit(tmp_path: Path, token_dataset: Path) -> None:
    import_hf(make_tiny_model(tmp_path / "hf", "llama3.1"), tmp_path / "imported", reference_logits=False)
    ways = ("none", "selective", "full")
    jobs = [
        {"train": run_config(
            tmp_path / way, tmp_path / "imported", token_dataset, training={"steps": 4, "recompute": way},
            optimizer={"warmup_steps": 1}, checkpointing={"save_optimizer": False},
        )}
        for way in ways
    ]  # fmt: skip
    run_jobs(tmp_path, 1, jobs)
    losses = [
        [record["loss"] for record in read_json_lines(tmp_path / way / "metrics.jsonl") if "loss" in record] for way in ways
    ]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1] == losses[2]
