"""A checkpoint trained at TP2 × PP2 exports to the same bytes as the same one resharded to one process."""

from __future__ import annotations

from pathlib import Path

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.export_hf import export_hf
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.torch_dist import TorchDistReader
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config, write_token_dataset


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
    layout.write_checksums(resharded)
    key = "output_layer.weight"
    assert TorchDistReader(trained).tensors[key].shape[0] == 382
    assert TorchDistReader(resharded).tensors[key].shape[0] == 384

    export_hf(trained, tmp_path / "one")
    export_hf(resharded, tmp_path / "other")
    of_the_run = {"manifest.json", "README.md", "lineage.json"}  # these say which checkpoint it was, and what it learned from
    names = sorted(path.name for path in (tmp_path / "one").iterdir() if path.name not in of_the_run)
    assert "model.safetensors" in names and "tokenizer.json" in names and "config.json" in names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name
    assert (tmp_path / "one" / "model.safetensors").read_bytes() != (source / "model.safetensors").read_bytes()
