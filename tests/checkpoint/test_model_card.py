"""What an exported folder says of itself: front matter that parses, true figures, "not recorded" for the rest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_native.checkpoint.export_hf import export_hf
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.model_card import base_model_record
from megatron_native.checkpoint.vocabulary import ExtensionSettings
from megatron_native.cli import main
from megatron_native.manifest import file_digest
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config, write_token_dataset


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.removeprefix("---\n").split("\n---\n", 1)[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` with a card, imported with new tokens; two runs, the second a branch off the first; `export` of that."""
    folder = tmp_path_factory.mktemp("card")
    make_tiny_model(folder / "base", "llama3.1")
    (folder / "base" / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en, ar]\n---\n# Base\n")
    (folder / "tokens.txt").write_text(" على\n", encoding="utf-8")
    import_hf(folder / "base", folder / "imported", add_tokens=ExtensionSettings(folder / "tokens.txt"))
    prefix = write_token_dataset(folder / "data" / "news", seed=5)
    manifest = {"format": "megatron-native/manifest/1", "stage": "tokenize", "licence": "CC BY 4.0", "inputs": [],
                "outputs": [], "counts": {}, "parameters_hash": "abc"}  # fmt: skip
    prefix.with_name("news.manifest.json").write_text(json.dumps(manifest))
    held = folder / "held.jsonl"
    held.write_text('{"id": "1", "text": "اللغة العربية لغة جميلة."}\n', encoding="utf-8")
    phases = [{"name": "rows", "steps": 2, "trainable": "embeddings"}, {"name": "all", "steps": 1}]
    common: dict[str, Any] = {
        "training": {"steps": None}, "data": {"verify": "off"}, "optimizer": {"warmup_steps": 0},
        "evaluation": {"heldout": [{"name": "ar", "path": str(held)}]},
    }  # fmt: skip
    trunk = run_config(folder / "trunk", folder / "imported", prefix, phases=phases, **common)
    branch = run_config(folder / "branch", folder / "imported", prefix, phases=[{"name": "more", "steps": 2}], **common)
    branch["model"] = {"branch_from": str(folder / "trunk/checkpoints/step_00000003")}
    run_jobs(folder, 1, [{"train": trunk}, {"train": branch}])
    command = ["export-hf", "--checkpoint", str(folder / "branch/checkpoints/step_00000005")]
    assert main([*command, "--output", str(folder / "export"), "--verify"]) == 0
    return folder


def test_the_card_says_where_the_model_comes_from(trained: Path) -> None:
    card = (trained / "export" / "README.md").read_text(encoding="utf-8")
    assert front(card) == {
        "language": ["ar", "en"], "license": "apache-2.0", "base_model": "base", "pipeline_tag": "text-generation",
        "library_name": "transformers", "tags": ["arabic", "megatron-native"],
    }  # fmt: skip
    assert "CC BY 4.0" in card and "## Training: trunk" in card and "## Training: branch" in card
    assert str(trained) not in card
    assert "النموذج «base»، وعدد خطوات تدريبه هنا 5." in card


def test_the_lineage_has_every_run_with_its_figures(trained: Path) -> None:
    text = (trained / "export" / "lineage.json").read_text(encoding="utf-8")
    assert str(trained) not in text
    found = json.loads(text)
    trunk, branch = found["runs"]
    assert [(run["name"], run["steps"], run["consumed_tokens"]) for run in found["runs"]] == [
        ("trunk", 3, 3 * 8 * 48), ("branch", 5, 5 * 8 * 48),
    ]  # fmt: skip
    assert [(phase["name"], phase["first_step"], phase["trainable"]) for phase in trunk["phases"]] == [
        ("rows", 1, "embeddings"), ("all", 3, "all"),
    ]  # fmt: skip
    (dataset,) = branch["datasets"].values()
    (manifest,) = dataset["manifests"]
    assert manifest["xxh3_128"] == file_digest(trained / "data" / "news.manifest.json")
    assert dataset["digest"] == file_digest(trained / "data" / "news.idx")
    lines = [json.loads(line) for line in (trained / "branch" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "heldout" in line][-1]
    assert branch["evaluation"] == {"step": 5, "sets": {"ar": last["heldout"]["ar"]["bits_per_byte"]}}
    assert branch["commit"] is None or re.fullmatch("[0-9a-f]{40}", branch["commit"])
    assert found["vocabulary"]["new_tokens"] == 1


def test_the_report_of_the_verification_goes_along(trained: Path) -> None:
    report = json.loads((trained / "export" / "verification.json").read_text(encoding="utf-8"))
    assert report["passed"] and report["weights_equal"] and not report["unchanged_since_import"]
    manifest = json.loads((trained / "export" / "manifest.json").read_text(encoding="utf-8"))
    files = {entry["path"] for entry in manifest["outputs"]}
    assert {"README.md", "lineage.json", "verification.json", "generation_config.json", "tokenizer.json"} <= files


def test_what_is_unknown_is_not_recorded(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "hf", "llama2", tokenizer=False)
    (tmp_path / "hf" / "generation_config.json").unlink(missing_ok=True)
    import_hf(tmp_path / "hf", tmp_path / "imported", reference_logits=False)
    (tmp_path / "imported" / "run" / "hf" / "base_model.json").unlink()
    from megatron_native.checkpoint import layout

    layout.write_checksums(tmp_path / "imported")
    export_hf(tmp_path / "imported", tmp_path / "export")
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert "license" not in front(card) and "base_model" not in front(card)
    assert "| base model | not recorded |" in card and "| licence of the base model | not recorded |" in card
    assert "no chat template" in card and "ولم يُسجَّل أصله" in card
    generation = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 0)
    assert not (tmp_path / "export" / "verification.json").exists()


def test_a_name_that_is_a_path_is_not_published(tmp_path: Path) -> None:
    for stated, name in (("/home/someone/model", "hf"), ("org/model-7b", "org/model-7b"), (None, "hf")):
        (tmp_path / "hf").mkdir(exist_ok=True)
        (tmp_path / "hf" / "config.json").write_text(json.dumps({"_name_or_path": stated}))
        assert base_model_record(tmp_path / "hf")["name"] == name
    (tmp_path / "hf" / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    assert base_model_record(tmp_path / "hf")["licence"] is None
