import os
import struct

import numpy as np
import pytest

from megatron_native.cli import run_command
from megatron_native.data import dataset_files, id_checks, verify_dataset
from megatron_native.data.dataset_files import DatasetFiles, DocumentPolicy
from megatron_native.data.indexed import bin_path, idx_path
from megatron_native.data.verify_dataset import Expectations
from megatron_native.errors import UserError
from megatron_native.manifest import write_json
from tests.data.planted_datasets import (
    BOS,
    EOD,
    VOCABULARY,
    complete_dataset,
    documents,
    write_dataset,
    write_ids,
    write_manifest,
)
from tests.data.small_tokenizers import SENTENCES

TEXTS = documents(5, 0, 8, 3, 0, 12)  # 28 tokens; documents begin at 0, 5, 5, 13, 16, 16


def verify(prefix, quick=False, **expected):
    return verify_dataset.verify_dataset(prefix, Expectations(**expected), quick)


def faults(prefix, **options):
    return [str(fault) for fault in verify(prefix, **options).faults]


def only_fault(prefix, **options):
    found = faults(prefix, **options)
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def whole(tmp_path):
    return complete_dataset(tmp_path / "x", TEXTS)


def put_id(prefix, token, value, texts=TEXTS):
    """Another id at one token, and a manifest that knows no better."""
    with open(bin_path(prefix), "r+b") as file:
        file.seek(2 * token)
        file.write(struct.pack("<H", value))
    write_manifest(prefix, texts, id_range=None)


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_a_whole_dataset_is_fine_and_says_what_was_looked_at(whole, monkeypatch, block):
    monkeypatch.setattr(dataset_files, "TOKENS_AT_A_TIME", block)
    monkeypatch.setattr(dataset_files, "BLOCK", 2)
    found = verify(whole)
    assert found.faults == []
    assert found.checked == [
        "structure: 6 documents in 4 sequences, 28 tokens (uint16); every length, pointer and boundary",
        "dtype: uint16 holds all ids of a vocabulary of 600",
        "checksum: x.idx",
        "checksum: x.ids.jsonl.zst",
        f"range: all ids lie in {min(t.min() for t in TEXTS if len(t))} … {max(t.max() for t in TEXTS if len(t))}",
        "documents end with the id 2 (every document)",
        "checksum: x.bin",
        "document ids: one for each of the 6 documents",
    ]
    assert found.summary().startswith(f"{whole}: fine\n")


def test_quick_looks_at_a_sample(whole):
    found = verify(whole, quick=True)
    assert found.passed and found.summary().startswith(f"{whole}: fine, sampled\n")
    assert "documents end with the id 2 (6 sampled documents)" in found.checked
    assert not any(what.startswith("checksum") for what in found.checked)


def test_a_changed_byte_is_found_by_the_checksum(whole):
    content = bytearray(bin_path(whole).read_bytes())
    content[2] ^= 1
    bin_path(whole).write_bytes(content)
    assert "x.bin: has another content than when it was made" in only_fault(whole)
    assert verify(whole, quick=True).passed  # what a sample can't see


def test_changed_document_ids_are_found_by_their_checksum(whole):
    size = DatasetFiles(whole).ids.stat().st_size
    write_ids(whole, ["d0", "d1", "d2", "d3", "d4", "e5"])
    assert DatasetFiles(whole).ids.stat().st_size == size
    assert "x.ids.jsonl.zst: has another content than when it was made" in only_fault(whole)


@pytest.mark.parametrize("quick", [False, True])
def test_ids_outside_the_vocabulary(whole, quick):
    put_id(whole, 14, 600)
    put_id(whole, 17, 65_535)
    assert only_fault(whole, quick=quick).startswith(
        f"{whole}.bin, token 14: the id 600 is outside the vocabulary of 600 ids (2 such ids among "
    )
    assert verify(whole, vocab_size=65_536, quick=quick).passed


def test_ids_outside_the_manifests_range(tmp_path):
    prefix = complete_dataset(tmp_path / "x", [np.array([10, 20, EOD])])
    write_manifest(prefix, [np.array([10, 20, EOD])], id_range=[2, 19])
    assert "x.bin: ids go from 2 to 20, from 2 to 19 in the manifest" in only_fault(prefix)


def test_negative_ids_are_wrong_whatever_the_vocabulary(tmp_path):
    prefix = write_dataset(tmp_path / "x", [np.array([1, 2, 3]), np.array([5, -7])], np.int32)
    assert "token 4: the id -7 is outside the vocabulary" in only_fault(prefix)


