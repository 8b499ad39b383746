"""A run that stops and goes on is the run that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.torch_dist import TorchDistReader
from megatron_native.training.line_file import read_json_lines
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config, write_token_dataset

TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_json_lines(run / "metrics.jsonl") if "loss" in record]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    reader = TorchDistReader(run / "checkpoints" / "step_00000010")
    return {key: reader.read(key) for key in reader.tensors}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: undisturbed at PP2; stopped after step 5 at PP2 and resumed at PP2, at TP2, on one process; from stages of
    one and three layers to one process, and from one process to stages of three layers and one."""
    folder = tmp_path_factory.mktemp("resume")
    prefix = write_token_dataset(folder / "tokens_text_document", seed=3)
    import_hf(make_tiny_model(folder / "hf", "tied-llama"), folder / "imported")

    def job(name: str, stop: int, precision: str = "fp32", **parallel: Any) -> dict[str, Any]:
        config = run_config(
            folder / name, folder / "imported", prefix, parallel=parallel,
            training={"stop_after": stop, "precision": precision}, optimizer={"adam_eps": 1e-5},
        )  # fmt: skip
        return {"train": config}

    two = [job("undisturbed", 10, **{PP: 2}), job("undisturbed bf16", 10, "bf16", **{PP: 2})]
    for name, layout in (("same", {PP: 2}), ("to TP2", {TP: 2}), ("to one", {})):
        two.append(job(name, 5, **{PP: 2}))
        if layout:
            two.append(job(name, 10, **layout))
    two += [job("same bf16", 5, "bf16", **{PP: 2}), job("same bf16", 10, "bf16", **{PP: 2})]
    two.append(job("uneven to one", 5, **{PP: 2, "pipeline_layout": "Et|t*3,L"}))
    run_jobs(folder, 2, two)
    run_jobs(folder, 1, [job("to one", 10), job("uneven to one", 10), job("one to uneven", 5)])
    run_jobs(folder, 2, [job("one to uneven", 10, **{PP: 2, "num_layers_in_last_pipeline_stage": 1})])
    return folder


@pytest.mark.parametrize("precision", ["", " bf16"])
def test_same_layout_resumes_bit_for_bit(folder: Path, precision: str) -> None:
    undisturbed, resumed = folder / f"undisturbed{precision}", folder / f"same{precision}"
    assert losses(resumed) == losses(undisturbed)
    ours, theirs = tensors(resumed), tensors(undisturbed)
    assert ours.keys() == theirs.keys()
    assert any(key.startswith("optimizer.state.exp_avg_sq.") for key in ours)
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


@pytest.mark.parametrize("name", ["to TP2", "to one", "uneven to one", "one to uneven"])
def test_other_layout_resumes_to_rounding(folder: Path, name: str) -> None:
    assert losses(folder / name) == pytest.approx(losses(folder / "undisturbed"), abs=1e-5)
    ours, theirs = tensors(folder / name), tensors(folder / "undisturbed")
    for key, tensor in theirs.items():
        assert (ours[key] - tensor).abs().max() <= 1e-5, key
