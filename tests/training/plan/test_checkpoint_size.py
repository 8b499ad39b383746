"""The planned size of a checkpoint is that of one that the trainer writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.config.run import RunConfig
from megatron_native.models.families import read_hf_config, to_model_config
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.plan.checkpoint_size import (
    CheckpointSize,
    checkpoint_size,
    speed_of_saves,
)
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config

TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
WIDE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "one process": (1, "llama3.1", {"training": {"precision": "bf16"}}),
    "one process, FP32": (1, "llama3.1", {}),
    "one process, FP32, whole optimizer": (1, "llama3.1", {"parallel": {"use_distributed_optimizer": False}}),
    "one process, weights alone": (1, "llama3.1", {"checkpointing": {"save_optimizer": False}}),
    "TP2, biases": (2, "qwen1.5", {"training": {"precision": "bf16"}, "parallel": {TP: 2}}),
    "PP2, tied embeddings": (2, "tied-llama", {"training": {"precision": "bf16"}, "parallel": {PP: 2}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, token_dataset: Path) -> Path:
    """Runs of one step, each saved at its end."""
    folder = tmp_path_factory.mktemp("sizes")
    for shape in {shape for _, shape, _ in CASES.values()}:
        hf = make_tiny_model(folder / f"{shape}-hf", shape, **WIDE)
        import_hf(hf, folder / shape, reference_logits=False)
    for size in (1, 2):
        jobs = [
            {"train": _config(folder, name, token_dataset)}
            for name, (world_size, _, _) in CASES.items()
            if world_size == size
        ]
        run_jobs(folder, size, jobs)
    return folder


def _config(folder: Path, name: str, tokens: Path) -> dict[str, Any]:
    _, shape, sections = CASES[name]
    sections = {**sections, "training": {"steps": 1, **sections.get("training", {})}, "optimizer": {"warmup_steps": 0}}
    return run_config(folder / name, folder / shape, tokens, **sections)


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_has_the_planned_size(name: str, runs: Path, token_dataset: Path) -> None:
    real = next(
        record["saved"]["bytes"] for record in read_json_lines(runs / name / "metrics.jsonl") if "saved" in record
    )
    model = to_model_config(read_hf_config(runs / f"{CASES[name][1]}-hf"))
    planned = checkpoint_size(RunConfig.model_validate(_config(runs, name, token_dataset)), model)
    print(f"{name}: planned {planned.total:,} bytes, real {real:,} ({planned.total / real - 1:+.2%})")
    assert planned.total == pytest.approx(real, rel=0.01)


def test_a_checkpoint_of_llama3_70b_with_its_optimizer_is_fourteen_bytes_a_parameter() -> None:
    config = {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "rope_theta": 500000.0,
    }  # fmt: skip
    run = RunConfig.model_validate(
        run_config(Path("run"), Path("unused"), Path("unused"), training={"precision": "bf16"}, parallel={TP: 8, PP: 4})
    )
    size = checkpoint_size(run, to_model_config(config))
    assert size.parameters == 70_553_706_496  # the model card's figure, exactly
    assert (size.weights, size.optimizer) == (2 * size.parameters, 12 * size.parameters)


def test_the_time_of_a_save_comes_from_a_measured_speed(tmp_path: Path, runs: Path) -> None:
    size = CheckpointSize(parameters=1, weights=600, optimizer=300, random_states=100)
    assert size.seconds(bytes_per_second=500.0) == 2.0
    metrics = runs / "one process" / "metrics.jsonl"
    save = next(record["saved"] for record in read_json_lines(metrics) if "saved" in record)
    assert speed_of_saves(metrics) == save["bytes"] / save["seconds"]
    assert speed_of_saves(tmp_path / "metrics.jsonl") is None
