import json
import os
from collections import namedtuple

import numpy as np
import pytest

from megatron_native.data import dataset_files, repair_dataset
from megatron_native.data.dataset_files import DatasetFiles
from megatron_native.data.indexed import IndexedTokens, bin_path, idx_path
from megatron_native.data.repair_dataset import repair_dataset as repair
from megatron_native.data.verify_dataset import verify_dataset
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest
from tests.data.planted_datasets import (
    EOD,
    complete_dataset,
    contents,
    documents,
    read_ids,
    write_dataset,
)

TEXTS = documents(5, 0, 8, 3, 0, 12)  # uint16; documents end after 5, 5, 13, 16, 16, 28 tokens


@pytest.fixture
def whole(tmp_path):
    return complete_dataset(tmp_path / "x", TEXTS, refused=1)


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_whole_dataset_is_left_alone(whole, tmp_path):
    before = everything(tmp_path)
    assert "nothing to repair" in repair(whole).summary()
    assert "nothing to repair" in repair(whole, in_place=True).summary()
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("size", "kept", "tokens"),
    [
        (55, 5, 16),  # half an id is missing: the last document is gone
        (32, 5, 16),  # cut between documents: the empty one before the cut is whole
        (31, 3, 13),
        (26, 3, 13),
        (10, 2, 5),
        (9, 0, 0),
        (0, 0, 0),
    ],
)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("block", [2, 1 << 20])
def test_a_tail_that_was_cut_off(whole, tmp_path, monkeypatch, size, kept, tokens, in_place, block):
    monkeypatch.setattr(dataset_files, "BLOCK", block)
    monkeypatch.setattr(repair_dataset, "BLOCK", block)
    os.truncate(bin_path(whole), size)
    before = everything(tmp_path)
    done = repair(whole, in_place=in_place)
    target = whole if in_place else tmp_path / "x_repaired"
    assert contents(target) == contents(write_dataset(tmp_path / "expected", TEXTS[:kept]))
    files = DatasetFiles(target)
    assert read_ids(files.ids) == [f"d{number}" for number in range(kept)]
    assert read_ids(files.lost_ids) == done.first_lost_ids == [f"d{number}" for number in range(kept, 6)]
    found = (done.documents, done.tokens, done.lost_documents, done.lost_tokens, done.cut_bytes)
    assert found == (kept, tokens, 6 - kept, 28 - tokens, size - 2 * tokens)
    # the account: 7 records read, 1 refused, 2 empty documents, 4 with ids, of which the lost are named
    full = sum(1 for text in TEXTS[:kept] if len(text))
    manifest = files.manifest()
    assert manifest["counts"] == {
        "read": 7, "kept": full, "dropped": {"empty": 2, "lost in repair": 4 - full}, "quarantined": {"invalid JSON": 1},
        "separators_from_text": 0,
    }  # fmt: skip
    assert (manifest["documents"], manifest["tokens"], manifest["stage"]) == (kept, tokens, "repair")
    assert manifest["tokenizer"]["eod_id"] == EOD
    assert manifest["repair"]["lost_tokens"] == 28 - tokens
    lineage = manifest["lineage"][0]
    assert (lineage["stage"], lineage["xxh3_128"]) == ("tokenize", file_digest(tmp_path / lineage["path"]))
    assert verify_dataset(target).passed, verify_dataset(target).summary()
    assert not list(tmp_path.glob("*.partial"))
    if not in_place:
        assert {name: content for name, content in everything(tmp_path).items() if name in before} == before