def test_a_dtype_too_small_for_the_vocabulary(whole):
    write_manifest(whole, TEXTS, tokenizer={"vocab_size": 128_256})
    assert "x.idx, header: uint16 holds ids up to 65,535, and the vocabulary has 128,256" in only_fault(whole)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("block", [1, 4, 1000])
def test_documents_without_their_end(whole, monkeypatch, quick, block):
    monkeypatch.setattr(dataset_files, "TOKENS_AT_A_TIME", block)
    monkeypatch.setattr(verify_dataset, "TOKENS_AT_A_TIME", block)
    put_id(whole, 12, 77)  # the last id of document 2
    put_id(whole, 27, 77)  # and of document 5
    which = "6 sampled documents" if quick else "every document"
    assert only_fault(whole, quick=quick).startswith(
        f"{whole}.bin, document 2: does not end with the id 2 (2 among {which})"
    )


@pytest.mark.parametrize("quick", [False, True])
def test_a_separator_inside_a_document(whole, quick):
    put_id(whole, 7, EOD)
    put_id(whole, 20, EOD)
    assert only_fault(whole, quick=quick).startswith(
        f"{whole}.bin, document 2, token 7: the separator stands inside a document (2 times among "
    )


def test_separators_that_the_manifest_counts_from_text_are_no_fault(whole):
    put_id(whole, 7, EOD)
    write_manifest(whole, TEXTS, counts={"separators_from_text": 1})
    found = verify(whole)
    assert found.passed
    assert any("document 2, token 7" in remark and "came from the text" in remark for remark in found.remarks)


def test_begin_tokens_missing_and_inside(tmp_path):
    with_begin = {"bos_id": BOS, "bos_token": "<s>"}
    texts = [np.array([BOS, 10, 11, EOD]), np.array([]), np.array([BOS, 12, EOD])]
    prefix = complete_dataset(tmp_path / "x", texts, tokenizer=with_begin)
    assert "documents begin with the id 1 (every document)" in verify(prefix).checked
    wrong = [np.array([10, BOS, 11, EOD]), np.array([]), np.array([BOS, 12, EOD])]
    prefix = complete_dataset(tmp_path / "y", wrong, tokenizer=with_begin)
    assert faults(prefix) == [
        f"{prefix}.bin, document 0: does not begin with the id 1 (1 among every document); it was cut, or its index is "
        "another dataset's: copy the dataset again, or tokenize it again",
        f"{prefix}.bin, document 0, token 1: the begin token stands inside a document (1 times among every document); two "
        "documents were joined, or a text spelled it out: tokenize them again with a tokenizer that tells text from special "
        "tokens",
    ]


def test_one_token_may_begin_and_end_documents():
    policy = DocumentPolicy(begin_id=5, end_id=5, separator_id=5)
    ends = id_checks.DocumentEnds(policy)
    ends.look(0, np.array([0, 3, 5, 6]), 0, np.array([5, 9, 5, 5, 5, 5]))
    found = (ends.without_begin.count, ends.without_end.count, ends.inner_begin.count, ends.inner_end.count)
    assert found == (0, 0, 0, 0)
    ends.look(3, np.array([6, 9]), 6, np.array([5, 5, 5]))
    assert (ends.inner_begin.count, ends.inner_end.count, ends.inner_end.first_token) == (1, 1, 7)


def test_a_damaged_structure_is_named_and_the_rest_still_checked(whole):
    os.truncate(bin_path(whole), 40)
    found = faults(whole)
    assert found[0].startswith(f"{whole}.bin: is cut short: it has 40 bytes, and x.idx describes 56.")
    assert found[0].endswith(f"or try megatron-native repair {whole}")
    assert f"{whole}.bin: has 40 bytes, 56 in the manifest" in found[1]
    assert "checksum: x.idx" in verify(whole).checked


def test_a_wrong_pointer(whole):
    with open(idx_path(whole), "r+b") as file:
        file.seek(34 + 4 * 4 + 8 * 2)
        file.write(struct.pack("<q", 10))
    assert any("x.idx: is damaged: entry 2 is a pointer" in fault for fault in faults(whole))


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("bin", r"x.bin: is not there"),
        ("idx", r"x.idx: is not there"),
        ("ids", r"x.ids.jsonl.zst: is gone, and the manifest lists it"),
    ],
)
def test_a_file_that_is_gone(whole, gone, says):
    getattr(DatasetFiles(whole), gone).unlink()
    assert any(says in fault for fault in faults(whole))


