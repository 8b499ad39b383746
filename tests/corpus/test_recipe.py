"""Recipes become the command lines that a user would type."""

import pytest

from megatron_native.cli import COMMANDS
from megatron_native.corpus.recipe import read_recipe, run_recipe
from megatron_native.errors import UserError
from tests.corpus.corpus_files import LIBRARY, STORY, arabic_text, read_part, write_jsonl
from tests.corpus.test_minhash import changed


def written(tmp_path, *stages):
    lines = "".join(f"  - {stage}\n" for stage in stages)
    (tmp_path / "recipe.yaml").write_text(f"output: {tmp_path}/work\nstages:\n{lines}", encoding="utf-8")
    return tmp_path / "recipe.yaml"


def test_a_stage_reads_the_one_before_it_or_the_one_it_names(tmp_path):
    recipe = written(
        tmp_path, "clean: {input: [dump], preset: msa}", "dedup: {keep_signatures: true}",
        "dedup: {name: again, input: '@clean/ar', against: '@dedup'}",
        "dedup: {name: third, against: ['@dedup', elsewhere, '@again']}",
    )  # fmt: skip
    work = f"{tmp_path}/work"
    assert [(step.name, step.command, step.arguments) for step in read_recipe(recipe, {})] == [
        ("clean", "clean", ["--input", "dump", "--preset", "msa", "--output", f"{work}/clean"]),
        ("dedup", "dedup", ["--keep-signatures", "--input", f"{work}/clean", "--output", f"{work}/dedup"]),
        (
            "again", "dedup",
            ["--input", f"{work}/clean/ar", "--against", f"{work}/dedup", "--output", f"{work}/again"],
        ),
        (
            "third", "dedup",
            ["--against", f"{work}/dedup", "elsewhere", f"{work}/again", "--input", f"{work}/again", "--output",
             f"{work}/third"],
        ),
    ]  # fmt: skip


def test_what_a_stage_is_held_against_must_come_before_it(tmp_path):
    with pytest.raises(UserError, match="stage 1: @dedup names no stage before it"):
        read_recipe(written(tmp_path, "dedup: {name: new, input: dump, against: '@dedup'}", "dedup"), {})


def test_a_stage_is_known_once_its_command_is(tmp_path, monkeypatch):
    recipe = written(tmp_path, "rewrite: {input: dump}", "dedup: {}")
    monkeypatch.delitem(COMMANDS, "rewrite", raising=False)
    with pytest.raises(UserError, match=r"stage 1: .*rewrite.* where one of clean, dedup, "):
        read_recipe(recipe, {})
    monkeypatch.setitem(COMMANDS, "rewrite", ("clean", "any command with --input and --output"))
    rewrite, dedup = read_recipe(recipe, {})
    assert (rewrite.command, rewrite.arguments) == (
        "rewrite",
        ["--input", "dump", "--output", str(tmp_path / "work" / "rewrite")],
    )
    assert dedup.arguments[:2] == ["--input", str(tmp_path / "work" / "rewrite")]


def test_an_increment_in_a_recipe(tmp_path, capfd):
    """What a second dump has of the first leaves, in one command; the first is not read again."""
    text = arabic_text(1, 200)
    write_jsonl(tmp_path / "a.jsonl", [{"text": STORY, "id": "a"}, {"text": text, "id": "b"}])
    write_jsonl(
        tmp_path / "b.jsonl", [{"text": STORY, "id": "c"}, {"text": changed(text, 1), "id": "b"}, {"text": LIBRARY}]
    )
    recipe = written(
        tmp_path, f"dedup: {{name: deduped, input: {tmp_path}/a.jsonl, keep_signatures: true}}",
        f"dedup: {{name: new, input: {tmp_path}/b.jsonl, against: '@deduped'}}",
    )  # fmt: skip
    steps = read_recipe(recipe, {"workers": 1})
    assert run_recipe(steps[:1]) == 0
    (tmp_path / "a.jsonl").rename(tmp_path / "gone.jsonl")
    for part in (tmp_path / "work" / "deduped").glob("part-*"):
        part.unlink()
    assert run_recipe(steps[1:]) == 0
    assert "exact copy of an earlier corpus" in capfd.readouterr().out
    kept = [record["text"] for part in (tmp_path / "work" / "new").glob("*.zst") for record in read_part(part)]
    assert kept == [changed(text, 1), LIBRARY]
