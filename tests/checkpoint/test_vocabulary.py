"""Vocabulary extension through import and export: new rows by hand, old rows bit for bit, the record, verify-hf."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.export_hf import export_hf
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.safetensors_files import HfWeights, tensor_digest
from megatron_native.checkpoint.verify_hf import verify_hf
from megatron_native.checkpoint.vocabulary import (
    VOCABULARY_FILE,
    ExtensionSettings,
    extended_folder,
    read_added_vocabulary,
)
from megatron_native.cli import main
from megatron_native.errors import UserError
from tests.tiny_models import VOCAB_SIZE, make_tiny_model, make_tiny_tokenizer

ROWS = ("model.embed_tokens.weight", "lm_head.weight")
WORDS = ["لغة", "في", " على", " المدرسة", " new"]


def write_list(path: Path, words: list[str] = WORDS) -> Path:
    path.write_text("".join(word + "\n" for word in words), encoding="utf-8")
    return path


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    weights = HfWeights(folder)
    return {name: weights.read(name) for name in weights.specs}


@pytest.fixture(scope="module", params=["llama3.1", "tied-llama"])
def extended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hf` in BF16 and several shards, `imported` with new tokens, `exported` from that."""
    folder = tmp_path_factory.mktemp("extended")
    make_tiny_model(folder / "hf", request.param, dtype=torch.bfloat16, max_shard_size="300KB")
    import_hf(folder / "hf", folder / "imported", add_tokens=ExtensionSettings(write_list(folder / "tokens.txt")))
    export_hf(folder / "imported", folder / "exported")
    return folder


def record(folder: Path) -> dict:
    return json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))


def test_new_rows_are_means_and_old_rows_keep_their_bits(extended: Path) -> None:
    old, new = weights_of(extended / "hf"), weights_of(extended / "exported")
    assert old.keys() == new.keys()
    tokenizer = AutoTokenizer.from_pretrained(extended / "hf")
    added = record(extended / "imported")["tokens"]
    assert len(added) >= 4
    for name, tensor in new.items():
        if name not in ROWS:
            assert torch.equal(tensor, old[name]), name
            continue
        assert tensor.shape[0] == max(VOCAB_SIZE, added[-1]["id"] + 1)
        unused = added[0]["id"]
        assert torch.equal(tensor[:unused], old[name][:unused])
        for token in added:
            parts = token["sub_tokens"]
            if not token["part"]:
                assert parts == tokenizer(token["token"], add_special_tokens=False)["input_ids"]
            mean = torch.stack([old[name][index].double() for index in parts]).mean(0)
            # the sum in FP32 and BF16's rounding once: half a unit in the last of its 8 bits, relative to the value
            assert torch.allclose(tensor[token["id"]].double(), mean, rtol=2**-8, atol=1e-6)
            assert tensor_digest(tensor[token["id"]]) == token["rows"][name]


