"""SmolLM2's real tokenizer: the ids of the quickstart's texts and of real news are transformers' own, document by document."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from megatron_native.cli import main
from megatron_native.data.indexed import IndexedTokens
from tests.real_models import smollm2

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"


def quickstart_texts() -> list[str]:
    paths = [*sorted((QUICKSTART / "source").glob("*.jsonl")), *sorted((QUICKSTART / "heldout").glob("*.jsonl"))]
    return [json.loads(line)["text"] for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def news_texts() -> list[str]:
    folder = os.environ.get("MEGATRON_NATIVE_TEST_DATA")
    if not folder:
        pytest.skip("MEGATRON_NATIVE_TEST_DATA names no folder of real test data")
    texts: list[str] = []
    for path in sorted((Path(folder) / "saudinewsnet").glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                texts += [article["content"] for article in json.loads(archive.read(name)) if article["content"].strip()]
        if len(texts) >= 2000:
            break
    return texts[:2000]


@pytest.mark.parametrize("texts_of", [quickstart_texts, news_texts])
def test_ids_equal_those_of_transformers(tmp_path: Path, texts_of: Callable[[], list[str]]) -> None:
    folder = smollm2()
    texts = texts_of()
    # A literal separator inside a text stays text.
    texts = [*texts, "نص فيه <|endoftext|> مكتوبا كما هو، ثم <|im_start|> أيضا."]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text, "id": str(i)}) + "\n" for i, text in enumerate(texts)))
    code = main([
        "tokenize", "--input", str(source), "--output-prefix", str(tmp_path / "out"), "--append-eod",
        "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder),
    ])  # fmt: skip
    assert code == 0
    dataset = IndexedTokens(tmp_path / "out_text_document")
    assert len(dataset) == len(texts)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    separator = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for number, text in enumerate(texts):
        expected = tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
        assert np.array_equal(dataset[number], [*expected, separator]), number
        assert separator not in expected
