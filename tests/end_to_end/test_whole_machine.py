"""The whole machine on a tiny model: the shipped dump in, a Hugging Face folder out, every step by its command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.distributed import REPOSITORY
from tests.tiny_models import make_tiny_model

QUICKSTART = REPOSITORY / "examples" / "quickstart"


def command(*words: Any) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def steps(work: Path) -> list[tuple[Any, ...]]:
    """The quickstart's commands over `work`, with a tiny model in place of SmolLM2."""
    program = ("-m", "megatron_native")
    tokenize = [
        ("tools/preprocess_data.py", "--input", work / "deduped" / language, "--output-prefix", work / "tokens" / language,
         "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", work / "hf", "--append-eod")
        for language in ("ar", "en")
    ]  # fmt: skip
    return [
        (*program, "clean", "--input", QUICKSTART / "data", "--output", work / "cleaned", "--workers", 2),
        (*program, "dedup", "--input", work / "cleaned", "--output", work / "deduped"),
        *tokenize,
        (*program, "import-hf", "--hf", work / "hf", "--output", work / "imported"),
        (*program, "pretrain", "--nproc", 2, "--config", work / "run.yaml"),
        (*program, "export-hf", "--checkpoint", work / "run" / "checkpoints" / "step_00000012", "--output", work / "out"),
    ]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("machine")
    make_tiny_model(work / "hf", "tied-llama")
    config = {
        "run_dir": str(work / "run"), "platform": "cpu", "model": {"checkpoint": str(work / "imported")},
        "data": {"seq_length": 128, "blend": [
            {"prefix": str(work / "tokens" / "ar_text_document"), "weight": 0.8},
            {"prefix": str(work / "tokens" / "en_text_document"), "weight": 0.2},
        ]},
        "parallel": {"pipeline_model_parallel_size": 2},
        "training": {"steps": 12, "global_batch_size": 8, "micro_batch_size": 2, "precision": "bf16"},
        "optimizer": {"lr": 3e-3, "min_lr": 3e-4, "warmup_steps": 2},
        "evaluation": {"heldout": [{"name": n, "path": str(QUICKSTART / "heldout" / f"{n}.jsonl")} for n in ("ar", "en")]},
    }  # fmt: skip
    (work / "run.yaml").write_text(yaml.safe_dump(config))
    for words in steps(work):
        command(*words)
    return work


def test_every_record_is_accounted_for(work: Path) -> None:
    counts = json.loads((work / "cleaned" / "manifest.json").read_text())["counts"]
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values()) + sum(counts["quarantined"].values())
    assert {"malformed JSON", "invalid UTF-8", "no text key"} <= set(counts["quarantined"])
    assert counts["dropped"]["empty"] == 1
    deduped = json.loads((work / "deduped" / "manifest.json").read_text())["counts"]
    assert deduped["read"] == counts["kept"]
    assert deduped["dropped"]["exact copy"] >= 8, "the eight planted exact copies are among them"


def test_cleaned_text_has_no_residue(work: Path) -> None:
    import zstandard

    texts = [
        json.loads(line)["text"]
        for path in sorted((work / "deduped" / "ar").glob("*.zst"))
        for line in zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).decode().splitlines()
    ]
    assert 85 <= len(texts) <= 96
    whole = "\n".join(texts)
    for residue in ("ملفات تعريف الارتباط", "مساحة إعلانية", "<p>", "&nbsp;", "\u200b", "\u202b", "\u0640", "\ufeff", "\ufeb3"):
        assert residue not in whole, residue


def test_training_lowers_held_out_bits_per_byte(work: Path) -> None:
    records = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    heldout = [record["heldout"] for record in records if "heldout" in record]
    assert heldout[-1]["ar"]["bits_per_byte"] < 0.9 * heldout[0]["ar"]["bits_per_byte"]


def test_a_step_is_traced_through_every_manifest_to_the_dump(work: Path) -> None:
    answer = json.loads(command("-m", "megatron_native", "trace", "--run", work / "run", "--step", 3, "--lineage", "--json"))
    assert {piece["dataset"] for piece in answer["pieces"]} <= set(answer["lineage"])
    assert all(piece["id"] for piece in answer["pieces"]), "every document is known by its id"
    languages = {"ar_text_document": "ar", "en_text_document": "en"}
    assert set(answer["lineage"]) == set(languages)
    for name, chain in answer["lineage"].items():
        assert [entry["stage"] for entry in chain] == ["tokenize", "dedup", "clean"]
        tokenized, deduped, cleaned = (Path(entry["manifest"]) for entry in chain)
        assert tokenized == work / "tokens" / f"{name}.manifest.json"
        assert (deduped.resolve(), cleaned.resolve()) == (work / "deduped/manifest.json", work / "cleaned/manifest.json")
        read = {(tokenized.parent / path).resolve() for path in chain[0]["inputs"]}
        assert read == set((work / "deduped" / languages[name]).glob("*.zst"))
        dump = {(cleaned.parent / path).resolve() for path in chain[2]["inputs"]}
        assert dump == {path for path in (QUICKSTART / "data").rglob("*") if path.is_file()}
        assert all(entry["created"] for entry in chain)
    said = command("-m", "megatron_native", "trace", "--run", work / "run", "--lineage")
    assert f"behind ar_text_document: tokenize ({work / 'tokens' / 'ar_text_document.manifest.json'}) ← dedup (" in said


def test_the_export_loads_with_plain_transformers_and_is_the_checkpoint(work: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(work / "out")
    tokenizer = AutoTokenizer.from_pretrained(work / "out")
    inputs = tokenizer("ذهب الولد إلى", return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert output.shape[1] > inputs["input_ids"].shape[1]
    said = command(
        "-m", "megatron_native", "verify-hf", "--hf", work / "out", "--megatron", "--json",
        "--checkpoint", work / "run" / "checkpoints" / "step_00000012",
    )  # fmt: skip
    found = json.loads(said)
    assert found["passed"]
    assert found["megatron_logits"]["max_abs_difference"] <= 1e-4


def test_checkpoint_and_export_generate_the_same(work: Path) -> None:
    texts = [
        command("-m", "megatron_native", "generate", "--prompt", "اللغة العربية", "--max-new-tokens", 12, "--model", model)
        for model in (work / "out", work / "run" / "checkpoints" / "step_00000012")
    ]
    assert texts[0].startswith("اللغة العربية")
    assert texts[0] == texts[1]


def test_a_second_run_skips_what_is_done_and_says_so(work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    for words in steps(work):
        said = command(*words)
        assert "skip" in said or "already" in said or "is done" in said, (words, said)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == before
