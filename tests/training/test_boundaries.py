"""Documents packed into one sequence know nothing of each other, in every layout; and the assertion would notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.data.samples import Sample
from megatron_native.training.batches import make_micro_batch
from tests.distributed import run_jobs
from tests.tiny_models import VOCAB_SIZE, make_tiny_model
from tests.training.conftest import run_config

TP, PP, VPP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "PP2": (2, {PP: 2}),
    "PP2 with 2 virtual stages": (2, {PP: 2, VPP: 2}),
    "TP2 with sequence parallel": (2, {TP: 2, "sequence_parallel": True}),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, token_dataset: Path) -> dict[str, Any]:
    """What `boundary_worker` found in every layout."""
    folder = tmp_path_factory.mktemp("boundaries")
    import_hf(make_tiny_model(folder / "hf", "llama3.1"), folder / "imported", reference_logits=False)
    jobs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for name, (world_size, parallel) in LAYOUTS.items():
        config = run_config(folder / name, folder / "imported", token_dataset, parallel=parallel)
        jobs[world_size].append({
            "config": config, "vocab_size": VOCAB_SIZE, "output": str(folder / f"{name}.json"),
            "multiple": 2 if parallel.get("sequence_parallel") else 1,
        })  # fmt: skip
    for world_size, group in jobs.items():
        run_jobs(folder, world_size, group, module="tests.training.boundary_worker")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_losses_are_those_of_each_document_alone(found: dict[str, Any], layout: str) -> None:
    packed, alone = found[layout]["packed"], found[layout]["alone"]
    assert len(packed) == len(alone) == 96
    assert np.mean(packed) == pytest.approx(np.mean(alone), abs=1e-6, rel=0)
    assert packed == pytest.approx(alone, rel=1e-6, abs=0)
    assert np.std(packed) > 0.01


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_assertion_holds_with_boundaries_and_fails_without(found: dict[str, Any], layout: str) -> None:
    assert found[layout]["kept"] == 0
    assert "document boundaries are not kept: changing document 0" in found[layout]["dropped"]


def test_a_packed_micro_batch_by_hand() -> None:
    def sample(start: int, lengths: list[int]) -> Sample:
        ids = np.arange(start, start + 4)
        return Sample(ids, ids + 1, np.ones(4, np.float32), np.array(lengths, np.int32))

    batch = make_micro_batch([sample(0, [1, 3]), sample(10, [4])], torch.device("cpu"), document_boundaries=True)
    assert batch.tokens.tolist() == [[0, 1, 2, 3, 10, 11, 12, 13]]
    assert batch.position_ids.tolist() == [[0, 0, 1, 2, 0, 1, 2, 3]]
    assert batch.packed.cu_seqlens_q.tolist() == [0, 1, 4, 8]
    assert batch.packed.cu_seqlens_q.dtype == torch.int32
    assert batch.packed.qkv_format == "thd"
