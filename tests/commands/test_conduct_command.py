"""`conduct` on the command line: what it prints, as text and as JSON, and how it refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_native.alignment.conduct import load_conduct
from megatron_native.alignment.prompts import parse_edits, prompt_hash, render_rewriting
from megatron_native.cli import main


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["conduct", *words]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["conduct", *words]) == 2
    return capsys.readouterr().err


def test_list_names_the_shipped_codes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines] == ["general", "gulf"]
    found: list[dict[str, Any]] = json.loads(printed(capsys, "list", "--json"))
    assert [code["hash"] for code in found] == [load_conduct("general").hash, load_conduct("gulf").hash]


def test_show_prints_rules_reasons_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code = load_conduct("gulf")
    text = printed(capsys, "show", "gulf", "--language", "en")
    for principle in code.principles:
        assert principle.rule.en in text and principle.rationale.en in text
        assert principle.examples.bad[0].why in text
    assert code.principles[0].rule.ar in printed(capsys, "show", "gulf")
    assert json.loads(printed(capsys, "show", "gulf", "--json"))["principles"] == code.content["principles"]


def test_check_says_what_a_code_is_and_what_is_weak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: general\nprinciples:\n  values:\n    examples: {good: []}\n", "utf-8")
    text = printed(capsys, "check", str(path))
    assert "mine → general: 5 principles, 12 instructions" in text
    assert "note: principles.values.examples: 0 good and 2 bad" in text
    path.write_text("extends: general\nprinciple: {}\n", "utf-8")
    assert f"error: {path}: unknown key principle" in refused(capsys, "check", str(path))


def test_prompt_prints_the_messages_of_a_passage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "passage.txt"
    path.write_text("نص ، للتجربه\n", "utf-8")
    words = ["prompt", "general", "--form", "edits", "--examples", "3"]
    found = json.loads(printed(capsys, *words, "--text", str(path), "--json"))
    code = load_conduct("general")
    assert found["messages"] == render_rewriting(code, "نص ، للتجربه", form="edits", examples=3)
    assert found["prompt_hash"] == prompt_hash(code, "edits", "ar", 3)
    assert found["constant_characters"] < found["characters"]
    assert parse_edits(found["messages"][2]["content"], "").unchanged
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("نص ، للتجربه".encode())))
    text = printed(capsys, *words, "--text", "-")
    assert all(message["content"] in text for message in found["messages"])


def test_what_does_not_fit_the_action_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "takes no code" in refused(capsys, "list", "general")
    assert "needs a code" in refused(capsys, "show")
    assert "needs --text FILE" in refused(capsys, "prompt", "general")
    assert "--text is for conduct prompt" in refused(capsys, "show", "general", "--text", "-")
    assert "can't be read" in refused(capsys, "prompt", "general", "--text", str(tmp_path / "none"))
    (tmp_path / "cp1256.txt").write_bytes("نص".encode("cp1256"))
    assert "not UTF-8" in refused(capsys, "prompt", "general", "--text", str(tmp_path / "cp1256.txt"))
