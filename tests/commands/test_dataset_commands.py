"""`merge`, `inspect`, `verify` and `repair` as a user types them: exit codes, tables, JSON, messages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_native.cli import run_command
from megatron_native.data.indexed import bin_path
from tests.data.planted_datasets import complete_dataset, contents, documents, write_dataset
from tests.data.small_tokenizers import SENTENCES, write_smollm

REPOSITORY = Path(__file__).resolve().parents[2]


def typed(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "megatron_native", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def shards(tmp_path):
    for number in (1, 2, 10):
        complete_dataset(tmp_path / "shards" / f"part_{number}", documents(5, 3, seed=number), name=f"{number}-")
    return tmp_path


def test_the_launcher_merges_from_any_folder(shards):
    launcher = REPOSITORY / "tools" / "merge_datasets.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(launcher), "--input", "shards/part_*", "--output-prefix", "all", "--workers", "2"],
        cwd=shards, capture_output=True, text=True, env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("all.bin: 3 datasets, 6 documents, 24 tokens (uint16)\n")
    expected = [text for number in (1, 2, 10) for text in documents(5, 3, seed=number)]
    assert contents(shards / "all") == contents(write_dataset(shards / "expected", expected))


def test_the_way_from_shards_to_a_repaired_dataset(shards):
    done = typed("merge", "--input", "shards/", "--output-prefix", "all", "--json", cwd=shards)
    assert (done.returncode, json.loads(done.stdout)["documents"]) == (0, 6)
    again = typed("merge", "--input", "shards/", "--output-prefix", "all", cwd=shards)
    assert again.stdout == "all: already done, skipped (24 tokens)\n"
    done = typed("verify", "all", "shards/", cwd=shards)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.endswith("fine")] == [
        "all: fine", "shards/part_1: fine", "shards/part_2: fine", "shards/part_10: fine",
    ]  # fmt: skip
    os.truncate(bin_path(shards / "all"), 2 * 23)
    done = typed("verify", "all", "--quick", cwd=shards)
    assert done.returncode == 1
    assert "FAULT  all.bin: is cut short: it has 46 bytes, and all.idx describes 48" in done.stdout
    done = typed("verify", "all", "shards/", "--json", cwd=shards)
    findings = json.loads(done.stdout)
    assert (done.returncode, findings["passed"]) == (1, False)
    assert [found["passed"] for found in findings["datasets"]] == [False, True, True, True]
    assert findings["datasets"][0]["faults"][0]["file"] == "all.bin"
    done = typed("repair", "all", cwd=shards)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  lost: 1 documents, 3 tokens; 4 bytes of .bin left out" in done.stdout
    assert "  their ids: 10-1 (all in all_repaired.lost.jsonl.zst)" in done.stdout
    assert typed("verify", "all_repaired.idx", cwd=shards).returncode == 0
    done = typed("repair", "all", "--in-place", "--json", cwd=shards)
    assert json.loads(done.stdout)["first_lost_ids"] == ["10-1"]
    assert typed("repair", "all", cwd=shards).stdout.startswith("all: nothing to repair")


def test_inspect_shows_arabic_as_it_is(tmp_path):
    tokenizer = write_smollm(tmp_path / "tokenizer")
    (tmp_path / "in.txt").write_text("\n".join(SENTENCES[:3]), encoding="utf-8")
    assert run_command("tokenize", [
        "--input", str(tmp_path / "in.txt"), "--output-prefix", str(tmp_path / "n"), "--tokenizer-model", str(tokenizer),
        "--append-eod", "--text-unit", "line", "--workers", "1",
    ]) == 0  # fmt: skip
    done = typed("inspect", "n_text_document", "--head", "2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-3] == SENTENCES[0] + "<|endoftext|>" and lines[-1] == SENTENCES[1] + "<|endoftext|>"
    assert lines[-4].startswith("[0] ") and "100.0% of 3 end with the separator" in done.stdout
    done = typed("inspect", "n_text_document", "--document", "2", cwd=tmp_path)
    assert SENTENCES[2] + "<|endoftext|>\n\nids: " in done.stdout
    document = json.loads(typed("inspect", "n_text_document.bin", "--document", "1", "--json", cwd=tmp_path).stdout)
    assert (document["number"], document["text"]) == (1, SENTENCES[1] + "<|endoftext|>")
    everything = json.loads(typed("inspect", "n_text_document", "--json", "--head", "1", cwd=tmp_path).stdout)
    assert everything["lengths"]["documents"] == 3 and everything["head"][0]["text"] == SENTENCES[0] + "<|endoftext|>"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("merge", "--input", "gone", "--output-prefix", "x"), "gone names no indexed dataset"),
        (("merge", "--input", "shards", "--output-prefix", "x", "--workers", "0"), "--workers is 0"),
        (("merge", "--input", "shards/part_1", "shards", "--output-prefix", "x"), "shards/part_1 is named twice"),
        (("verify", "gone"), "gone names no indexed dataset"),
        (("verify", "shards", "--tokenizer", "gone"), "--tokenizer gone: there is no such file"),
        (("inspect", "gone"), "gone.idx is not there"),
        (("inspect", "shards/part_1", "--document", "9"), "the dataset has 2 documents"),
        (("repair", "gone"), "gone.bin is not there"),
        (("repair", "shards/part_1", "--in-place", "--output-prefix", "y"), "exclude each other"),
    ],
)
def test_mistakes_are_one_paragraph_and_exit_code_2(shards, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(shards)
    assert run_command(arguments[0], arguments[1:]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert said in error
