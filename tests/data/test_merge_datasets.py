import json
import os
import resource
import shutil
from collections import namedtuple

import numpy as np
import pytest

from megatron_native.data import dataset_files, merge_datasets, merge_plan
from megatron_native.data.dataset_files import DatasetFiles, find_datasets, index_bytes
from megatron_native.data.indexed import IndexedTokens, bin_path, idx_path, verify_structure
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest
from tests.data.planted_datasets import (
    complete_dataset,
    contents,
    documents,
    read_ids,
    write_dataset,
    write_ids,
)


def merge(inputs, output, **options):
    return merge_datasets.merge_datasets([str(word) for word in inputs], output, say=lambda line: None, **options)


def megatron_merges(parts, output, dtype):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(bin_path(output)), dtype=dtype)
    for part in parts:
        builder.add_index(str(part))
    builder.finalize(str(idx_path(output)))
    return output


@pytest.fixture
def parts(tmp_path):
    """Several sequences a document, empty documents at both ends, a dataset of nothing, one large document."""
    several = write_dataset(
        tmp_path / "part1", [np.arange(7), np.array([]), np.arange(3)], sequences=[[2, 5], [], [3]]
    )
    nothing = write_dataset(tmp_path / "part2", [])
    empties = write_dataset(tmp_path / "part3", [np.array([]), np.arange(9), np.array([])])
    large = write_dataset(tmp_path / "part10", [np.arange(5000) % 500, *documents(4, 1, 30)])
    return [several, nothing, empties, large]


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("in_kernel", [True, False])
def test_bytes_are_those_of_megatron_cores_add_index(tmp_path, parts, monkeypatch, workers, in_kernel):
    monkeypatch.setattr(merge_datasets, "COPIED_AT_A_TIME", 64)  # a large document is copied in many pieces
    monkeypatch.setattr(merge_datasets, "BLOCK", 2)
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range")
    merge(parts, tmp_path / "ours", workers=workers)
    assert contents(tmp_path / "ours") == contents(megatron_merges(parts, tmp_path / "theirs", np.uint16))
    verify_structure(tmp_path / "ours")


