"""megatron-core itself loads what import-hf writes, at tensor and pipeline parallel layouts, and export-hf reads what
it saves from there: the tensors come back bit for bit."""

import pytest

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.export_hf import export_hf
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.torch_dist import TorchDistReader
from tests.checkpoint.test_round_trip import assert_same_bits, tensors_of
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model


@pytest.mark.parametrize(
    ("shape", "tensor_parallel", "pipeline_parallel"), [("qwen1.5", 2, 2), ("tied-llama", 1, 2), ("qwen3", 2, 1)]
)
def test_megatron_core_loads_saves_and_the_export_is_the_import(shape, tensor_parallel, pipeline_parallel, tmp_path):
    # 381 tokens: megatron-core pads them to 384, and the padding must not come back.
    source = make_tiny_model(tmp_path / "hf", shape, vocab_size=381, tokenizer=False)
    import_hf(source, tmp_path / "checkpoint", reference_logits=False)
    saved = tmp_path / "saved"
    saved.mkdir()
    job = {
        "source": str(tmp_path / "checkpoint"), "target": str(saved), "hf": str(source),
        "tp": tensor_parallel, "pp": pipeline_parallel,
    }  # fmt: skip
    run_jobs(tmp_path, tensor_parallel * pipeline_parallel, [job], module="tests.checkpoint.megatron_process")

    imported, resaved = TorchDistReader(tmp_path / "checkpoint"), TorchDistReader(saved)
    assert imported.tensors.keys() == resaved.tensors.keys()
    padded = {"embedding.word_embeddings.weight": 384, "output_layer.weight": 384}
    for key, info in imported.tensors.items():
        assert resaved.tensors[key].shape == (padded.get(key, info.shape[0]), *info.shape[1:])

    layout.copy_run_files(tmp_path / "checkpoint", saved)
    layout.write_checksums(saved)
    export_hf(saved, tmp_path / "export")
    assert_same_bits(tensors_of(source), tensors_of(tmp_path / "export"))
