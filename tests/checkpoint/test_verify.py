"""verify-hf finds what is planted, by name, and recorded logits are those of transformers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.export_hf import export_hf
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.reference_logits import compare_logits, load_reference_logits, run_transformers
from megatron_native.checkpoint.verify_hf import verify_hf
from megatron_native.cli import main
from megatron_native.errors import UserError
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    source = make_tiny_model(folder / "hf", "qwen1.5")
    import_hf(source, folder / "checkpoint")
    return source, folder / "checkpoint"


def planted(made, tmp_path, change) -> Path:
    """A copy of the Hugging Face folder with its tensors changed."""
    folder = Path(shutil.copytree(made[0], tmp_path / "planted"))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def swap_norms(t):
    first, second = "model.layers.1.input_layernorm.weight", "model.layers.1.post_attention_layernorm.weight"
    t[first], t[second] = t[second], t[first]


def flip_a_bit(t):
    t["model.layers.2.mlp.down_proj.weight"].view(torch.int32)[5, 7] ^= 1


def permute_heads(t):
    name = "model.layers.0.self_attn.q_proj.weight"
    t[name] = t[name].reshape(8, 16, -1).flip(0).reshape(t[name].shape)


@pytest.mark.parametrize(
    ("change", "field", "named"),
    [
        (swap_norms, "different", ["model.layers.1.input_layernorm.weight", "model.layers.1.post_attention_layernorm.weight"]),
        (flip_a_bit, "different", ["model.layers.2.mlp.down_proj.weight"]),
        (permute_heads, "different", ["model.layers.0.self_attn.q_proj.weight"]),
        (lambda t: t.pop("model.layers.3.self_attn.v_proj.bias"), "missing", ["model.layers.3.self_attn.v_proj.bias"]),
        (lambda t: t.update({"extra": torch.ones(2)}), "unexpected", ["extra"]),
    ],
)  # fmt: skip
def test_a_planted_fault_is_named(change, field, named, made, tmp_path):
    found = verify_hf(made[1], planted(made, tmp_path, change))
    assert getattr(found, field) == named
    assert not found.passed and found.logits is None


def test_an_export_without_verification_is_verified_in_its_place(made, tmp_path, capsys):
    command = ["export-hf", "--checkpoint", str(made[1]), "--output", str(tmp_path / "export")]
    assert main(command) == 0
    weights = (tmp_path / "export" / "model.safetensors").stat()
    capsys.readouterr()
    for said in ("it was verified now", "nothing to do"):
        assert main([*command, "--verify"]) == 0
        assert said in capsys.readouterr().out
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    after = (tmp_path / "export" / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (weights.st_ino, weights.st_mtime_ns)
    assert main([*command[:-1], str(tmp_path / "at once"), "--verify"]) == 0
    names = sorted(path.name for path in (tmp_path / "at once").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "export").iterdir()) and "verification.json" in names
    for name in names:
        one, other = ((tmp_path / folder / name).read_bytes() for folder in ("export", "at once"))
        if name == "manifest.json":
            one, other = ({**json.loads(text), "created": None} for text in (one, other))
        assert one == other, name


def test_an_export_that_was_damaged_does_not_pass_in_its_place(made, tmp_path):
    export_hf(made[1], tmp_path / "export")
    before = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    folder = tmp_path / "export"
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    with pytest.raises(UserError, match=r"differs from it in model\..*; delete .*export and export again"):
        export_hf(made[1], folder, verify=True)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.keys() == after.keys() and {name for name in before if before[name] != after[name]} == {
        "model.safetensors"
    }


def test_a_card_that_someone_has_written_stays_when_the_export_is_verified(made, tmp_path):
    export_hf(made[1], tmp_path / "export")
    (tmp_path / "export" / "README.md").write_text("نموذجنا", encoding="utf-8")
    assert export_hf(made[1], tmp_path / "export", verify=True).verified_in_place
    assert (tmp_path / "export" / "README.md").read_text(encoding="utf-8") == "نموذجنا"
    assert json.loads((tmp_path / "export" / "verification.json").read_text())["passed"]


def test_another_epsilon_is_found_in_the_settings_and_in_the_logits(made, tmp_path):
    folder = planted(made, tmp_path, lambda t: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    found = verify_hf(made[1], folder)
    assert found.weights_equal and not found.passed
    assert found.settings == ["norm_epsilon: 1e-05 in run/model.json, 0.1 in config.json"]
    assert found.logits.max_abs_difference > 0.01 and found.logits.mean_kl > 0


def test_recorded_logits_are_those_of_transformers(made):
    texts = load_reference_logits(made[1] / layout.REFERENCE_LOGITS_FILE)
    model = transformers.AutoModelForCausalLM.from_pretrained(made[0], dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made[0])
    assert [text.name[:2] for text in texts] == ["ar", "ar", "en", "mi"]
    for text in texts:
        assert "�" not in tokenizer.decode(text.ids[: len(text.ids) - 4])
        with torch.no_grad():
            logits = model(text.ids[None]).logits[0]
        torch.testing.assert_close(text.logits, logits[-8:], atol=1e-5, rtol=0)
        torch.testing.assert_close(text.logsumexp, logits.logsumexp(-1), atol=1e-5, rtol=0)
        assert torch.equal(text.top_ids[:, 0], logits.argmax(-1))
        assert len(text.ids) > 64, "texts must be longer than the tiny models' original_max_position_embeddings"


def test_the_comparison_measures_what_it_says(made):
    texts = load_reference_logits(made[1] / layout.REFERENCE_LOGITS_FILE)
    logits = run_transformers(made[0], {text.name: text.ids for text in texts})
    same = compare_logits(texts, logits)
    assert same.max_abs_difference <= 1e-5 and same.mean_kl <= 1e-9 and same.top1_agreement == 1.0
    # Padding columns beyond the vocabulary are ignored; adding a constant moves |Δ| and not the distribution.
    moved = compare_logits(texts, {n: torch.nn.functional.pad(x + 0.5, (0, 3), value=99.0) for n, x in logits.items()})
    assert moved.max_abs_difference == pytest.approx(0.5, abs=1e-4) and moved.mean_kl <= 1e-6
    flat = compare_logits(texts, {name: torch.zeros_like(x) for name, x in logits.items()})
    entropy = [torch.distributions.Categorical(logits=text.logits.double()).entropy().mean() for text in texts]
    vocabulary = torch.tensor(384.0, dtype=torch.float64)
    assert flat.mean_kl == pytest.approx((vocabulary.log() - torch.stack(entropy).mean()).item(), rel=1e-6)
    assert compare_logits(texts, {n: x * float("nan") for n, x in logits.items()}).max_abs_difference == float("inf")


def test_a_model_without_tokenizer_gets_fixed_random_ids(tmp_path):
    source = make_tiny_model(tmp_path / "hf", "llama2", tokenizer=False)
    for name in ("first", "second"):
        import_hf(source, tmp_path / name)
    first, second = (load_reference_logits(tmp_path / name / layout.REFERENCE_LOGITS_FILE) for name in ("first", "second"))
    assert [text.name for text in first] == ["random-0", "random-1"]
    assert all(torch.equal(a.ids, b.ids) and torch.equal(a.logits, b.logits) for a, b in zip(first, second, strict=True))


def test_the_commands_convert_verify_and_say_so(made, tmp_path, capsys):
    checkpoint, export = str(tmp_path / "checkpoint"), str(tmp_path / "export")
    assert main(["import-hf", "--hf", str(made[0]), "--output", checkpoint, "--no-reference-logits"]) == 0
    assert main(["export-hf", "--checkpoint", checkpoint, "--output", export, "--max-shard-size", "1MB"]) == 0
    capsys.readouterr()
    assert main(["verify-hf", "--checkpoint", checkpoint, "--hf", export, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert main(["import-hf", "--hf", str(made[0]), "--output", checkpoint, "--no-reference-logits"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    wrong = planted(made, tmp_path, flip_a_bit)
    assert main(["verify-hf", "--checkpoint", checkpoint, "--hf", str(wrong)]) == 1
    assert "model.layers.2.mlp.down_proj.weight" in capsys.readouterr().out
    assert main(["export-hf", "--checkpoint", checkpoint, "--output", export, "--max-shard-size", "huge"]) == 2
    assert "'huge' is no size" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("512MiB", 2**29), ("1.5 kb", 1500), ("1000", 1000), ("7B", 7)])
def test_sizes_are_read_with_their_units(text, size):
    from megatron_native.commands.sizes import parse_size

    assert parse_size(text) == size