def test_the_exported_folder_is_one_model_with_its_tokenizer(extended: Path) -> None:
    config = json.loads((extended / "exported" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(extended / "exported")
    added = record(extended / "imported")["tokens"]
    assert config["vocab_size"] == added[-1]["id"] + 1 == len(tokenizer)
    for token in added:
        if not token["part"]:
            assert tokenizer(token["token"], add_special_tokens=False)["input_ids"] == [token["id"]]
    model = AutoModelForCausalLM.from_pretrained(extended / "exported", dtype=torch.float32)
    assert (
        model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == len(tokenizer)
    )


def test_the_round_trip_is_verified_and_the_base_model_too(extended: Path) -> None:
    whole = verify_hf(extended / "imported", extended / "exported")
    assert whole.passed and whole.unchanged_since_import and whole.logits is not None
    against_base = verify_hf(extended / "imported", extended / "hf")
    assert against_base.passed, against_base
    added = record(extended / "imported")["tokens"]
    assert against_base.new_rows == whole.new_rows == f"{len(added)} rows, ids {added[0]['id']} to {added[-1]['id']}"


def test_a_changed_old_row_is_found_against_the_base_model(extended: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(extended / "hf", tmp_path / "hf")
    path = next(p for p in sorted((tmp_path / "hf").glob("*.safetensors")) if ROWS[0] in load_file(p))
    tensors = load_file(path)
    tensors[ROWS[0]][5, 3] += 1
    from safetensors.torch import save_file

    save_file(tensors, path, {"format": "pt"})
    found = verify_hf(extended / "imported", tmp_path / "hf")
    assert found.different == [ROWS[0]] and not found.passed


def test_no_folder_is_left_and_the_same_import_again_does_nothing(extended: Path) -> None:
    assert sorted(path.name for path in extended.iterdir()) == ["exported", "hf", "imported", "tokens.txt"]
    again = import_hf(extended / "hf", extended / "imported", add_tokens=ExtensionSettings(extended / "tokens.txt"))
    assert again.skipped
    other = write_list(extended.parent / "other.txt", [" كلمة"])
    with pytest.raises(UserError, match="was made with other settings or inputs"):
        import_hf(extended / "hf", extended / "imported", add_tokens=ExtensionSettings(other))


def test_a_broken_off_import_is_taken_up_again_and_other_tokens_are_not(
    extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    settings = ExtensionSettings(extended / "tokens.txt")
    keywords = {"reference_logits": False, "max_file_bytes": 60_000}

    def break_off() -> dict[str, int]:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("megatron_native.checkpoint.import_hf.write_metadata", stop)
            import_hf(extended / "hf", tmp_path / "out", add_tokens=settings, **keywords)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial"]
        return {
            path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial/.finished").glob("*.distcp.json")
        }

    kept = break_off()
    (tmp_path / "out.extended").mkdir()  # as a kill leaves it
    (tmp_path / "out.extended" / "config.json").write_text("{")
    assert kept and break_off() == kept
    other = ExtensionSettings(extended / "tokens.txt", noise=0.5)
    import_hf(extended / "hf", tmp_path / "out", add_tokens=other, **keywords)
    import_hf(extended / "hf", tmp_path / "anew", add_tokens=other, **keywords)
    assert record(tmp_path / "out") == record(tmp_path / "anew")
    for path in (tmp_path / "anew").glob("*.distcp"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_two_imports_do_not_take_each_others_extended_folder(extended: Path, tmp_path: Path) -> None:
    settings = ExtensionSettings(extended / "tokens.txt")
    with extended_folder(extended / "hf", settings, tmp_path / "out") as folder:
        with pytest.raises(UserError, match="another import-hf is using"):
            import_hf(extended / "hf", tmp_path / "out", add_tokens=settings)
        assert (folder / "vocabulary.json").is_file()
    assert not folder.exists()


def test_unused_rows_are_taken_before_new_ones_are_made(tmp_path: Path) -> None:
    """Qwen1.5's embedding has more rows than its tokenizer has tokens."""
    make_tiny_model(tmp_path / "hf", "qwen1.5", vocab_size=400, tokenizer=False)
    make_tiny_tokenizer(tmp_path / "hf", 380)
    tokens = len(AutoTokenizer.from_pretrained(tmp_path / "hf"))
    assert tokens == 380
    import_hf(tmp_path / "hf", tmp_path / "imported", reference_logits=False,
              add_tokens=ExtensionSettings(write_list(tmp_path / "tokens.txt", [" على"])))  # fmt: skip
    found = record(tmp_path / "imported")
    assert found["first_id"] == tokens and found["vocab_size"] == 400
    assert verify_hf(tmp_path / "imported", tmp_path / "hf", logits=False).passed
    export_hf(tmp_path / "imported", tmp_path / "exported")
    rows = weights_of(tmp_path / "exported")[ROWS[0]]
    assert verify_hf(tmp_path / "imported", tmp_path / "exported", logits=False).unchanged_since_import
    assert not torch.equal(rows[tokens], weights_of(tmp_path / "hf")[ROWS[0]][tokens])


def test_noise_is_of_the_asked_size_and_repeatable(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "hf", "llama2", tokenizer=True)
    tokens = write_list(tmp_path / "tokens.txt")
    rows = {}
    for name, noise, seed in (("mean", 0.0, 0), ("noisy", 0.5, 1), ("again", 0.5, 1), ("other", 0.5, 2)):
        import_hf(tmp_path / "hf", tmp_path / name, reference_logits=False,
                  add_tokens=ExtensionSettings(tokens, noise, seed))  # fmt: skip
        export_hf(tmp_path / name, tmp_path / f"{name}-hf")
        first = record(tmp_path / name)["first_id"]
        rows[name] = weights_of(tmp_path / f"{name}-hf")[ROWS[0]][first:]
    assert torch.equal(rows["noisy"], rows["again"])
    assert not torch.equal(rows["noisy"], rows["other"])
    ratio = (rows["noisy"] - rows["mean"]).std(dim=1) / rows["mean"].std(dim=1)
    assert torch.allclose(ratio, torch.tensor(0.5), rtol=0.3)  # 128 draws a row: a standard error of 6 %


def test_the_command_reports_fertility(tmp_path: Path, capsys: pytest.CaptureFixture[str], extended: Path) -> None:
    sample = tmp_path / "sample.txt"
    sample.write_text("على المدرسة على المدرسة", encoding="utf-8")
    command = [
        "import-hf", "--hf", str(extended / "hf"), "--output", str(tmp_path / "out"), "--no-reference-logits",
        "--add-tokens", str(extended / "tokens.txt"), "--fertility-sample", str(sample),
    ]  # fmt: skip
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["vocabulary"]["fertility"]
    old, new = (AutoTokenizer.from_pretrained(path) for path in (extended / "hf", extended / "exported"))
    text = sample.read_text(encoding="utf-8")
    assert (found["words"], found["tokens_before"], found["tokens_after"]) == (
        4, len(old(text, add_special_tokens=False)["input_ids"]), len(new(text, add_special_tokens=False)["input_ids"]),
    )  # fmt: skip
    assert found["tokens_a_word_after"] == found["tokens_after"] / 4 < found["tokens_a_word_before"]
    assert main(command) == 0


@pytest.mark.parametrize("content", ['{"<s>": 1, "base_folder": "another"}', "[1, 2]", "<s> 1\n"])
def test_a_tokenizers_own_vocabulary_json_is_no_record_of_new_tokens(tmp_path: Path, content: str) -> None:
    make_tiny_model(tmp_path / "hf", "llama2")
    (tmp_path / "hf" / "vocabulary.json").write_text(content, encoding="utf-8")
    result = import_hf(tmp_path / "hf", tmp_path / "imported", reference_logits=False)
    assert result.not_carried == ("vocabulary.json",)
    assert not (tmp_path / "imported" / VOCABULARY_FILE).exists()
    assert read_added_vocabulary(tmp_path / "imported") is None
    assert json.loads((tmp_path / "imported" / layout.BASE_MODEL_FILE).read_text())["name"] == "hf"
    assert verify_hf(tmp_path / "imported", tmp_path / "hf", logits=False).passed
    added = ExtensionSettings(write_list(tmp_path / "tokens.txt"))
    import_hf(tmp_path / "hf", tmp_path / "extended", reference_logits=False, add_tokens=added)
    assert record(tmp_path / "extended")["base_folder"] == "hf"


def test_what_can_not_be_extended_is_refused(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "hf", "llama2", tokenizer=False)
    tokens = write_list(tmp_path / "tokens.txt")
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        import_hf(tmp_path / "hf", tmp_path / "out", add_tokens=ExtensionSettings(tokens))
    with pytest.raises(UserError, match="can't be read"):
        import_hf(tmp_path / "hf", tmp_path / "out", add_tokens=ExtensionSettings(tmp_path / "none.txt"))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.extended"))
    assert not layout.partial_path(tmp_path / "out").exists()
