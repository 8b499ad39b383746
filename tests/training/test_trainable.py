"""Phases that train embedding and output layer alone: all else keeps its bits, in any layout, and a run resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.torch_dist import TorchDistReader
from megatron_native.checkpoint.vocabulary import ExtensionSettings
from megatron_native.training.line_file import read_json_lines
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config, write_token_dataset

TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
ROWS = {"embedding.word_embeddings.weight", "output_layer.weight"}
PHASES = [{"name": "embeddings", "steps": 3, "trainable": "embeddings"}, {"name": "everything", "steps": 2}]
LAYOUTS: dict[str, tuple[int, dict[str, Any], str]] = {
    "one": (1, {}, "fp32"), "bf16": (1, {}, "bf16"), "TP2": (2, {TP: 2}, "fp32"), "PP2": (2, {PP: 2}, "fp32"),
    "DP2": (2, {}, "fp32"),
}  # fmt: skip


@pytest.fixture(scope="module", params=["llama3.1", "tied-llama"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with an extended vocabulary, trained in two phases in every layout; `resumed` stops within the first and at
    the border."""
    folder = tmp_path_factory.mktemp("trainable")
    make_tiny_model(folder / "hf", request.param)
    (folder / "tokens.txt").write_text(" على\nلغة\n المدرسة\n", encoding="utf-8")
    import_hf(folder / "hf", folder / "imported", reference_logits=False,
              add_tokens=ExtensionSettings(folder / "tokens.txt"))  # fmt: skip
    write_token_dataset(folder / "data", seed=5)
    jobs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}

    def job(name: str, world: int, parallel: dict[str, Any], precision: str, stop: int | None = None) -> None:
        config = run_config(
            folder / name, folder / "imported", folder / "data", parallel=parallel, phases=PHASES,
            training={"steps": None, "precision": precision, "stop_after": stop},
            optimizer={"schedule": "constant", "warmup_steps": 0, "adam_eps": 1e-5},
            checkpointing={"save_interval": 1},
        )  # fmt: skip
        jobs[world].append({"train": config})

    for name, (world, parallel, precision) in LAYOUTS.items():
        job(name, world, parallel, precision)
    for stop in (2, 3, None):
        job("resumed", 1, {}, "fp32", stop)
    for world, listed in jobs.items():
        run_jobs(folder, world, listed)
    return folder


def reader(folder: Path, name: str, step: int) -> TorchDistReader:
    return TorchDistReader(folder / name / "checkpoints" / f"step_{step:08d}")


@pytest.mark.parametrize("name", [*LAYOUTS, "resumed"])
def test_the_first_phase_changes_embedding_and_output_layer_alone(runs: Path, name: str) -> None:
    before = TorchDistReader(runs / "imported")
    after, last = reader(runs, name, 3), reader(runs, name, 5)
    rows = before.tensors["embedding.word_embeddings.weight"].shape[0]
    changed, later = set(), set()
    for key in before.tensors:
        old, new, final = (one.read(key)[:rows] if key in ROWS else one.read(key) for one in (before, after, last))
        old = old.to(new.dtype)
        changed |= set() if torch.equal(old, new) else {key}
        later |= set() if torch.equal(new, final) else {key}
    assert changed == ROWS & set(before.tensors)
    assert later == set(before.tensors)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_what_does_not_learn_has_no_moments_and_the_same_masters(runs: Path, name: str) -> None:
    after = reader(runs, name, 3)
    learned, masters = set(), 0
    for key in after.tensors:
        kind, _, weight = key.removeprefix("optimizer.state.").partition(".")
        if kind in ("exp_avg", "exp_avg_sq") and bool(after.read(key).any()):
            learned.add(weight)
        if kind == "param" and weight not in ROWS:
            # masters begin as the model's weights, which a run in BF16 has rounded
            began = TorchDistReader(runs / "imported").read(weight).to(after.tensors[weight].dtype).float()
            assert torch.equal(after.read(key), began), key
            masters += 1
    assert learned == ROWS & set(TorchDistReader(runs / "imported").tensors)
    assert masters > 5


def records(run: Path) -> list[dict[str, Any]]:
    return [record for record in read_json_lines(run / "metrics.jsonl") if "loss" in record]


@pytest.mark.parametrize("name", ["TP2", "PP2", "DP2", "resumed"])
def test_layouts_and_a_resume_give_the_same_run(runs: Path, name: str) -> None:
    reference, found = records(runs / "one"), records(runs / name)
    assert [record["phase"] for record in found] == ["embeddings"] * 3 + ["everything"] * 2
    for field in ("loss", "grad_norm"):
        assert [r[field] for r in found] == pytest.approx([r[field] for r in reference], rel=1e-4), field
    if name == "resumed":
        assert [r["loss"] for r in found] == [r["loss"] for r in reference]
        for key in reader(runs, "one", 5).tensors:
            assert torch.equal(reader(runs, "one", 5).read(key), reader(runs, name, 5).read(key)), key
