import json

import numpy as np
import pytest

from megatron_native.cli import run_command
from megatron_native.data import dataset_files, inspect_dataset
from megatron_native.data.dataset_files import DatasetFiles
from megatron_native.data.indexed import IndexedTokens, bin_path
from megatron_native.data.inspect_dataset import DatasetReader, cut_to_width, measure_lengths, shown
from megatron_native.errors import UserError
from tests.data.planted_datasets import EOD, complete_dataset, documents, write_dataset

TEXTS = [
    "ذهب الطالب إلى المدرسة في الصباح الباكر وعاد منها مسرورا.",
    "إِنَّ العِلْمَ نُورٌ، وَالجَهْلَ ظَلامٌ؛ فَهَلْ يَسْتَوِيَانِ؟",
    "",
    "قالت الوزيرة:\nالمشروع الجديد.",
]


@pytest.fixture
def news(tmp_path, smollm):
    source = tmp_path / "in.jsonl"
    rows = [{"id": name, "text": text} for name, text in zip(("a", "7", "c", "https://example.org/4"), TEXTS)]
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert run_command("tokenize", [
        "--input", str(source), "--output-prefix", str(tmp_path / "news"), "--tokenizer-model", str(smollm),
        "--append-eod", "--workers", "1",
    ]) == 0  # fmt: skip
    return tmp_path / "news_text_document"


@pytest.mark.parametrize("block", [2, 1000])
@pytest.mark.parametrize("longest_counted", [4, 1 << 20])
def test_lengths_by_hand(tmp_path, monkeypatch, block, longest_counted):
    monkeypatch.setattr(dataset_files, "BLOCK", block)
    monkeypatch.setattr(inspect_dataset, "SHORT_LENGTHS", longest_counted)
    prefix = write_dataset(tmp_path / "x", [np.arange(size) for size in (3, 0, 1, 9, 3, 0, 8, 2)])
    found = measure_lengths(IndexedTokens(prefix))
    assert (found.documents, found.tokens, found.empty) == (8, 26, 2)
    # of 1 2 3 3 8 9: the third is the median by nearest rank, ⌈0.99 × 6⌉ = the sixth the 99th percentile
    assert (found.shortest, found.median, found.p99, found.longest) == (1, 3, 9, 9)
    assert found.mean == pytest.approx(26 / 6)
    assert found.histogram == [(0, 0, 2), (1, 1, 1), (2, 3, 3), (4, 7, 0), (8, 15, 2)]


def test_percentiles_are_those_of_numpys_nearest_rank(tmp_path):
    sizes = np.random.default_rng(3).integers(1, 400, 777)
    found = measure_lengths(IndexedTokens(write_dataset(tmp_path / "x", [np.zeros(size) for size in sizes])))
    by_numpy = [int(np.percentile(sizes, share, method="inverted_cdf")) for share in (50, 99)]
    assert [found.median, found.p99] == by_numpy


def test_facts_of_ids(tmp_path, monkeypatch):
    texts = [np.array([10, 10, 11, EOD]), np.array([]), np.array([10, 13])]
    prefix = complete_dataset(tmp_path / "x", texts)
    found = DatasetReader(prefix).inspect()
    assert (found.sampled_tokens, found.lowest_id, found.highest_id) == (6, 2, 13)
    assert (found.sampled_documents, found.ended, found.separator_id) == (2, 1, EOD)
    assert found.top == [(10, 3, None), (2, 1, None), (11, 1, None), (13, 1, None)]
    assert (found.bin_bytes, found.idx_bytes) == (12, 34 + 12 * 2 + 8 * 4)
    summary = found.summary()
    for line in ("3, 1 of them empty", "50.0% of 2 end with the separator 2", "2 … 13 (all tokens)",
                 "the tokenizer /nowhere/tokenizer.json is no longer there"):
        assert line in summary
    monkeypatch.setattr(inspect_dataset, "SAMPLED_BLOCK", 2)
    monkeypatch.setattr(inspect_dataset, "SAMPLED_TOKENS", 4)
    sampled = DatasetReader(prefix).inspect()  # the first and the last block
    assert (sampled.sampled_tokens, sampled.top) == (4, [(10, 3, None), (13, 1, None)])
    assert "4 sampled tokens" in sampled.summary()


def test_the_bars_are_as_long_as_their_share(tmp_path):
    prefix = write_dataset(tmp_path / "x", documents(*[5] * 10, 9, 9, 9, 9, 9))
    rows = [line.split() for line in DatasetReader(prefix).inspect().summary().splitlines() if "█" in line]
    assert rows == [["4–7", "█" * 40, "10"], ["8–15", "█" * 20, "5"]]


def test_ids_that_no_vocabulary_has_do_not_fill_the_memory(tmp_path):
    prefix = write_dataset(tmp_path / "x", [np.array([2**31 - 1, 5, -3, 2**31 - 1])], np.int32)
    found = DatasetReader(prefix).inspect()
    assert found.top == [(2**31 - 1, 2, None), (-3, 1, None), (5, 1, None)]
    assert (found.lowest_id, found.highest_id) == (-3, 2**31 - 1)


def test_documents_are_found_by_number_and_by_id(news):
    reader = DatasetReader(news)
    by_number, by_id = reader.find("3"), reader.find("https://example.org/4")
    assert by_number == by_id
    assert (by_id.number, by_id.id, by_id.text) == (3, "https://example.org/4", TEXTS[3] + "<|endoftext|>")
    assert by_id.token_ids == IndexedTokens(news).document(3).tolist() and by_id.length == len(by_id.token_ids)
    assert reader.find("id:7").text == TEXTS[1] + "<|endoftext|>"
    assert (reader.find("2").text, reader.find("2").length) == ("", 0)
    with pytest.raises(UserError, match=r"the dataset has 4 documents, numbered from 0. An id that is .* written id:7"):
        reader.find("7")
    with pytest.raises(UserError, match="no document with the id 'nope'"):
        reader.find("nope")
    DatasetFiles(news).ids.unlink()
    with pytest.raises(UserError, match="found by number only"):
        reader.find("a")


def test_the_head_reads_only_what_is_shown(news):
    views = list(DatasetReader(news).head(2, width=2))
    whole = [IndexedTokens(news).document(number).tolist() for number in range(2)]
    assert [(view.number, view.id, view.length) for view in views] == [(0, "a", len(whole[0])), (1, "7", len(whole[1]))]
    assert len(whole[1]) > 16
    assert [view.token_ids for view in views] == [whole[0][:16], whole[1][:16]]  # 4 ids a column and a few
    assert TEXTS[1].startswith(views[1].text.rstrip("�"))
    assert len(list(DatasetReader(news).head(100, width=80))) == 4


def test_text_is_cut_by_columns_and_safe_on_a_terminal():
    assert cut_to_width("مدرسة", 5) == "مدرسة"
    assert cut_to_width("مدرسة كبيرة", 6) == "مدرسة…"
    assert cut_to_width("مُدَرِّسَةٌ كبيرة", 6) == "مُدَرِّسَةٌ…"  # marks take no column
    assert cut_to_width("漢字漢字", 5) == "漢字…"
    assert shown("أ\nب\x1b[31m\x9b") == "أ␊ب␛[31m�"
    assert shown("أ\nب", keep_lines=True) == "أ\nب"


def test_a_damaged_dataset_is_named(tmp_path):
    prefix = write_dataset(tmp_path / "x", documents(5, 3))
    with open(bin_path(prefix), "ab") as file:
        file.write(b"12")
    with pytest.raises(UserError, match=r"x\.bin is longer than its index"):
        DatasetReader(prefix)