def test_documents_of_several_sequences_are_cut_whole(tmp_path):
    texts, sequences = [np.arange(7), np.arange(5), np.arange(4)], [[2, 5], [3, 2], [4]]
    prefix = write_dataset(tmp_path / "x", texts, np.int32, sequences=sequences)
    os.truncate(bin_path(prefix), 4 * (7 + 3))  # the first sequence of the second document is there
    done = repair(prefix)
    assert (done.documents, done.tokens, done.lost_documents, done.lost_tokens, done.cut_bytes) == (1, 7, 2, 9, 12)
    expected = write_dataset(tmp_path / "expected", texts[:1], np.int32, sequences=sequences[:1])
    assert contents(tmp_path / "x_repaired") == contents(expected)
    manifest = DatasetFiles(tmp_path / "x_repaired").manifest()
    assert manifest["counts"] == {"read": 3, "kept": 1, "dropped": {"lost in repair": 2}, "quarantined": {}}
    assert manifest["tokenizer"] is None


def test_ids_that_no_index_describes_are_left_out(whole, tmp_path):
    expected = contents(whole)
    with open(bin_path(whole), "ab") as file:
        file.write(b"\x07\x00\x08")
    done = repair(whole)
    assert (done.documents, done.lost_documents, done.cut_bytes) == (6, 0, 3)
    assert contents(tmp_path / "x_repaired") == expected
    assert not DatasetFiles(tmp_path / "x_repaired").lost_ids.exists()


FULL = documents(5, 8, 3, 12)


@pytest.mark.parametrize("harm", ["gone", "cut", "overwritten"])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("block", [3, 1000])
def test_an_index_is_made_again_from_where_documents_end(tmp_path, monkeypatch, harm, in_place, block):
    monkeypatch.setattr(repair_dataset, "TOKENS_AT_A_TIME", block)
    prefix = complete_dataset(tmp_path / "x", FULL)
    expected = contents(prefix)
    if harm == "gone":
        idx_path(prefix).unlink()
    elif harm == "cut":
        os.truncate(idx_path(prefix), 50)
    else:
        idx_path(prefix).write_bytes(bytes(100))
    done = repair(prefix, in_place=in_place)
    target = prefix if in_place else tmp_path / "x_repaired"
    assert contents(target) == expected
    assert (done.documents, done.tokens, done.lost_documents, done.lost_tokens) == (4, 28, 0, 0)
    assert read_ids(DatasetFiles(target).ids) == ["d0", "d1", "d2", "d3"]
    assert verify_dataset(target).passed, verify_dataset(target).summary()


def test_index_gone_and_tail_cut(tmp_path):
    prefix = complete_dataset(tmp_path / "x", FULL)
    idx_path(prefix).unlink()
    os.truncate(bin_path(prefix), 2 * 20 + 1)
    done = repair(prefix)
    assert (done.documents, done.tokens, done.lost_documents, done.lost_tokens, done.cut_bytes) == (3, 16, 1, 4, 9)
    assert done.first_lost_ids == ["d3"]
    assert contents(tmp_path / "x_repaired") == contents(write_dataset(tmp_path / "expected", FULL[:3]))
    assert DatasetFiles(tmp_path / "x_repaired").manifest()["counts"]["dropped"] == {"lost in repair": 1}


def test_empty_documents_leave_no_trace_so_ids_are_not_guessed(whole, tmp_path):
    idx_path(whole).unlink()
    done = repair(whole)
    assert (done.documents, done.lost_documents) == (4, 2)
    assert contents(tmp_path / "x_repaired") == contents(write_dataset(tmp_path / "expected", FULL_OF_TEXTS))
    assert not DatasetFiles(tmp_path / "x_repaired").ids.exists()
    assert "x.ids.jsonl.zst is left out: 2 empty documents had ids" in done.summary()
    assert DatasetFiles(whole).ids.exists()


FULL_OF_TEXTS = [text for text in TEXTS if len(text)]


def test_separators_inside_documents_leave_ids_unknown(tmp_path):
    texts = [np.array([10, EOD, 11, EOD]), np.array([12, EOD])]
    prefix = complete_dataset(tmp_path / "x", texts)
    idx_path(prefix).unlink()
    done = repair(prefix)
    assert done.documents == 3 and not DatasetFiles(tmp_path / "x_repaired").ids.exists()
    assert "separators stand inside documents" in done.summary()
    manifest = DatasetFiles(tmp_path / "x_repaired").manifest()
    assert manifest["counts"] == {"read": 3, "kept": 3, "dropped": {}, "quarantined": {}}


