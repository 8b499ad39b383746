"""Import, delete the source, export: the same names and the same bits; and everything else that should travel."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.export_hf import export_hf
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.torch_dist import TorchDistReader, TorchDistWriter
from megatron_native.checkpoint.verify_hf import verify_hf
from megatron_native.errors import UserError
from tests.real_models import smollm2
from tests.tiny_models import SHAPES, make_tiny_model


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_same_bits(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (after[name].dtype, after[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("shape", SHAPES)
def test_import_delete_the_source_export_gives_identical_tensors_and_names(shape, tmp_path):
    source = make_tiny_model(tmp_path / "hf", shape)
    before = tensors_of(source)
    import_hf(source, tmp_path / "checkpoint")
    shutil.rmtree(source)
    export_hf(tmp_path / "checkpoint", tmp_path / "export")
    assert_same_bits(before, tensors_of(tmp_path / "export"))
    assert verify_hf(tmp_path / "checkpoint", tmp_path / "export").passed


def test_smollm2_comes_back_bit_for_bit_and_still_knows_paris(tmp_path):
    source = smollm2()
    import_hf(source, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "export", max_shard_bytes=100_000_000)
    assert_same_bits(tensors_of(source), tensors_of(tmp_path / "export"))
    found = verify_hf(tmp_path / "checkpoint", tmp_path / "export")
    assert found.passed and found.unchanged_since_import and found.logits.max_abs_difference <= 3e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model(**prompt).logits[0, -1].argmax()) == " Paris"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_and_half_precision_round_trip(dtype, tmp_path):
    source = make_tiny_model(tmp_path / "hf", "llama3.1", dtype=dtype, max_shard_size="300KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    import_hf(source, tmp_path / "checkpoint", reference_logits=False)
    result = export_hf(tmp_path / "checkpoint", tmp_path / "export", max_shard_bytes=200_000)
    assert result.files == len(list((tmp_path / "export").glob("*.safetensors"))) > 2
    assert_same_bits(tensors_of(source), tensors_of(tmp_path / "export"))
    index = json.loads((tmp_path / "export/model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "export" / file, "pt") as shard:
            assert name in shard.keys()  # noqa: SIM118 (a safe_open handle is no mapping)
    assert index["metadata"]["total_size"] == result.bytes
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")


def test_norms_in_another_dtype_keep_it(tmp_path):
    source = make_tiny_model(tmp_path / "hf", "llama2", dtype=torch.bfloat16)
    mixed = {name: t.float() if "norm" in name else t for name, t in tensors_of(source).items()}
    save_file(mixed, source / "model.safetensors", {"format": "pt"})
    import_hf(source, tmp_path / "checkpoint", reference_logits=False)
    export_hf(tmp_path / "checkpoint", tmp_path / "export")
    assert_same_bits(mixed, tensors_of(tmp_path / "export"))


def test_a_tied_model_that_carries_its_output_layer_keeps_carrying_it(tmp_path):
    source = make_tiny_model(tmp_path / "hf", "tied-llama")
    tensors = tensors_of(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    import_hf(source, tmp_path / "checkpoint", reference_logits=False)
    assert "output_layer.weight" not in TorchDistReader(tmp_path / "checkpoint").tensors
    export_hf(tmp_path / "checkpoint", tmp_path / "export")
    assert_same_bits(tensors, tensors_of(tmp_path / "export"))


def test_derived_rotary_frequencies_are_left_out_and_counted(tmp_path):
    source = make_tiny_model(tmp_path / "hf", "llama2")
    tensors = tensors_of(source)
    extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(4)}
    save_file({**tensors, **extra}, source / "model.safetensors", {"format": "pt"})
    import_hf(source, tmp_path / "checkpoint", reference_logits=False)
    counts = json.loads((tmp_path / "checkpoint" / layout.MANIFEST_FILE).read_text())["counts"]
    assert counts["dropped"] == {"derived rotary frequencies": 4} and counts["read"] == counts["kept"] + 4
    export_hf(tmp_path / "checkpoint", tmp_path / "export")
    assert_same_bits(tensors, tensors_of(tmp_path / "export"))


def test_tokenizer_template_and_configuration_travel(tmp_path):
    source = make_tiny_model(tmp_path / "hf", "llama3.1")
    carried = {path.name: path.read_bytes() for path in source.iterdir() if path.suffix != ".safetensors"}
    import_hf(source, tmp_path / "checkpoint")
    shutil.rmtree(source)
    export_hf(tmp_path / "checkpoint", tmp_path / "export")
    for name, content in carried.items():
        if name != "config.json":
            assert (tmp_path / "export" / name).read_bytes() == content, name
    assert (tmp_path / "checkpoint/run/hf/config.json").read_bytes() == carried["config.json"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    assert "<|im_start|>user\nسلام<|im_end|>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "سلام"}], tokenize=False
    )
    assert tokenizer.decode(tokenizer("اللغة العربية")["input_ids"]) == "اللغة العربية"


def test_export_to_another_dtype_rounds_as_torch_does_and_says_so_in_the_config(tmp_path):
    source = make_tiny_model(tmp_path / "hf", "qwen1.5")
    import_hf(source, tmp_path / "checkpoint", reference_logits=False)
    export_hf(tmp_path / "checkpoint", tmp_path / "export", dtype="bfloat16")
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in tensors_of(source).items()}
    assert_same_bits(expected, tensors_of(tmp_path / "export"))
    config = json.loads((tmp_path / "export/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    found = verify_hf(tmp_path / "checkpoint", tmp_path / "export")
    assert found.passed and found.converted == {"F32 → BF16": 51} and not found.unchanged_since_import


def trained_copy(source: Path, target: Path, extra: dict[str, torch.Tensor] | None = None, padded_rows: int = 0) -> None:
    """A checkpoint as training leaves it: FP32, vocabulary padded, other chunks, with optimizer tensors."""
    target.mkdir()
    reader, writer = TorchDistReader(source), TorchDistWriter(target)
    for key, info in reader.tensors.items():
        tensor = reader.read(key).float()
        if key in ("embedding.word_embeddings.weight", "output_layer.weight"):
            tensor = torch.cat([tensor, torch.full((padded_rows, tensor.shape[1]), 7.0)])
        half = info.shape[-1] // 2
        for start in (0, half):
            offset = (0,) * (len(info.shape) - 1) + (start,)
            writer.write(key, tensor.shape, offset, tensor[..., start : start + half])
    for key, tensor in (extra or {}).items():
        writer.write(key, tensor.shape, (0,) * tensor.ndim, tensor)
    writer.finish()
    layout.copy_run_files(source, target)
    layout.write_checksums(target)


def test_a_trained_checkpoint_exports_without_padding_in_the_dtype_it_was_imported_in(tmp_path):
    source = make_tiny_model(tmp_path / "hf", "llama3.1", dtype=torch.bfloat16)
    import_hf(source, tmp_path / "checkpoint", reference_logits=False)
    optimizer = {"optimizer.state.exp_avg.decoder.final_layernorm.weight": torch.ones(128)}
    trained_copy(tmp_path / "checkpoint", tmp_path / "trained", optimizer, padded_rows=16)
    export_hf(tmp_path / "trained", tmp_path / "export")
    assert_same_bits(tensors_of(source), tensors_of(tmp_path / "export"))


def test_a_checkpoint_with_weights_the_model_does_not_have_is_refused(tmp_path):
    import_hf(make_tiny_model(tmp_path / "hf", "llama2"), tmp_path / "checkpoint", reference_logits=False)
    adapter = {"decoder.layers.mlp.router.weight": torch.ones(4, 2, 2)}
    trained_copy(tmp_path / "checkpoint", tmp_path / "trained", adapter)
    with pytest.raises(UserError, match=r"decoder\.layers\.mlp\.router\.weight"):
        export_hf(tmp_path / "trained", tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_the_second_run_skips_and_a_run_with_other_settings_is_refused(tmp_path):
    source = make_tiny_model(tmp_path / "hf", "llama2")
    assert not import_hf(source, tmp_path / "checkpoint", reference_logits=False).skipped
    assert import_hf(source, tmp_path / "checkpoint", reference_logits=False).skipped
    with pytest.raises(UserError, match="reference_logits: False there, True asked for"):
        import_hf(source, tmp_path / "checkpoint")
    assert not export_hf(tmp_path / "checkpoint", tmp_path / "export").skipped
    assert export_hf(tmp_path / "checkpoint", tmp_path / "export").skipped
    with pytest.raises(UserError, match="dtype: None there, 'float16' asked for"):
        export_hf(tmp_path / "checkpoint", tmp_path / "export", dtype="float16")
