import os
import pickle
import struct

import numpy as np
import pytest

from megatron_native.data.dataset_files import document_starts
from megatron_native.data.indexed import (
    IndexedTokens,
    IndexedWriter,
    bin_path,
    idx_path,
    merge,
    token_dtype,
    verify_structure,
)
from megatron_native.errors import UserError


def random_documents(count=50, vocab_size=1000, seed=0, shortest=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, size=rng.integers(shortest, 40)) for _ in range(count)]


def write(prefix, documents, dtype=np.uint16):
    with IndexedWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add_document(document)
    return prefix


def megatron_builds(prefix, documents, dtype, lengths=None):
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(bin_path(prefix)), dtype=dtype)
    for at, document in enumerate(documents):
        own = [len(document)] if len(document) else []
        builder.add_document(torch.tensor(document, dtype=torch.int64), lengths[at] if lengths else own)
    builder.finalize(str(idx_path(prefix)))
    return prefix


def same_files(a, b):
    return all(path(a).read_bytes() == path(b).read_bytes() for path in (bin_path, idx_path))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_bytes_are_those_of_megatron_cores_builder(tmp_path, dtype):
    documents = random_documents(shortest=0) + [np.array([], dtype=np.int64)]
    ours = write(tmp_path / "ours", documents, dtype)
    assert same_files(ours, megatron_builds(tmp_path / "theirs", documents, dtype))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.bin", "ours.idx", "theirs.bin", "theirs.idx"]


def test_documents_of_several_sequences_are_megatron_cores_too(tmp_path):
    documents = [np.arange(7), np.arange(3)]
    lengths = [[2, 5], [3]]
    with IndexedWriter(tmp_path / "ours", np.int32) as writer:
        for document, own in zip(documents, lengths):
            writer.add_document(document, own)
    assert same_files(tmp_path / "ours", megatron_builds(tmp_path / "theirs", documents, np.int32, lengths))
    dataset = verify_structure(tmp_path / "ours")
    assert [dataset.document(0).tolist(), dataset[1].tolist()] == [[0, 1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6]]


def test_megatron_core_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    documents = random_documents()
    theirs = IndexedDataset(str(write(tmp_path / "ours", documents)))
    ours = IndexedTokens(megatron_builds(tmp_path / "theirs", documents, np.uint16))
    assert len(theirs) == len(ours) == len(documents)
    for at, document in enumerate(documents):
        assert theirs[at].tolist() == ours[at].tolist() == ours.document(at).tolist() == document.tolist()
    assert np.array_equal(theirs.document_indices, ours.document_boundaries)


def test_the_dtype_is_megatron_cores_choice():
    from megatron.core.datasets.indexed_dataset import DType

    for size in (100, 65_499, 65_500, 65_536, 128_256):
        assert token_dtype(size) is DType.optimal_dtype(size)


def test_merging_parts_equals_writing_at_once(tmp_path):
    documents = random_documents(90, shortest=0)
    parts = [write(tmp_path / f"part{i}", documents[i * 30 : (i + 1) * 30]) for i in range(3)]
    empty = write(tmp_path / "empty", [])
    merge([parts[0], empty, *parts[1:]], tmp_path / "merged", np.uint16)
    assert same_files(tmp_path / "merged", write(tmp_path / "whole", documents))


def test_pointers_do_not_overflow_past_two_gigabytes(tmp_path):
    # 3 × 2^30 int32 tokens, 12 GB: the .bin is a sparse file, the .idx is written by the same code as always
    with IndexedWriter(tmp_path / "big", np.int32) as writer:
        for _ in range(6):
            writer.add_document(np.empty(0, dtype=np.int32), [2**29])
    os.truncate(bin_path(tmp_path / "big"), 6 * 2**29 * 4)
    dataset = verify_structure(tmp_path / "big")
    assert dataset.sequence_pointers.tolist() == [i * 2**31 for i in range(6)]
    ((first, starts),) = document_starts(dataset)
    assert (first, starts.tolist()) == (0, [i * 2**29 for i in range(7)])
    assert dataset.document_place(5) == (5 * 2**29, 2**29)
    assert dataset.indexed_tokens == 3 * 2**30


def test_a_failed_block_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), IndexedWriter(tmp_path / "x", np.int32) as writer:
        writer.add_document(np.arange(3))
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_an_older_dataset_stands_until_the_new_one_is_whole(tmp_path):
    before = bin_path(write(tmp_path / "x", [np.arange(5)])).read_bytes()
    writer = IndexedWriter(tmp_path / "x", np.uint16)
    writer.add_document(np.arange(50))
    assert bin_path(tmp_path / "x").read_bytes() == before
    writer.abort()


