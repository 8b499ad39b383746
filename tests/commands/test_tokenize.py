import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_native.cli import run_command
from megatron_native.commands.tokenize import UNSUPPORTED
from tests.commands.processor_time import seconds_of_children
from tests.data.small_tokenizers import SENTENCES, write_smollm

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER = REPOSITORY / "tools" / "preprocess_data.py"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_smollm(tmp_path_factory.mktemp("smollm"))


def dump(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(SENTENCES)))
    return path


def test_help_answers_in_under_half_a_second_and_shows_megatrons_flags():
    """Of processor time: other work on the machine is no fault of ours."""
    subprocess.run([sys.executable, str(LAUNCHER), "--help"], capture_output=True, check=True)  # fill the caches
    begin = seconds_of_children()
    shown = subprocess.run([sys.executable, str(LAUNCHER), "--help"], capture_output=True, text=True, check=True).stdout
    assert seconds_of_children() - begin < 0.5
    for flag in ("--input", "--output-prefix", "--tokenizer-type", "--tokenizer-model", "--json-keys", "--append-eod",
                 "--workers", "--eod-token", "--bos", "--no-bos", "examples:"):
        assert flag in shown
    assert "--merge-file" not in shown


def test_the_data_modules_import_no_torch_and_no_transformers():
    code = (
        "import sys, megatron_native.data.preprocess, megatron_native.data.sequence_index, megatron_native.data.blend, "
        "megatron_native.data.heldout; print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_launcher_works_from_a_clone_in_any_folder(tokenizer, tmp_path):
    done = subprocess.run(
        [sys.executable, str(LAUNCHER), "--input", str(dump(tmp_path)), "--output-prefix", "out/news",
         "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer), "--append-eod", "--workers", "2"],
        cwd=tmp_path, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(SENTENCES)} documents" in done.stdout
    assert (tmp_path / "out" / "news_text_document.idx").exists()


def test_the_same_command_again_is_skipped(tokenizer, tmp_path, capsys):
    arguments = ["--input", str(dump(tmp_path)), "--output-prefix", str(tmp_path / "x"), "--tokenizer-model", str(tokenizer)]
    assert run_command("tokenize", arguments) == 0
    assert run_command("tokenize", arguments) == 0
    assert "already done, skipped" in capsys.readouterr().out


@pytest.mark.parametrize("flag", sorted(UNSUPPORTED))
def test_a_flag_of_megatrons_that_means_nothing_here_says_what_to_do(flag, tmp_path, capsys):
    arguments = ["--input", "x", "--output-prefix", str(tmp_path / "x"), "--tokenizer-model", "y", flag]
    assert run_command("tokenize", arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {flag} is not supported: ") and error.count("\n") == 1


def test_mistakes_are_one_paragraph_and_exit_code_2(tokenizer, tmp_path, capsys):
    def fails(*changes):
        arguments = {"--input": str(dump(tmp_path)), "--output-prefix": str(tmp_path / "y")}
        arguments["--tokenizer-model"] = str(tokenizer)
        arguments |= dict(changes)
        assert run_command("tokenize", [part for pair in arguments.items() for part in pair]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    assert "nowhere" in fails(("--tokenizer-model", "nowhere"))
    assert "missing.jsonl" in fails(("--input", str(tmp_path / "missing.jsonl")))
    assert "<nope>" in fails(("--eod-token", "<nope>"))
    assert "--workers 0: it must be 1 or more" in fails(("--workers", "0"))
    assert "GPT2BPETokenizer" in fails(("--tokenizer-type", "GPT2BPETokenizer"))