def test_another_file_system_is_copied_to_through_memory(tmp_path, parts, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    merge(parts, tmp_path / "ours")
    assert contents(tmp_path / "ours") == contents(megatron_merges(parts, tmp_path / "theirs", np.uint16))


def test_pointers_are_right_far_beyond_two_billion_tokens(tmp_path):
    # 30 shards of one sequence of 2^31 − 1 int32 ids, 64 billion tokens in 258 GB: the .bin are sparse files
    pieces, token = [], 0
    for number in range(30):
        prefix = write_dataset(tmp_path / f"shard{number}", [])
        with dataset_files.IndexRegions(idx_path(prefix), np.dtype(np.int32), 1, 1) as index:
            index.write_sequences(0, np.array([2**31 - 1]), 0)
            index.write_ends(0, np.array([1]))
        os.truncate(bin_path(prefix), 4 * (2**31 - 1))
    pieces = merge_plan.survey(find_datasets([str(tmp_path)]), tmp_path)
    merge_datasets.write_index(tmp_path / "all.idx", pieces, np.dtype(np.int32))
    for prefix in list(tmp_path.glob("shard*.bin")):
        prefix.unlink()
    with open(bin_path(tmp_path / "all"), "wb") as file:
        file.truncate(30 * 4 * (2**31 - 1))
    merged = verify_structure(tmp_path / "all")
    token = 4 * (2**31 - 1)
    assert merged.sequence_pointers.tolist() == [number * token for number in range(30)]
    assert merged.sequence_pointers[-1] > 2**37
    assert merged.sequence_lengths.tolist() == [2**31 - 1] * 30
    assert merged.document_boundaries.tolist() == list(range(31))
    assert merged.token_count == 30 * (2**31 - 1) > 64e9


def test_a_wider_dtype_keeps_every_id(tmp_path):
    small, large = documents(5, 0, 9), [np.array([70_000, 5, 2]), np.array([128_255])]
    write_dataset(tmp_path / "a", small, np.uint16)
    write_dataset(tmp_path / "b", large, np.int32)
    with pytest.raises(UserError, match=r"a\.bin holds uint16 and .*b\.bin holds int32\. Add --dtype int32"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    with pytest.raises(UserError, match=r"--dtype uint16: .*b\.bin holds int32, whose ids may not fit"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab", dtype="uint16")
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab", dtype="int32")
    assert contents(tmp_path / "ab") == contents(write_dataset(tmp_path / "once", small + large, np.int32))
    # the inputs' checksums are those of the inputs, not of their widened ids
    assert merged.manifest["inputs"][0]["xxh3_128"] == file_digest(bin_path(tmp_path / "a"))


def test_inputs_are_sorted_as_people_count_and_words_keep_their_order(tmp_path):
    for name in ("p10", "p9", "p1", "sub/p2", "_old/x", "run.parts/00000"):
        write_dataset(tmp_path / name, documents(3))
    for name in ("p9.manifest.json", "p9.ids.jsonl.zst"):
        (tmp_path / name).write_text("")

    def found(*words, ignored=None):
        prefixes = find_datasets([str(tmp_path / word) for word in words], ignored)
        return [str(prefix.relative_to(tmp_path)) for prefix in prefixes]

    assert found("p*") == ["p1", "p9", "p10"]
    assert found("") == ["p1", "p9", "p10", "sub/p2"]
    assert found("", ignored=tmp_path / "p9") == ["p1", "p10", "sub/p2"]
    assert found("p9.idx", "sub", "p1.bin", "p10") == ["p9", "sub/p2", "p1", "p10"]
    with pytest.raises(UserError, match="p9 is named twice"):
        found("p9", "p*")
    with pytest.raises(UserError, match="nothing names no indexed dataset"):
        found("nothing")
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="void holds no indexed dataset"):
        found("void")


def test_ids_accounts_and_lineage_are_joined(tmp_path):
    first, second = documents(5, 0, 8), documents(3, seed=1)
    a = complete_dataset(tmp_path / "a", first, name="a", refused=2)
    b = complete_dataset(tmp_path / "b", second, name="b")
    merged = merge([b, a], tmp_path / "out" / "ba")
    files = DatasetFiles(tmp_path / "out" / "ba")
    assert read_ids(files.ids) == ["b0", "a0", "a1", "a2"]
    manifest = merged.manifest
    assert manifest == json.loads(files.manifest_path.read_text())
    # of a: 3 documents + 2 refused, one document empty; of b: 1; text of 3 bytes a token
    assert manifest["counts"] == {
        "read": 6, "kept": 3, "dropped": {"empty": 1}, "quarantined": {"invalid JSON": 2}, "text_bytes": 3 * 16,
        "separators_from_text": 0,
    }  # fmt: skip
    assert (manifest["documents"], manifest["tokens"], manifest["dtype"]) == (4, 16, "uint16")
    assert manifest["id_range"] == [2, max(int(text.max()) for text in first + second if len(text))]
    assert manifest["tokenizer"]["hash"] == "a" * 64
    assert manifest["document_policy"] == {"begin": None, "end": "<|endoftext|>"}
    assert [entry["path"] for entry in manifest["inputs"]] == ["../b.bin", "../b.idx", "../a.bin", "../a.idx"]
    for entry in manifest["inputs"] + manifest["outputs"] + manifest["lineage"]:
        path = tmp_path / "out" / entry["path"]
        assert (entry["bytes"], entry["xxh3_128"]) == (path.stat().st_size, file_digest(path))
    assert [(entry["path"], entry["stage"]) for entry in manifest["lineage"]] == [
        ("../b.manifest.json", "tokenize"), ("../a.manifest.json", "tokenize"),
    ]  # fmt: skip
    assert [output["path"] for output in manifest["outputs"]] == ["ba.bin", "ba.idx", "ba.ids.jsonl.zst"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "ba.bin", "ba.ids.jsonl.zst", "ba.idx", "ba.manifest.json",
    ]  # fmt: skip
    # what was merged can be merged again
    merge([files.prefix, complete_dataset(tmp_path / "c", documents(2))], tmp_path / "again")
    assert IndexedTokens(tmp_path / "again").document_count == 5


def test_inputs_without_manifest_or_ids_are_told_of(tmp_path):
    complete_dataset(tmp_path / "a", documents(5, 0))
    write_dataset(tmp_path / "b", documents(4, 0, 0))
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    assert merged.manifest["counts"] == {"read": 5, "kept": 2, "dropped": {"empty": 3}, "quarantined": {}}
    assert merged.manifest["tokenizer"] is None and merged.manifest["document_policy"] is None
    assert not DatasetFiles(tmp_path / "ab").ids.exists()
    assert "1 of 2 inputs have no manifest that names their tokenizer" in merged.summary()
    assert "1 of 2 inputs have no table of document ids" in merged.summary()


def test_different_tokenizers_and_policies_are_refused_with_both_named(tmp_path):
    a = complete_dataset(tmp_path / "a", documents(5))
    b = complete_dataset(tmp_path / "b", documents(5), tokenizer={"hash": "b" * 64})
    with pytest.raises(UserError, match=rf"a\.manifest\.json and .*b\.manifest\.json .*\({'a' * 64} and {'b' * 64}\)"):
        merge([a, b], tmp_path / "ab")
    c = complete_dataset(tmp_path / "c", documents(5), policy={"end": None})
    with pytest.raises(UserError, match=r"begin and end with \(their text … <\|endoftext\|>; their text … their text\)"):
        merge([a, c], tmp_path / "ac")
    assert not list(tmp_path.glob("a[bc]*"))


def test_inputs_that_are_not_what_they_say_are_refused(tmp_path):
    a, b = (complete_dataset(tmp_path / name, documents(50, 9), name=name) for name in "ab")
    with open(bin_path(b), "r+b") as file:  # one id becomes another: only a checksum can tell
        file.seek(6)
        file.write(b"\x99\x00")
    with pytest.raises(UserError, match=r"b\.bin is not what b\.manifest\.json recorded"):
        merge([a, b], tmp_path / "ab")
    write_ids(b, ["b0"])
    with pytest.raises(UserError, match=r"b\.ids\.jsonl\.zst has 1 ids for 2 documents"):
        merge([a, b], tmp_path / "ab")
    write_dataset(b, documents(50))
    with pytest.raises(UserError, match=r"b\.manifest\.json speaks of 2 documents, and b\.idx has 1"):
        merge([a, b], tmp_path / "ab")
    os.truncate(bin_path(b), 10)
    with pytest.raises(UserError, match=r"b\.bin is cut short"):
        merge([a, b], tmp_path / "ab")
    with open(idx_path(a), "ab") as file:
        file.write(bytes(2))
    with pytest.raises(UserError, match=r"a\.idx has the modes of multimodal data"):
        merge([a], tmp_path / "ab")
    assert not list(tmp_path.glob("ab*"))


def test_a_finished_merge_is_skipped_and_another_one_refused(tmp_path):
    a, b = (complete_dataset(tmp_path / name, documents(size)) for name, size in (("a", 5), ("b", 6)))
    merge([a, b], tmp_path / "ab")
    assert merge([a, b], tmp_path / "ab").skipped
    assert merge([tmp_path / "[ab]*"], tmp_path / "ab").skipped  # its own result is not an input
    with pytest.raises(UserError, match="the same inputs in another order"):
        merge([b, a], tmp_path / "ab")
    with pytest.raises(UserError, match="gone or changed"):
        merge([a], tmp_path / "ab")
    with pytest.raises(UserError, match="dtype: 'uint16' there, 'int32' asked for"):
        merge([a, b], tmp_path / "ab", dtype="int32")
    with pytest.raises(UserError, match="both an input and the output"):
        merge([a, b], a)
    write_dataset(tmp_path / "foreign", documents(3))
    with pytest.raises(UserError, match=r"foreign\.bin is there without foreign\.manifest\.json"):
        merge([a, b], tmp_path / "foreign")
    bin_path(tmp_path / "ab").unlink()
    with pytest.raises(UserError, match=r"ab\.bin has 22 bytes, and it is gone"):
        merge([a, b], tmp_path / "ab")


def in_a_process_that_dies(work):
    """Run `work` in a forked process that it ends itself, as a kill would: nothing is cleaned up."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("moment", ["index", "tokens", "checksum", ".bin", ".idx", ".ids.jsonl.zst", "manifest"])
def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(tmp_path, moment):
    parts = [complete_dataset(tmp_path / f"part{number}", documents(300, 0, 9, seed=number)) for number in range(4)]
    merge(parts, tmp_path / "once")

    def die(*_, **__):
        os._exit(9)

    def killed():
        if moment == "index":
            merge_datasets.write_index = die
        elif moment == "tokens":
            merge_datasets._Copy.__call__ = die
        elif moment == "checksum":
            merge_datasets._Merge._read_back = die
        elif moment == "manifest":
            merge_datasets.manifests.write_json = die
        else:
            replace = os.replace
            merge_datasets.os.replace = lambda old, new: (replace(old, new), str(new).endswith(moment) and die())
        merge(parts, tmp_path / "out" / "killed")

    in_a_process_that_dies(killed)
    merge(parts, tmp_path / "out" / "killed")
    assert contents(tmp_path / "out" / "killed") == contents(tmp_path / "once")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"killed.bin", "killed.idx", "killed.ids.jsonl.zst", "killed.manifest.json"}


def test_too_little_space_is_said_before_anything_is_written(tmp_path, parts, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"0\.00 GB free, and the result needs 0\.02 GB"):
        merge(parts, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_full_disk_leaves_nothing_behind(tmp_path, parts, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge_datasets, "copy_bytes", full)
    with pytest.raises(UserError, match="has no space left; nothing was kept"):
        merge(parts, tmp_path / "out", workers=3)
    assert not list(tmp_path.glob("out*"))


def test_many_shards_need_few_open_files(tmp_path):
    texts = [documents(5 + number % 7, seed=number) for number in range(120)]
    for number, text in enumerate(texts):
        complete_dataset(tmp_path / "shards" / f"part_{number}", text, name=f"{number}-")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    already = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (already + 12, hard))
    try:
        merge([tmp_path / "shards"], tmp_path / "all", workers=4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert contents(tmp_path / "all") == contents(write_dataset(tmp_path / "once", [text[0] for text in texts]))
    assert read_ids(DatasetFiles(tmp_path / "all").ids) == [f"{number}-0" for number in range(120)]
    assert idx_path(tmp_path / "all").stat().st_size == index_bytes(120, 120) == 34 + 12 * 120 + 8 * 121


def test_another_merge_at_the_same_time_is_refused(tmp_path, parts):
    with merge_datasets._only_merge(DatasetFiles(tmp_path / "out")), pytest.raises(UserError, match="another merge is writing"):
        merge(parts, tmp_path / "out")
    merge(parts, tmp_path / "out")
