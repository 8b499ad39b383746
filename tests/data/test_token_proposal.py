"""Proposed tokens: the most frequent joins, in an order that needs no parts, worth on the sample what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from megatron_native.cli import main
from megatron_native.data.token_proposal import propose_tokens
from megatron_native.data.tokenizer_extension import extend_tokenizer
from tests.data.small_tokenizers import write_llama3
from tests.data.test_real_tokenizer import news_texts
from tests.real_models import smollm2


def count(tokenizer: Tokenizer, texts: list[str]) -> int:
    return sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)


def test_real_news_gets_exactly_so_much_shorter() -> None:
    path = smollm2() / "tokenizer.json"
    texts = news_texts()[:200]
    proposed = propose_tokens(path, texts, 150)
    assert [one.saved for one in proposed] == sorted((one.saved for one in proposed), reverse=True)
    extension = extend_tokenizer(path, [one.token for one in proposed])
    assert len(extension.tokens) == 150 and not any(token.part for token in extension.tokens)
    old, new = Tokenizer.from_file(str(path)), Tokenizer.from_str(json.dumps(extension.content))
    assert count(old, texts) - count(new, texts) == sum(one.saved for one in proposed)


def test_the_first_is_the_most_frequent_pair(tmp_path: Path) -> None:
    path = write_llama3(tmp_path) / "tokenizer.json"
    # neither letter is a token of its own here: each is two bytes, and bytes are joined to letters before anything else
    proposed = propose_tokens(path, ["ظغ\n" * 5 + "غظ\n" * 3 + "zq\n" * 9], 4)
    assert [(one.token, one.saved) for one in proposed] == [("ظ", 8), ("غ", 8), ("ظغ", 5), ("غظ", 3)]


def test_the_command_prints_a_list_for_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_llama3(tmp_path / "tokenizer")
    (tmp_path / "sample.txt").write_text("ذهب الطالب إلى الجامعة، وعاد الطالب من الجامعة.", encoding="utf-8")
    command = ["propose-tokens", "--tokenizer", str(folder), "--sample", str(tmp_path / "sample.txt"), "--count", "3"]
    assert main(command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3 and all(line["saved"] >= 2 for line in lines)
    assert main([*command[:-1], "0"]) == 2
