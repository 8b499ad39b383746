"""A checkpoint trained at TP2 × PP2 exports to the same bytes as the same one resharded to one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.export_hf import export_hf
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.torch_dist import TorchDistReader
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config, write_token_dataset


def manifest_of(export: Path) -> dict[str, Any]:
    """An export's manifest without its time, and without which checkpoint it was."""
    manifest = json.loads((export / "manifest.json").read_text(encoding="utf-8"))
    assert [entry["path"] for entry in manifest["inputs"]] == [layout.CHECKSUMS_FILE]
    return {key: value for key, value in manifest.items() if key not in ("created", "inputs")}


def test_exports_of_both_are_identical(tmp_path: Path) -> None:
    # 381 tokens: tensor parallelism pads them to 382, and bare megatron-core in test_megatron_loads' way to 384.
    source = make_tiny_model(tmp_path / "hf", "llama2", vocab_size=381)
    import_hf(source, tmp_path / "imported", reference_logits=False)
    prefix = write_token_dataset(tmp_path / "tokens_text_document", seed=2, vocab_size=381)
    run = run_config(
        tmp_path / "run", tmp_path / "imported", prefix, training={"steps": 2}, optimizer={"warmup_steps": 0},
        parallel={"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    )  # fmt: skip
    run_jobs(tmp_path, 4, [{"train": run}])
    trained = tmp_path / "run" / "checkpoints" / "step_00000002"
    resharded = tmp_path / "resharded"
    resharded.mkdir()
    job = {"source": str(trained), "target": str(resharded), "hf": str(source), "tp": 1, "pp": 1}
    run_jobs(tmp_path, 1, [job], module="tests.checkpoint.megatron_process")
    layout.copy_run_files(trained, resharded)
    shutil.copyfile(trained / layout.LINEAGE_FILE, resharded / layout.LINEAGE_FILE)
    layout.write_checksums(resharded)
    key = "output_layer.weight"
    assert TorchDistReader(trained).tensors[key].shape[0] == 382
    assert TorchDistReader(resharded).tensors[key].shape[0] == 384

    export_hf(trained, tmp_path / "one")
    export_hf(resharded, tmp_path / "other")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "other").iterdir())
    assert {"model.safetensors", "tokenizer.json", "config.json", "README.md", "lineage.json"} < set(names)
    for name in names:
        if name != "manifest.json":
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name
    assert manifest_of(tmp_path / "one") == manifest_of(tmp_path / "other")
    (run,) = json.loads((tmp_path / "one" / "lineage.json").read_text(encoding="utf-8"))["runs"]
    assert run["steps"] == 2 and "## Training: run" in (tmp_path / "one" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "one" / "model.safetensors").read_bytes() != (source / "model.safetensors").read_bytes()
