"""The sources of a mixture as datasets, and what of them is held out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_native.data.dataset_files import DatasetFiles
from megatron_native.data.indexed import IndexedTokens
from megatron_native.errors import UserError
from megatron_native.posttraining.finetune_data import Conversations, prepare_conversations
from megatron_native.posttraining.finetune_settings import DataSource, FinetuneSettings

QUESTION, ANSWER = "كم عدد الكتب على الرف رقم {}؟", "عليه {} كتب."


def write(path: Path, count: int, first: int = 0) -> str:
    path.parent.mkdir(exist_ok=True)
    lines = [
        {"id": f"{path.stem}-{n}", "instruction": QUESTION.format(n), "output": ANSWER.format(n)}
        for n in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def prepared(tmp_path: Path, chatml: Path, *sources: DataSource, **more: object) -> Conversations:
    settings = FinetuneSettings(Path("base"), Path("out"), sources, template="chatml")
    return prepare_conversations(replace(settings, **more), chatml, tmp_path / "data", 512, lambda line: None)  # type: ignore[arg-type]


def documents(prefix: Path | None) -> int:
    assert prefix is not None
    return IndexedTokens(prefix).document_count


def test_sources_keep_their_weights_and_are_measured_together(tmp_path: Path, chatml: Path) -> None:
    many, few = write(tmp_path / "in" / "general.jsonl", 60), write(tmp_path / "in" / "law.v2.jsonl", 40, first=60)
    found = prepared(tmp_path, chatml, DataSource(many), DataSource(few, 2.0), heldout_share=0.2)
    assert [(one.name, one.weight) for one in found.data] == [("general", 1.0), ("law", 2.0)]
    account = found.account
    assert account["read"] == 100 == account["kept"] + account["dropped"]["held out"]
    assert account["held_out"] == account["dropped"]["held out"] == documents(found.heldout)
    assert [one.conversations for one in found.data] == [documents(one.prefix) for one in found.data]
    assert sum(one.conversations for one in found.data) == account["kept"]
    assert set(found.digests) == {"general", "law", "conversations"}
    manifest = DatasetFiles(found.data[0].prefix).manifest()
    assert manifest is not None and manifest["tokens"] == found.data[0].tokens
    again = prepared(tmp_path, chatml, DataSource(many), DataSource(few, 2.0), heldout_share=0.2)
    assert again.digests == found.digests


def test_sources_of_one_name_are_told_apart(tmp_path: Path, chatml: Path) -> None:
    paths = [write(tmp_path / folder / "chats.jsonl", 12) for folder in ("a", "b")]
    held = write(tmp_path / "conversations.jsonl", 3)
    found = prepared(tmp_path, chatml, *map(DataSource, (*paths, held)), heldout=(held,))
    assert [one.name for one in found.data] == ["chats", "chats-2", "conversations-2"]
    assert (found.account["held_out"], documents(found.heldout), found.account["kept"]) == (3, 3, 27)
    assert found.account["heldout_inputs"][0]["records"] == 3


def test_no_source_lies_where_something_held_out_does(tmp_path: Path, chatml: Path) -> None:
    names = ("law", "law_heldout", "all_conversations", "code_heldout", "code")
    paths = [write(tmp_path / f"{name}.jsonl", 12, first=20 * number) for number, name in enumerate(names)]
    found = prepared(tmp_path, chatml, *map(DataSource, paths), heldout_share=0.5)
    prefixes = [one.prefix.name for one in found.data]
    assert prefixes == ["law", "law_heldout-2", "all_conversations-2", "code_heldout", "code-2"]
    assert [one.conversations for one in found.data] == [documents(one.prefix) for one in found.data]
    assert found.account["held_out"] == documents(found.heldout) > 0
    assert found.account["read"] == 60 == found.account["kept"] + found.account["held_out"]


def test_where_a_share_would_be_nothing_more_is_held_out(tmp_path: Path, chatml: Path) -> None:
    found = prepared(tmp_path, chatml, DataSource(write(tmp_path / "chats.jsonl", 20)), heldout_share=1e-6)
    assert 1 <= documents(found.heldout) <= 10
    assert "is held out and not" in found.notes[0]


def test_of_a_handful_nothing_is_held_out(tmp_path: Path, chatml: Path) -> None:
    found = prepared(tmp_path, chatml, DataSource(write(tmp_path / "chats.jsonl", 5)))
    assert found.heldout is None and found.account["kept"] == 5
    assert "too few conversations" in found.notes[0]
    none = prepared(tmp_path / "asked", chatml, DataSource(write(tmp_path / "more.jsonl", 30)), heldout_share=0.0)
    assert none.heldout is None and not none.notes


def test_the_template_goes_with_the_model(tmp_path: Path, chatml: Path) -> None:
    found = prepared(tmp_path, chatml, DataSource(write(tmp_path / "chats.jsonl", 5)))
    found.template_into(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == found.encoder.template
    with pytest.raises(UserError, match="no chat template"):
        prepared(tmp_path / "own", chatml, DataSource(str(tmp_path / "chats.jsonl")), template=None)