def test_nothing_at_all_is_a_mistake_of_the_user(tmp_path):
    with pytest.raises(UserError, match=r"neither x\.bin nor x\.idx is there"):
        verify(tmp_path / "x")


def test_the_number_of_document_ids(whole):
    write_ids(whole, ["d0", "d1"])
    write_manifest(whole, TEXTS)
    assert "x.ids.jsonl.zst: has 2 ids for 6 documents" in only_fault(whole)
    content = DatasetFiles(whole).ids.read_bytes()
    DatasetFiles(whole).ids.write_bytes(content[:-3] + b"\0\0\0" + content)
    write_manifest(whole, TEXTS)
    assert "x.ids.jsonl.zst: " in only_fault(whole)


def test_a_manifest_of_another_dataset(whole):
    write_manifest(whole, TEXTS, documents=7, tokens=1028)
    assert [fault.split(";")[0] for fault in faults(whole)] == [
        f"{whole}.manifest.json, documents: 7 there, 6 in the dataset",
        f"{whole}.manifest.json, tokens: 1,028 there, 28 in the dataset",
    ]
    DatasetFiles(whole).manifest_path.write_text("{")
    assert "x.manifest.json: " in only_fault(whole)


def test_a_dataset_of_someone_else_is_checked_against_what_the_user_says(tmp_path):
    prefix = write_dataset(tmp_path / "x", TEXTS)
    found = verify(prefix)
    assert found.passed
    assert [remark.split(" (")[0].split(":")[0] for remark in found.remarks] == [
        "there is no x.manifest.json", "the vocabulary's size is not known", "the document separator is not known",
        "there is no x.ids.jsonl.zst", "text was not compared",
    ]  # fmt: skip
    assert verify(prefix, eod_id=EOD, vocab_size=VOCABULARY).passed
    assert "document 0: does not end with the id 3 (4 among every document)" in only_fault(prefix, eod_id=3)


def test_a_dataset_keeps_its_checksums_under_another_name(whole, tmp_path):
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("x.", "renamed."))
    found = verify(tmp_path / "renamed")
    assert found.passed and "checksum: renamed.bin" in found.checked


def test_a_dataset_of_nothing_is_fine(tmp_path):
    prefix = complete_dataset(tmp_path / "x", [])
    DatasetFiles(prefix).ids.unlink()
    write_manifest(prefix, [])
    assert verify(prefix).passed and verify(prefix, quick=True).passed


@pytest.fixture
def tokenized(tmp_path, smollm):
    source = tmp_path / "in.txt"
    source.write_text("\n".join(SENTENCES[:5]), encoding="utf-8")
    assert run_command("tokenize", [
        "--input", str(source), "--output-prefix", str(tmp_path / "news"), "--tokenizer-model", str(smollm),
        "--append-eod", "--text-unit", "line", "--workers", "1",
    ]) == 0  # fmt: skip
    return tmp_path / "news_text_document"


def test_text_is_decoded_and_encoded_again(tokenized, llama3, smollm, tmp_path):
    found = verify(tokenized)
    assert found.passed
    assert found.checked[-1] == "text: 5 of 5 sampled documents give the same ids again when decoded and encoded"
    assert verify(tokenized, quick=True).passed
    assert "made with another tokenizer than" in only_fault(tokenized, tokenizer=llama3)
    DatasetFiles(tokenized).manifest_path.unlink()
    assert verify(tokenized, tokenizer=smollm).passed  # separator and vocabulary are the tokenizer's
    shuffled = np.random.default_rng(0).permutation(300) + 3
    other = write_dataset(tmp_path / "other", [shuffled[at : at + 30] for at in range(0, 300, 30)])
    assert "only " in only_fault(other, tokenizer=smollm) and "give the same ids again" in only_fault(other, tokenizer=smollm)


def test_a_tokenizer_that_has_changed_or_gone_is_not_used(tokenized):
    files = DatasetFiles(tokenized)
    manifest = files.manifest()
    write_json(files.manifest_path, {**manifest, "tokenizer": {**manifest["tokenizer"], "hash": "0" * 64}})
    found = verify(tokenized)
    assert found.passed and any("is another tokenizer now" in remark for remark in found.remarks)
    write_json(files.manifest_path, {**manifest, "tokenizer": {**manifest["tokenizer"], "model": "/nowhere"}})
    assert any("/nowhere is no longer there" in remark for remark in verify(tokenized).remarks)
