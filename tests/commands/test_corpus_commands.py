"""`clean` and `dedup` as a user types them: exit codes, messages, tables, help."""

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_native.cli import run_command
from tests.corpus.corpus_files import ENGLISH, LIBRARY, STORY, read_part, write_jsonl

REPOSITORY = Path(__file__).resolve().parents[2]


def typed(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "megatron_native", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def dumps(tmp_path):
    write_jsonl(tmp_path / "dumps" / "a.jsonl", [
        {"text": f"<p>{STORY}</p>"}, {"text": STORY}, {"text": ""}, {"title": "no text"}, {"text": ENGLISH}, {"text": "قصير"},
    ])  # fmt: skip
    raw = gzip.compress((json.dumps({"text": LIBRARY}) + "\n").encode() * 2)
    (tmp_path / "dumps" / "b.jsonl.gz").write_bytes(raw[:-4])
    return tmp_path


def test_the_way_from_a_dump_to_documents(dumps):
    done = typed("clean", "--input", "dumps/", "--output", "cleaned", "--workers", "2", cwd=dumps)
    assert done.returncode == 0
    assert done.stderr == "WARNING: 1 input file(s) are damaged; what came before the damage was read. See _quarantine/.\n"
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for row in ("read 9", "kept 5", "in ar 4 (80.0 % of 5)", "in en 1 (100.0 % of 1)",
                "dropped: empty 1", "dropped: too few words 1",
                "quarantined: no text key 1", "quarantined: damaged file 1"):
        assert row in rows
    done = typed("dedup", "--input", "cleaned", "--output", "deduped", "--json", cwd=dumps)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["counts"]["dropped"] == {"exact copy": 2}
    assert [record["text"] for record in read_part(dumps / "deduped" / "en" / "part-00001.jsonl.zst")] == [ENGLISH]
    again = typed("dedup", "--input", "cleaned", "--output", "deduped", cwd=dumps)
    assert "dedup: deduped is done already with the same inputs and settings; skipped" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("clean", "--input", "gone.jsonl", "--output", "out"), "gone.jsonl does not exist and matches no file"),
        (("clean", "--input", "dangling.jsonl", "--output", "out"), "dangling.jsonl is a link to nowhere.jsonl"),
        (("clean", "--input", "empty", "--output", "out"), "the folder empty holds no file that can be read"),
        (("clean", "--input", "notes.md", "--output", "out"), "notes.md: this kind of file is not read"),
        (("clean", "--input", "dumps", "--output", "full"), "full is not empty and is no clean stage"),
        (("clean", "--input", "dumps", "--output", "out", "--preset", "msaa"), "there is no preset 'msaa'"),
        (("clean", "--input", "dumps", "--output", "out", "--preset", "bad.yaml"), "bad.yaml, ar: unknown filters"),
        (("clean", "--input", "dumps", "--output", "out", "--languages", "ar,de"), "--languages de: preset msa knows ar"),
        (("clean", "--input", "body.parquet", "--output", "out"), "has no column 'text'"),
        (("dedup", "--input", "gone", "--output", "out"), "gone does not exist"),
        (("dedup", "--input", "dumps", "--output", "out", "--threshold", "80"), "--threshold 80.0: a Jaccard similarity"),
        (("dedup", "--input", "dumps", "--output", "out", "--shingle-words", "0"), "--shingle-words 0: it must be 1 or more"),
        (("dedup", "--input", "half", "--output", "out"), "half holds a stage that did not finish"),
    ],
)
def test_a_mistake_ends_in_one_paragraph_and_exit_code_2(dumps, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(dumps)
    (dumps / "dangling.jsonl").symlink_to("nowhere.jsonl")
    (dumps / "empty").mkdir()
    (dumps / "half" / "_progress").mkdir(parents=True)
    (dumps / "full").mkdir()
    (dumps / "full" / "thesis.txt").write_text("x")
    (dumps / "notes.md").write_text("x")
    (dumps / "bad.yaml").write_text("languages: {ar: {min_wrods: 1}}")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["نص"]}), dumps / "body.parquet")
    assert run_command(arguments[0], arguments[1:]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert [path.name for path in (dumps / "full").iterdir()] == ["thesis.txt"]


def test_a_mistake_shows_no_traceback_from_a_worker_process_either(dumps):
    for name in ("a", "b"):
        pyarrow.parquet.write_table(pyarrow.table({"body": ["نص"]}), dumps / f"{name}.parquet")
    done = typed(
        "clean", "--input", "a.parquet", "b.parquet", "--output", "out", "--workers", "2", "--part-bytes", "10", cwd=dumps
    )
    assert done.returncode == 2
    assert "has no column 'text'" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_settings_into_the_same_folder_are_refused_and_nothing_is_lost(dumps):
    assert typed("clean", "--input", "dumps", "--output", "out", cwd=dumps).returncode == 0
    before = (dumps / "out" / "manifest.json").read_bytes()
    done = typed("clean", "--input", "dumps", "--output", "out", "--preset", "none", "--tatweel", "keep", cwd=dumps)
    assert done.returncode == 2
    assert "preset: 'msa' there, 'none' asked for" in done.stderr
    assert (dumps / "out" / "manifest.json").read_bytes() == before


def test_plain_text_by_paragraphs(dumps, monkeypatch, capsys):
    monkeypatch.chdir(dumps)
    (dumps / "book.txt").write_text(f"{STORY}\n\n{LIBRARY}\n", encoding="utf-8")
    assert run_command("clean", ["--input", "book.txt", "--output", "out", "--text-unit", "paragraph", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["kept"] == 2
    assert [record["id"] for record in read_part(dumps / "out/ar/part-00000.jsonl.zst")] == [
        "book.txt:0", f"book.txt:{len(STORY.encode()) + 2}",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["clean", "dedup"])
def test_help_answers_in_under_half_a_second_with_examples(tmp_path, command):
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        done = typed(command, "--help", cwd=tmp_path)
        seconds.append(time.perf_counter() - begin)
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert f"megatron-native {command} --input" in done.stdout
    assert min(seconds) < 0.5


def test_cleaning_imports_no_torch_and_no_transformers():
    code = (
        "import sys, megatron_native.corpus.clean, megatron_native.corpus.dedup, megatron_native.commands.clean; "
        "print([name for name in ('torch', 'megatron', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("command", ["clean", "dedup"])
def test_an_argument_that_is_missing_or_unknown_is_a_usage_error(command, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(command, ["--input", "x", "--output", "y", "--colour"])
    assert caught.value.code == 2
    if command == "dedup":
        assert run_command(command, []) == 2
        assert "--output FOLDER says" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            run_command(command, ["--colour"])
    assert "unrecognized arguments: --colour" in capsys.readouterr().err
