"""The experiment's parts: corruptions that are known and undone where rules can, recipes that load, and the whole in small."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "native_alignment"
TEXT = (
    "أعلنت وزارة التعليم أمس عن بدء التسجيل في البرنامج الصيفي للطلاب الموهوبين، ويستمر أسبوعين في كل مدرسة. وقالت مديرة "
    "البرنامج إن الأنشطة تشمل الرياضيات والفيزياء واللغة العربية، وإنها مجانية على مستوى المدينة."
)


@pytest.fixture(scope="module", autouse=True)
def example_modules():
    sys.path.insert(0, str(EXAMPLE))
    yield
    sys.path.remove(str(EXAMPLE))


def test_a_corruption_is_known_from_its_seed_and_changes_something():
    from corrupt import HASTE, MECHANICAL, corrupt

    for change in (*MECHANICAL, *HASTE):
        changed = [change(TEXT, random.Random(seed)) for seed in range(8)]
        assert changed == [change(TEXT, random.Random(seed)) for seed in range(8)]
        assert any(text != TEXT for text in changed), change.__name__
    texts = [corrupt(TEXT, random.Random(seed)) for seed in range(400)]
    untouched = sum(text == TEXT for text in texts)
    assert 400 * 0.05 < untouched < 400 * 0.2  # a tenth, and the few where nothing was drawn
    with pytest.raises(ValueError, match="entities"):
        corrupt("خبر &amp; تعليق", random.Random(0))


def test_rules_undo_the_mechanical_noise_and_can_not_undo_haste():
    from corrupt import endings, hamza, markup, notice, signs, stretched

    from megatron_native.alignment.character_errors import character_errors
    from megatron_native.alignment.rules import build_rules

    rules = build_rules()
    for change in (markup, stretched, signs, notice):
        for seed in range(20):
            noisy = change(TEXT, random.Random(seed))
            assert character_errors(TEXT, rules.apply(noisy).text) <= 0.2 * character_errors(TEXT, noisy), (
                change.__name__,
                noisy,
            )
    for change in (hamza, endings):
        hasty = change(TEXT, random.Random(1))
        assert rules.apply(hasty).text == hasty != TEXT


@pytest.mark.parametrize("recipe", ["pretrain.yaml", "gpu/pretrain_llama3_1b.yaml", "gpu/pretrain_llama3_8b.yaml"])
def test_recipes_are_valid_runs(recipe):
    from megatron_native.config.run import RunConfig

    run = RunConfig.model_validate(yaml.safe_load((EXAMPLE / recipe).read_text()))
    assert run.platform == ("cpu" if recipe == "pretrain.yaml" else "cuda")


@pytest.mark.parametrize("recipe", ["worker.yaml", "gpu/worker_qwen1.5_4b.yaml"])
def test_recipes_of_workers_are_valid(recipe):
    from megatron_native.posttraining.finetune_settings import read_settings_file

    section, run = read_settings_file(EXAMPLE / recipe)
    assert section["epochs"] in (1, 3)
    assert run["training"]["precision"] == "bf16"


def test_the_experiment_in_one_command_with_a_tiny_model(tmp_path):
    """Figures of random weights say nothing; that every step runs, and what the table is made of, is shown."""
    from tests.alignment.rewriting.workers import write_worker
    from tests.tiny_models import make_tiny_model

    base, worker_base, work = (
        make_tiny_model(tmp_path / "base", "llama2"),
        write_worker(tmp_path / "chat"),
        tmp_path / "work",
    )
    command = [
        sys.executable, EXAMPLE / "run.py", "--texts", ROOT / "examples/quickstart/source/ar_a.jsonl", "--base", base,
        "--worker-base", worker_base, "--work", work, "--arms", "original", "worker", "--run-seeds", "1", "--seeds", "24",
        "--corpus", "8", "--heldout", "4", "--nproc", "1", "--engine-option", "batch_size=8", "--figures", tmp_path / "figures",
    ]  # fmt: skip
    settings = EXAMPLE / "pretrain.yaml"
    short = tmp_path / "short.yaml"
    short.write_text(settings.read_text().replace("steps: 30", "steps: 5").replace("seq_length: 256", "seq_length: 64"))
    done = subprocess.run([*map(str, command), "--run-config", str(short)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads((tmp_path / "figures.json").read_text())
    rates = result["character_error_rate"]
    assert rates["corrupted"] > rates["after the rules"] > 0
    assert sum(result["worker"]["states"].values()) == 8
    # an untrained worker writes nonsense: the gates keep the passages as they are
    assert rates["after the worker and the gates"] == pytest.approx(rates["after the rules"], abs=0.05)
    assert result["worker"]["character_error_rate"]["what it wrote"] > 0.2
    assert set(result["arms"]) == {"original", "worker"}
    assert result["tokens"] == 5 * 4 * 64
    assert "| continued on | bits per byte | difference |" in (tmp_path / "figures.md").read_text()
