"""Every layout computes the same training: each gradient at step 1, each loss, each weight after step 10.

A checkpoint holds global tensors, so what layouts computed can be compared tensor by tensor. The first moment of Adam
after one step from zero is (1 − β₁) · gradient, which makes every reduced gradient visible, norms included.
"""

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

TP, PP, VPP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"
REDUCE, GATHER = {"overlap_grad_reduce": True}, {"overlap_grad_reduce": True, "overlap_param_gather": True}
COUNTED = {"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "TP2": (2, {TP: 2}),
    "PP2": (2, {PP: 2}),
    "PP2 with 2 virtual stages": (2, {PP: 2, VPP: 2}),
    "DP2": (2, {}),
    "DP2 without distributed optimizer": (2, {"use_distributed_optimizer": False}),
    "DP2 with two instances of the optimizer": (2, {"num_distributed_optimizer_instances": 2}),
    "TP2 with sequence parallel": (2, {TP: 2, "sequence_parallel": True}),
    "TP2 × PP2": (4, {TP: 2, PP: 2}),
    "TP2 × PP2 with sequence parallel": (4, {TP: 2, PP: 2, "sequence_parallel": True}),
    "PP2 × DP2": (4, {PP: 2}),
    "DP2 with overlapped reduction": (2, REDUCE),
    "DP2 with overlapped reduction, without distributed optimizer": (2, {**REDUCE, "use_distributed_optimizer": False}),
    "DP2 with overlapped reduction and gathering": (2, GATHER),
    "PP2 with 2 virtual stages × DP2 with overlapped reduction and gathering": (4, {PP: 2, VPP: 2, **GATHER}),
    "PP2, one layer and three": (2, {PP: 2, "num_layers_in_first_pipeline_stage": 1}),
    "PP2, three layers and one": (2, {PP: 2, "num_layers_in_last_pipeline_stage": 1}),
    "PP2 by a layout, one layer and three": (2, {PP: 2, "pipeline_layout": "Et|t*3,L"}),
    "PP2 with 2 virtual stages by a layout, the loss alone": (2, {PP: 2, VPP: 2, "pipeline_layout": "E|t*3|t|L"}),
    "PP3, embedding and loss counted as layers": (3, {PP: 3, **COUNTED}),
}
# One shape in every layout; the others where they could differ: ties between stages, biases of split projections, norms of
# split heads, whose gradients have to be summed over the tensor parallel ranks with and without sequence parallelism.
SHAPES = {
    "llama3.1": tuple(LAYOUTS),
    "tied-llama": ("one process", "PP2", "TP2 × PP2", "PP2 with 2 virtual stages by a layout, the loss alone"),
    "qwen1.5": ("one process", "TP2 with sequence parallel"),
    "qwen3": ("one process", "TP2", "TP2 × PP2 with sequence parallel"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders `<shape>/<layout>`, each with checkpoints after steps 1 and 10."""
    folder = tmp_path_factory.mktemp("agreement")
    prefix = write_token_dataset(folder / "tokens_text_document", seed=7)
    jobs: dict[int, list[dict[str, Any]]] = {1: [], 2: [], 3: [], 4: []}
    # Adam divides by the root of the second moment: an epsilon above the rounding noise keeps gradients that are zero in
    # theory (of key biases, which the softmax cancels) from becoming steps of full size.
    optimizer = {"adam_eps": 1e-5}
    for shape in SHAPES:
        hf = make_tiny_model(folder / "hf" / shape, shape)
        checkpoint = folder / "imported" / shape
        import_hf(hf, checkpoint)
        for name in SHAPES[shape]:
            world_size, parallel = LAYOUTS[name]
            for stop in (1, 10):
                config = run_config(
                    folder / shape / name, checkpoint, prefix,
                    parallel=parallel, training={"stop_after": stop}, optimizer=optimizer,
                )  # fmt: skip
                jobs[world_size].append({"train": config})
    for world_size, group in jobs.items():
        run_jobs(folder, world_size, group)
    return folder


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_json_lines(run / "metrics.jsonl") if "loss" in record]


def tensors(run: Path, step: int, start: str) -> dict[str, torch.Tensor]:
    reader = TorchDistReader(run / "checkpoints" / f"step_{step:08d}")
    return {key: reader.read(key) for key in reader.tensors if key.startswith(start)}


@pytest.mark.parametrize(("shape", "layout"), [(s, name) for s, names in SHAPES.items() for name in names[1:]])
def test_layout_agrees_with_one_process(runs: Path, shape: str, layout: str) -> None:
    reference, other = runs / shape / "one process", runs / shape / layout

    gradients, other_gradients = (tensors(run, 1, "optimizer.state.exp_avg.") for run in (reference, other))
    assert gradients.keys() == other_gradients.keys()
    assert any("layer_norm" in key for key in gradients), "norm gradients are compared too"
    for key, gradient in gradients.items():
        assert gradient.abs().max() > 0, key
        scale = gradient.abs().max()
        assert (gradient - other_gradients[key]).abs().max() <= 1e-4 * scale, key

    assert losses(other) == pytest.approx(losses(reference), abs=1e-5)
    assert losses(reference)[0] - losses(reference)[-1] > 0.5, "the run learns, so weights have moved"

    weights, other_weights = (
        {**tensors(run, 10, "decoder."), **tensors(run, 10, "embedding."), **tensors(run, 10, "output_layer.")}
        for run in (reference, other)
    )
    assert weights.keys() == other_weights.keys()
    for key, weight in weights.items():
        assert (weight - other_weights[key]).abs().max() <= 1e-5, key