def damage(offset, value):
    def change(prefix):
        content = bytearray(idx_path(prefix).read_bytes())
        content[offset : offset + len(value)] = value
        idx_path(prefix).write_bytes(content)

    return change


def cut(path, size):
    return lambda prefix: os.truncate(path(prefix), size)


SEQUENCES = 20
POINTERS = 34 + 4 * SEQUENCES
BOUNDARIES = POINTERS + 8 * SEQUENCES


@pytest.mark.parametrize(
    ("harm", "names", "says"),
    [
        (cut(idx_path, 0), "x.idx", "not a Megatron index"),
        (cut(idx_path, 20), "x.idx", "cut short: 20 bytes"),
        (cut(idx_path, BOUNDARIES + 8), "x.idx", "cut short: it announces 20 sequences and 20 documents"),
        (damage(0, b"PK"), "x.idx", "not a Megatron index"),
        (damage(9, b"\x02"), "x.idx", "version 2"),
        (damage(17, b"\x63"), "x.idx", "dtype code 99"),
        (damage(34 + 4 * 3, struct.pack("<i", -5)), "x.idx", "entry 3 is a negative length"),
        (damage(POINTERS + 8 * 7, struct.pack("<q", 1)), "x.idx", "entry 7 is a pointer that is not where"),
        (damage(BOUNDARIES, struct.pack("<q", 2)), "x.idx", "go from sequence 2 to 20"),
        (damage(BOUNDARIES + 8 * 5, struct.pack("<q", 19)), "x.idx", "a document boundary that goes backwards"),
        (cut(bin_path, 10), "x.bin", "cut short: it has 10 bytes"),
        (cut(bin_path, 9_999), "x.bin", "longer than its index"),
        (lambda prefix: idx_path(prefix).unlink(), "x.idx", "is not there"),
        (lambda prefix: bin_path(prefix).unlink(), "x.bin", "is not there"),
    ],
)
def test_a_damaged_dataset_is_named_with_what_is_wrong(tmp_path, harm, names, says):
    prefix = write(tmp_path / "x", random_documents(SEQUENCES))
    verify_structure(prefix, vocab_size=1000)
    harm(prefix)
    with pytest.raises(UserError, match=says) as raised:
        verify_structure(prefix)
    assert names in str(raised.value)


def test_a_dangling_link_and_a_folder_are_named(tmp_path):
    idx_path(tmp_path / "x").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="link to nothing"):
        verify_structure(tmp_path / "x")
    idx_path(tmp_path / "y").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        verify_structure(tmp_path / "y")


def test_ids_outside_the_vocabulary_are_found(tmp_path):
    prefix = write(tmp_path / "x", [np.arange(3000), np.array([1, 2, 3000])])
    with pytest.raises(UserError, match=r"holds the id 3000 at token 3,002, outside the vocabulary of 3,000"):
        verify_structure(prefix, vocab_size=3000)
    verify_structure(prefix, vocab_size=3001)


def test_a_dataset_survives_pickling_and_a_cut_while_it_is_read_is_named(tmp_path):
    dataset = IndexedTokens(write(tmp_path / "x", [np.arange(5), np.arange(9)]))
    assert pickle.loads(pickle.dumps(dataset))[1].tolist() == list(range(9))
    os.truncate(bin_path(dataset.prefix), 12)
    with pytest.raises(UserError, match=r"x\.bin ends at byte 12"):
        dataset.document(1)


def test_a_dataset_of_nothing_is_readable(tmp_path):
    dataset = verify_structure(write(tmp_path / "x", []))
    assert (len(dataset), dataset.document_count, dataset.token_count) == (0, 0, 0)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_documents_added_together_are_those_added_one_by_one(tmp_path, dtype):
    documents = [[[1, 2], [3]], [], [[4]], [[5, 6, 7], [8], [9, 10]], []]
    with IndexedWriter(tmp_path / "singly", dtype) as writer:
        for sequences in documents:
            ids = [token for sequence in sequences for token in sequence]
            writer.add_document(np.array(ids, dtype=np.int64), [len(sequence) for sequence in sequences])
    with IndexedWriter(tmp_path / "together", dtype) as writer:
        for batch in (documents[:2], documents[2:], []):
            lengths = [len(sequence) for sequences in batch for sequence in sequences]
            ids = [token for sequences in batch for sequence in sequences for token in sequence]
            writer.add_documents(np.array(ids, dtype=np.int64), lengths, [len(sequences) for sequences in batch])
    assert same_files(tmp_path / "singly", tmp_path / "together")