def test_without_a_manifest_the_user_says_what_an_index_is_made_by(tmp_path):
    prefix = write_dataset(tmp_path / "x", FULL, np.int32)
    expected = contents(prefix)
    os.truncate(idx_path(prefix), 40)
    with pytest.raises(UserError, match="no manifest says one: give --eod-id"):
        repair(prefix)
    assert repair(prefix, tmp_path / "a", eod_id=EOD).lost_documents is None  # the dtype is in what is left of the header
    idx_path(prefix).unlink()
    with pytest.raises(UserError, match="give --dtype"):
        repair(prefix, eod_id=EOD)
    repair(prefix, tmp_path / "b", eod_id=EOD, dtype="int32")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == expected
    with pytest.raises(UserError, match=r"the id 70000 occurs nowhere in .*x\.bin \(read as int32\)"):
        repair(prefix, eod_id=70_000, dtype="int32")
    assert not list(tmp_path.glob("*.partial"))


def test_what_cannot_be_repaired_is_said(whole, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="exclude each other"):
        repair(whole, tmp_path / "y", in_place=True)
    os.truncate(bin_path(whole), 20)
    write_dataset(tmp_path / "x_repaired", FULL)
    with pytest.raises(UserError, match=r"x_repaired\.bin is there already"):
        repair(whole)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(repair_dataset.shutil, "disk_usage", lambda folder: usage(10, 10, 1))
    with pytest.raises(UserError, match=r"0\.00 GB free"):
        repair(whole, tmp_path / "z")
    bin_path(whole).unlink()
    with pytest.raises(UserError, match="there is nothing to repair from"):
        repair(whole)


@pytest.mark.parametrize("dies_at", range(5))
def test_a_repair_in_place_that_was_broken_off_is_gone_on_with(whole, tmp_path, monkeypatch, dies_at):
    os.truncate(bin_path(whole), 31)
    steps = iter(range(100))
    replace = os.replace

    def die_at_one_step(old, new):
        if next(steps) == dies_at:
            raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", die_at_one_step)
        try:
            repair(whole, in_place=True)
            assert dies_at > 3  # lost ids, ids, manifest, index: all steps were done
        except KeyboardInterrupt:
            repair(whole, in_place=True)
    assert contents(whole) == contents(write_dataset(tmp_path / "expected", TEXTS[:3]))
    files = DatasetFiles(whole)
    assert (read_ids(files.ids), read_ids(files.lost_ids)) == (["d0", "d1", "d2"], ["d3", "d4", "d5"])
    manifest = files.manifest()
    assert manifest["counts"]["dropped"] == {"empty": 2, "lost in repair": 2}
    assert json.loads((tmp_path / "x.manifest.before-repair.json").read_text())["stage"] == "tokenize"
    assert verify_dataset(whole).passed, verify_dataset(whole).summary()


def test_a_damaged_table_of_ids_is_left_out_and_named(whole, tmp_path):
    os.truncate(bin_path(whole), 31)
    content = DatasetFiles(whole).ids.read_bytes()
    DatasetFiles(whole).ids.write_bytes(content[: len(content) // 2])
    done = repair(whole)
    assert "x.ids.jsonl.zst is left out: " in done.summary()
    assert IndexedTokens(tmp_path / "x_repaired").document_count == 3


def test_a_second_repair_adds_to_the_first(whole, tmp_path):
    os.truncate(bin_path(whole), 55)
    repair(whole, tmp_path / "once")
    os.truncate(bin_path(tmp_path / "once"), 12)
    repair(tmp_path / "once", tmp_path / "twice")
    assert DatasetFiles(tmp_path / "twice").manifest()["counts"]["dropped"] == {"empty": 2, "lost in repair": 3}
    assert read_ids(DatasetFiles(tmp_path / "twice").lost_ids) == ["d2", "d3", "d4"]
