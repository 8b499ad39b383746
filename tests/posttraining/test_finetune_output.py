"""What a fine-tuning is begun with and what it leaves, without a training: settings that are compared, notes, the manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.manifest import build_manifest, file_digest, file_entry, write_json
from megatron_native.posttraining.finetune import (
    ASKED,
    FinetuneResult,
    _amend_manifest,
    _describe,
    finetune,
    refuse_other_settings,
)
from megatron_native.posttraining.finetune_run import Plan, finetune_run
from megatron_native.posttraining.finetune_settings import DataSource, FinetuneSettings
from megatron_native.training.launch import FINISHED_FILE
from tests.posttraining.test_finetune import ANSWERS, RUN, write_chats
from tests.posttraining.test_finetune_run import dataset
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> FinetuneSettings:
    """Of a fine-tuning that is prepared for two processes."""
    folder = tmp_path_factory.mktemp("output")
    make_tiny_model(folder / "hf", "tied-llama")
    write_chats(folder / "chats.jsonl", list(ANSWERS))
    settings = FinetuneSettings(
        folder / "hf", folder / "out", (DataSource(str(folder / "chats.jsonl")),), template="chatml", seq_length=128,
        reference_logits=False, overrides=RUN, processes=2,
    )  # fmt: skip
    finetune(settings, print, {"note.json": {"colour": "green"}}, train=False)
    return settings


def asked(settings: FinetuneSettings) -> dict[str, object]:
    found: dict[str, object] = json.loads((settings.work_folder / ASKED).read_text(encoding="utf-8"))
    return found


def test_another_number_of_processes_goes_on_with_the_plan(settings: FinetuneSettings) -> None:
    begun, companions = asked(settings), {"note.json": {"colour": "green"}}
    first = finetune(settings, print, companions, train=False)
    again = finetune(replace(settings, processes=1), print, companions, train=False)
    assert again.plan == first.plan and first.plan.batch == 2
    assert asked(settings) == begun
    with pytest.raises(UserError, match=r"run\.training\.steps"):
        finetune(replace(settings, processes=1, epochs=9.0), print, companions, train=False)


def test_other_companions_are_other_settings(settings: FinetuneSettings) -> None:
    with pytest.raises(UserError, match=r"companions\.note\.json\.colour: 'green' there, 'red' asked for"):
        finetune(settings, print, {"note.json": {"colour": "red"}}, train=False)
    path = settings.work_folder / ASKED
    refuse_other_settings(path, {"companions": {"note.json": {"colour": "green"}}})
    with pytest.raises(UserError, match="template"):
        refuse_other_settings(path, {"template": "another"})


def finished_run(tmp_path: Path) -> tuple[FinetuneSettings, RunConfig, Plan]:
    settings = FinetuneSettings(Path("base"), tmp_path / "out", (DataSource("chats.jsonl"),))
    run, plan = finetune_run(settings, Path("base"), [dataset(tmp_path, "a", 100, 120)], Path("held"), 128)
    run.run_dir.mkdir(parents=True)
    write_json(run.run_dir / FINISHED_FILE, {"step": plan.steps})
    lines = [
        {"step": step, "heldout": {"conversations": {"loss": loss}}} for step, loss in ((0, 3.0), (plan.steps, 2.0))
    ]
    (run.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return settings, run, plan


def test_a_best_that_is_not_there_is_said(tmp_path: Path) -> None:
    settings, run, plan = finished_run(tmp_path)
    result = FinetuneResult(settings.output, plan, {})
    _describe(result, settings, run)
    assert (result.step, result.before, result.after) == (plan.steps, 3.0, 2.0)
    assert "has no best checkpoint" in result.notes[0]
    last = FinetuneResult(settings.output, plan, {})
    _describe(last, replace(settings, export="last"), run)
    assert not last.notes


def test_the_exports_manifest_lists_the_files_as_they_are(tmp_path: Path) -> None:
    for name in ("generation_config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    entries = [file_entry(path, tmp_path) for path in sorted(tmp_path.iterdir())]
    counts = {"read": 1, "kept": 1, "dropped": {}, "quarantined": {}}
    write_json(tmp_path / "manifest.json", build_manifest("export", {}, [], entries, counts, ()))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    for _ in range(2):
        _amend_manifest(tmp_path / "manifest.json", ("chat_template.jinja", "generation_config.json", "not_there.json"))
        outputs = json.loads((tmp_path / "manifest.json").read_text())["outputs"]
        assert [entry["path"] for entry in outputs] == [
            "chat_template.jinja",
            "generation_config.json",
            "model.safetensors",
        ]
        assert all(entry["xxh3_128"] == file_digest(tmp_path / entry["path"]) for entry in outputs)
