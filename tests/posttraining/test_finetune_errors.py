"""What can be wrong with a fine-tuning is said in one paragraph, with exit code 2, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_native.cli import run_command
from tests.posttraining.test_finetune import ANSWERS, SETTINGS, write_chats
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    make_tiny_model(folder / "hf", "tied-llama")
    write_chats(folder / "chats.jsonl", list(ANSWERS))
    (folder / "nothing.jsonl").write_text('{"text": "no conversation"}\n')
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    (folder / "wrong.yaml").write_text(json.dumps({"optimiser": {"lr": 1e-5}}))
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "chats.jsonl"], "--base is not given"),
        (["--base", "hf"], "name files of conversations with --data"),
        (["--base", "nowhere", "--data", "chats.jsonl"], "nowhere is neither a Hugging Face folder"),
        (["--base", "hf", "--data", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--base", "hf", "--data", "nothing.jsonl"], "no conversation to learn from"),
        (["--base", "hf", "--data", "chats.jsonl", "--output", "full"], "exists and was not made by finetune"),
        (["--base", "hf", "--data", "chats.jsonl", "--template", "llama3"], "<|begin_of_text|>"),
        (["--base", "hf", "--data", "chats.jsonl", "--config", "wrong.yaml"], "did you mean 'optimizer'?"),
        (["--base", "hf", "--data", "chats.jsonl", "optimizer.lrr=1"], "did you mean 'lr'?"),
        (["--base", "hf", "--data", "chats.jsonl", "parallel.tensor_model_parallel_size=2"], "--nproc 2"),
    ],
)
def test_it_names_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    known = ("hf", "chats.jsonl", "nothing.jsonl", "full", "wrong.yaml")
    given = [str(folder / word) if word in known else word for word in words]
    output = [] if "--output" in words else ["--output", str(folder / "out")]
    template = [word for word in SETTINGS if "--template" not in words or word not in ("--template", "chatml")]
    assert run_command("finetune", [*given, *output, *template]) == 2
    complained = capsys.readouterr().err
    assert complained.count("error:") == 1
    assert said in complained
    assert not (folder / "out").exists() and not (folder / "out.run" / "base").exists()
