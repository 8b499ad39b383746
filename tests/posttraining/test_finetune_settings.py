"""Settings of a fine-tuning: from the command line and YAML, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_native.errors import UserError
from megatron_native.posttraining.finetune_settings import (
    DataSource,
    FinetuneSettings,
    parse_source,
    read_settings_file,
    with_overrides,
)

SETTINGS = FinetuneSettings(Path("base"), Path("models/chat"), (DataSource("chats.jsonl"),))


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("chats.jsonl", DataSource("chats.jsonl")),
        ("chats.jsonl=2.0", DataSource("chats.jsonl", 2.0)),
        ("a=b/chats.jsonl", DataSource("a=b/chats.jsonl")),
        ("data/*.jsonl=0.5", DataSource("data/*.jsonl", 0.5)),
    ],
)
def test_a_source_may_have_a_weight(text: str, source: DataSource) -> None:
    assert parse_source(text) == source


def test_a_file_is_taken_by_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "lr=2"
    path.touch()
    assert parse_source(str(path)) == DataSource(str(path))


def test_a_yaml_file_has_settings_of_both_kinds(tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text(
        "finetune:\n  base: models/llama\n  epochs: 2\n  conversations_per_step: 64\n  seq_length: 2048\n"
        "  data: [general/, 'safety.jsonl=2.0', {path: law.jsonl, weight: 0.5}]\n  heldout: held.jsonl\n"
        "optimizer: {lr: 2.0e-5}\n"
    )
    section, run = read_settings_file(path)
    assert run == {"optimizer": {"lr": 2e-5}}
    settings = with_overrides(SETTINGS, {**section, "patience": None})
    assert settings.base == Path("models/llama")
    assert settings.data == (DataSource("general/"), DataSource("safety.jsonl", 2.0), DataSource("law.jsonl", 0.5))
    assert settings.heldout == ("held.jsonl",)
    assert (settings.epochs, settings.conversations_per_step, settings.seq_length) == (2.0, 64, 2048)
    assert settings.patience == SETTINGS.patience, "what is not said stays"
    path.write_text("finetune: {reference_logits: false, seq_length: null, learn: last, template: null}")
    assert read_settings_file(path)[0] == {
        "reference_logits": False, "seq_length": None, "learn": "last", "template": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("finetune: {epoch: 2}", "unknown key finetune.epoch"),
        ("finetune: {epochs: many}", "finetune.epochs = 'many'"),
        ("finetune: {seq_length: 10.5}", "finetune.seq_length = 10.5"),
        ("finetune: {data: [{file: a}]}", "write FILE, FILE=2.0"),
        ("finetune: {data: 5}", "5 is no file"),
        ("finetune: {data: null}", "None is no file"),
        ("finetune: {data: [{path: a, weight: true}]}", "write FILE, FILE=2.0"),
        ("finetune: {heldout: null}", "finetune.heldout = None"),
        ("finetune: {heldout: [a, 5]}", "finetune.heldout = ['a', 5]"),
        ("finetune: {epochs: .inf}", "finetune.epochs = inf"),
        ("finetune: {seq_length: .inf}", "finetune.seq_length = inf"),
        ("finetune: {epochs: true}", "finetune.epochs = True"),
        ("finetune: {template: 5}", "finetune.template = 5"),
        ('finetune: {reference_logits: "no"}', "finetune.reference_logits = 'no'"),
        ("- a\n- b\n", "it must be a mapping"),
        ("finetune: 3\n", "'finetune:' must be a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_yaml_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_settings_file(path)
    assert said in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": ()}, "--data"),
        ({"data": (DataSource("a", 0.0),)}, "--data a=0"),
        ({"epochs": 0.0}, "--epochs 0.0"),
        ({"epochs": float("inf")}, "--epochs inf"),
        ({"data": (DataSource("a", float("inf")),)}, "--data a=inf"),
        ({"conversations_per_step": 0}, "--conversations-per-step 0"),
        ({"patience": -1}, "--patience -1"),
        ({"heldout_share": 1.0}, "--heldout-share 1.0"),
        ({"processes": 0}, "--nproc 0"),
    ],
)
def test_values_that_can_not_be_meant_are_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as error:
        replace(SETTINGS, **changed).check()  # type: ignore[arg-type]
    assert said in str(error.value)


def test_the_work_folder_is_beside_the_output() -> None:
    assert SETTINGS.work_folder == Path("models/chat.run")
    assert replace(SETTINGS, work=Path("/scratch/x")).work_folder == Path("/scratch/x")
