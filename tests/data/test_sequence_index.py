import hashlib

import numpy as np
import pytest

from megatron_native.data.indexed import IndexedWriter, verify_structure
from megatron_native.data.sequence_index import SequenceIndex
from megatron_native.errors import UserError


def dataset(tmp_path, lengths, name="x", dtype=np.int32):
    """Documents of the given lengths whose ids are all different, so that every token says where it came from."""
    start = 0
    with IndexedWriter(tmp_path / name, dtype) as writer:
        for length in lengths:
            writer.add_document(np.arange(start, start + length))
            start += length
    return verify_structure(tmp_path / name)


def generator(purpose, seed, name, epoch):
    """The seeding as the module's specification has it, written anew."""
    key = f"megatron-native/{purpose}/{seed}/{name}/{epoch}".encode()
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(key).digest(), "little")))


def brute_force(documents, seq_length, seed, name, epochs):
    """Every sequence that starts in the first `epochs` epochs, in visiting order, by building the whole stream."""
    per_epoch = sum(map(len, documents))
    further = epochs + -(-(seq_length + 1) // per_epoch)
    orders = [generator("documents", seed, name, e).permutation(len(documents)) for e in range(further)]
    stream = np.concatenate([documents[d] for order in orders for d in order])
    visited = []
    for e in range(epochs):
        starts = [k for k in range(len(stream)) if e * per_epoch <= k * seq_length < (e + 1) * per_epoch]
        # the last, which may run into the next epoch, comes last
        visited += [starts[i] for i in generator("sequences", seed, name, e).permutation(max(0, len(starts) - 1))]
        visited += starts[-1:]
    return [stream[k * seq_length : k * seq_length + seq_length + 1] for k in visited]


@pytest.mark.parametrize(
    ("lengths", "seq_length"),
    [
        ([5, 17, 1, 1, 40, 3, 9], 8),  # documents shorter and longer than a sequence
        ([64], 8),  # one document, cut evenly
        ([13], 8),  # one document, cut unevenly
        ([3, 2], 16),  # a sequence spans several epochs
        ([1], 4),  # one token for ever
        ([4, 0, 0, 6, 0], 3),  # documents without tokens
        ([7, 9], 1),
    ],
)
def test_sequences_are_those_of_the_whole_stream_built_by_hand(tmp_path, lengths, seq_length):
    data = dataset(tmp_path, lengths)
    documents = [data.document(i) for i in range(data.document_count)]
    index = SequenceIndex(data, seq_length, seed=5, name="n")
    expected = brute_force(documents, seq_length, 5, "n", epochs=4)
    assert index.first_sequence(4) == len(expected)
    for n, ids in enumerate(expected):
        assert np.array_equal(index.sequence(n), ids), n


def test_any_sequence_is_the_same_whatever_was_read_before(tmp_path):
    data = dataset(tmp_path, [5, 17, 1, 40, 3, 9])
    in_order = [SequenceIndex(data, 8, 1).sequence(n) for n in range(60)]
    index = SequenceIndex(data, 8, 1)
    for n in np.random.default_rng(0).permutation(60):
        assert np.array_equal(index.sequence(int(n)), in_order[n])
    assert index.sequence(0).dtype == np.int64


def test_every_token_of_an_epoch_is_an_input_once(tmp_path):
    data = dataset(tmp_path, [5, 17, 1, 1, 40, 3, 13])  # 80 tokens: ten sequences of 8 an epoch, no remainder
    index = SequenceIndex(data, 8, seed=3)
    for epoch in range(3):
        inputs = np.concatenate([index.sequence(epoch * 10 + n)[:-1] for n in range(10)])
        assert sorted(inputs.tolist()) == list(range(80))


def test_epochs_and_seeds_and_datasets_have_orders_of_their_own(tmp_path):
    lengths = list(range(1, 30))
    data, other = dataset(tmp_path, lengths), dataset(tmp_path, lengths[::-1], "other")

    def order(index, epoch):
        return [index.sequence(index.first_sequence(epoch) + n)[0] for n in range(20)]

    base = order(SequenceIndex(data, 8, 1), 0)
    assert base != order(SequenceIndex(data, 8, 1), 1)
    assert base != order(SequenceIndex(data, 8, 2), 0)
    assert base != order(SequenceIndex(other, 8, 1), 0)


def test_a_moved_dataset_keeps_its_order(tmp_path):
    before = SequenceIndex(dataset(tmp_path, [5, 17, 40]), 8, 1).sequence(4)
    (tmp_path / "elsewhere").mkdir()
    for suffix in ("bin", "idx"):
        (tmp_path / f"x.{suffix}").rename(tmp_path / "elsewhere" / f"y.{suffix}")
    moved = verify_structure(tmp_path / "elsewhere" / "y")
    assert np.array_equal(before, SequenceIndex(moved, 8, 1).sequence(4))


def test_spans_say_which_documents_and_epochs_a_sequence_is_made_of(tmp_path):
    data = dataset(tmp_path, [5, 17, 1, 0, 40, 3])
    index = SequenceIndex(data, 8, seed=1)
    for n in range(40):
        spans = index.spans(n)
        assert sum(span.stop - span.start for span in spans) == 8
        pieces = [data.document(span.document)[span.start : span.stop] for span in spans]
        assert np.array_equal(np.concatenate(pieces), index.sequence(n)[:-1])
        assert spans[0].epoch == index.epoch_of(n)
    short = SequenceIndex(dataset(tmp_path, [3], "short"), 8, seed=1)
    assert [tuple(span) for span in short.spans(0)] == [(0, 0, 3, 0), (0, 0, 3, 1), (0, 0, 2, 2)]


def test_orders_do_not_change_with_a_new_numpy(tmp_path):
    # written down with numpy 2: if this fails, a run resumed with this numpy would read its data in another order
    index = SequenceIndex(dataset(tmp_path, [4] * 10), 4, seed=1234, name="golden")
    assert [int(index.sequence(n)[0]) // 4 for n in range(10)] == [5, 6, 9, 3, 8, 4, 7, 2, 0, 1]


def test_a_dataset_without_tokens_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no tokens"):
        SequenceIndex(dataset(tmp_path, [0, 0]), 8, 1)
    with pytest.raises(UserError, match="seq_length is 0"):
        SequenceIndex(dataset(tmp_path, [3]), 0, 1)
    with pytest.raises(IndexError):
        SequenceIndex(dataset(tmp_path, [3]), 8, 1).sequence(-1)
