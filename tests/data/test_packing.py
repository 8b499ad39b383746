"""Packing and changes of it: every token of an epoch once, documents whole where they fit, nothing again too early."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_native.data.best_fit import pack
from megatron_native.data.index_cache import IndexCache
from megatron_native.data.indexed import IndexedTokens, IndexedWriter
from megatron_native.data.samples import LossPolicy
from megatron_native.data.sequence_index import SequenceIndex, Taken
from megatron_native.errors import UserError

EOD = 9999


def dataset(prefix: Path, lengths: list[int]) -> IndexedTokens:
    """Documents of the given lengths whose ids are all different, but for the separator that ends each."""
    start = 0
    with IndexedWriter(prefix, np.int32) as writer:
        for length in lengths:
            ids = np.arange(start, start + length)
            if length:
                ids[-1] = EOD
            writer.add_document(ids)
            start += length
    return IndexedTokens(prefix)


def tokens_of(index: SequenceIndex, n: int) -> list[tuple[int, int, int]]:
    """(epoch, document, place) of every token of a sequence."""
    return [(span.epoch, span.document, at) for span in index.spans(n) for at in range(span.start, span.stop)]


def greedy_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """Space left in every bin by the definition: the longest first, each where it leaves least."""
    left: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in left if space >= length]
        if fitting:
            left[left.index(min(fitting))] -= length
        else:
            left.append(capacity - length)
    return sorted(left)


@given(st.lists(st.integers(1, 130), min_size=1, max_size=80), st.sampled_from([130, 131, 200, 4097]))
def test_best_fit_is_that_of_the_definition(lengths: list[int], capacity: int) -> None:
    order, first_piece = pack(np.array(lengths, dtype=np.int32), capacity)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    bins = [order[low:high] for low, high in pairwise(first_piece)]
    assert sorted(capacity - sum(lengths[piece] for piece in group) for group in bins) == greedy_best_fit(
        lengths, capacity
    )
    assert all(list(group) == sorted(group) for group in bins)


def test_best_fit_cuts_only_what_is_longer_than_a_sequence(tmp_path: Path) -> None:
    lengths = [3, 8, 1, 20, 5, 7, 16, 2, 0, 9]
    index = SequenceIndex(dataset(tmp_path / "x", lengths), 8, seed=3, packing="best_fit")
    for epoch in range(2):
        pieces = [
            span for n in range(index.first_sequence(epoch), index.first_sequence(epoch + 1)) for span in index.spans(n)
        ]
        assert {span.epoch for span in pieces} == {epoch}
        cuts = Counter(span.document for span in pieces)
        assert cuts == Counter({d: -(-length // 8) for d, length in enumerate(lengths) if length})
        read = sorted((span.document, at) for span in pieces for at in range(span.start, span.stop))
        assert read == [(d, at) for d, length in enumerate(lengths) for at in range(length)]


def test_best_fit_packs_each_epoch_anew(tmp_path: Path) -> None:
    index = SequenceIndex(dataset(tmp_path / "x", [3, 4, 2, 6, 1, 5] * 6), 8, seed=3, packing="best_fit")
    numbers = [range(index.first_sequence(epoch), index.first_sequence(epoch + 1)) for epoch in range(2)]
    first, second = ({frozenset(span.document for span in index.spans(n)) for n in group} for group in numbers)
    assert first != second


WAYS = st.tuples(st.sampled_from(["concatenate", "best_fit"]), st.sampled_from([4, 7, 16]), st.integers(0, 25))


@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 5, 13, 40]), min_size=1, max_size=14).filter(any),
    ways=st.lists(WAYS, min_size=1, max_size=4),
)
def test_nothing_comes_again_before_the_rest_whatever_changes(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], ways: list[tuple[str, int, int]]
) -> None:
    data = dataset(tmp_path_factory.mktemp("d") / "x", lengths)
    history: list[Taken] = []
    read: list[list[tuple[int, int, int]]] = []
    for packing, seq_length, count in ways:
        index = SequenceIndex(data, seq_length, 5, "n", packing, history)
        read += [tokens_of(index, n) for n in range(count)]
        if count:
            history.append(Taken(packing, seq_length, count))
    tokens = [token for sequence in read for token in sequence]
    assert len(set(tokens)) == len(tokens), "no token of an epoch twice"
    # An epoch is begun only when the one before is used up but for the sequence that runs from one into the other.
    everything = {(document, place) for document, length in enumerate(lengths) for place in range(length)}
    seen: dict[int, set[tuple[int, int]]] = {}
    for sequence in read:
        for epoch, document, place in sequence:
            seen.setdefault(epoch, set()).add((document, place))
        for epoch in list(seen):
            assert epoch == 0 or seen.get(epoch - 1) == everything, "the epoch before is read to its end"


def test_what_a_change_leaves_is_read_next(tmp_path: Path) -> None:
    data = dataset(tmp_path / "x", [6, 11, 3, 20, 8])
    before = SequenceIndex(data, 4, 1, "n")
    first = [token for n in range(5) for token in tokens_of(before, n)]
    after = SequenceIndex(data, 8, 1, "n", "best_fit", [Taken("concatenate", 4, 5)])
    rest = [token for n in range(after.first_sequence(1)) for token in tokens_of(after, n)]
    assert sorted(first + rest) == [(0, d, at) for d, length in enumerate([6, 11, 3, 20, 8]) for at in range(length)]
    again = [token for n in range(after.first_sequence(1), after.first_sequence(2)) for token in tokens_of(after, n)]
    assert sorted(again) == [(1, d, at) for d, length in enumerate([6, 11, 3, 20, 8]) for at in range(length)]


@given(
    lengths=st.lists(st.sampled_from([1, 2, 5, 13, 40]), min_size=2, max_size=10),
    ways=st.lists(WAYS, min_size=1, max_size=3),
)
def test_visits_of_a_document_are_those_of_a_replay(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], ways: list[tuple[str, int, int]]
) -> None:
    data = dataset(tmp_path_factory.mktemp("d") / "x", lengths)
    history: list[Taken] = []
    replay: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for packing, seq_length, count in [*ways, ("concatenate", 6, 30)]:
        index = SequenceIndex(data, seq_length, 5, "n", packing, history)
        for n in range(count):
            for span in index.spans(n):
                visits = replay.setdefault((span.document, span.epoch), [])
                if (len(history), n) not in visits:
                    visits.append((len(history), n))
        if count:
            history.append(Taken(packing, seq_length, count))
    index = SequenceIndex(data, 6, 5, "n", "concatenate", history[:-1])
    for document in range(len(lengths)):
        for epoch in range(2):
            found = [visit for visit in index.visits(document, epoch) if visit[0] < len(history) - 1 or visit[1] < 30]
            assert found == sorted(replay.get((document, epoch), []))


def test_labels_and_masks_by_hand(tmp_path: Path) -> None:
    data = dataset(tmp_path / "x", [3, 2])  # ids 0 1 E | 3 E
    index = SequenceIndex(data, 8, 1, packing="best_fit", policy=LossPolicy(on_first=False))
    sample = index.sample(0)
    assert sample.tokens.tolist() in ([0, 1, EOD, 3, EOD, 0, 0, 0], [3, EOD, 0, 1, EOD, 0, 0, 0])
    whole = dict.fromkeys([0, 3], None)
    for token, label, counts in zip(sample.tokens[:5], sample.labels, sample.loss_mask):
        if token == EOD:
            assert counts == 0, "nothing of the next document is known"
        else:
            assert counts == 1
            assert label == {0: 1, 1: EOD, 3: EOD}[int(token)]
            whole.pop(int(token), None)
    assert not whole
    assert sample.loss_mask[5:].tolist() == [0, 0, 0]
    assert sorted(sample.document_lengths[:2].tolist()) == [2, 3]
    assert sample.document_lengths[2] == 3


def test_the_cut_end_of_a_sequence_has_its_documents_next_token_as_label(tmp_path: Path) -> None:
    index = SequenceIndex(dataset(tmp_path / "x", [20]), 8, 1, packing="best_fit")
    for n in range(3):
        sample, span = index.sample(n), index.spans(n)[0]
        count = span.stop - span.start
        assert sample.labels[count - 1] == (span.stop if span.stop < 19 else EOD if span.stop == 19 else 0)
        assert sample.loss_mask[count - 1] == (1 if span.stop < 20 else 0)


def test_separators_need_not_count(tmp_path: Path) -> None:
    data = dataset(tmp_path / "x", [3, 4, 2, 5])
    for packing in ("concatenate", "best_fit"):
        counted = SequenceIndex(data, 7, 1, "n", packing).sample(0)
        without = SequenceIndex(data, 7, 1, "n", packing, policy=LossPolicy(True, False, EOD)).sample(0)
        assert np.array_equal(without.loss_mask, np.where(counted.labels == EOD, 0, counted.loss_mask))
        assert without.loss_mask.sum() < counted.loss_mask.sum()


def test_first_tokens_need_not_count(tmp_path: Path) -> None:
    data = dataset(tmp_path / "x", [3, 4, 2, 5])
    counted = SequenceIndex(data, 7, 1, "n").sample(0)
    without = SequenceIndex(data, 7, 1, "n", policy=LossPolicy(on_first=False)).sample(0)
    assert counted.loss_mask.tolist() == [1] * 7
    assert without.loss_mask.tolist() == [0.0 if token == EOD else 1.0 for token in counted.tokens]


def test_a_cache_changes_nothing_and_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_native.data.index_cache.IN_MEMORY", 1)
    data = dataset(tmp_path / "x", [6, 11, 3, 20, 8] * 5)
    said: list[str] = []
    for packing in ("concatenate", "best_fit"):
        plain = SequenceIndex(data, 7, 1, "n", packing)
        for _ in range(2):
            cached = SequenceIndex(data, 7, 1, "n", packing, cache=IndexCache(tmp_path / "cache", said.append))
            for n in range(40):
                assert cached.spans(n) == plain.spans(n)
    assert len(said) == len(set(said)) > 0
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_cache_of_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_native.data.index_cache.IN_MEMORY", 1)
    SequenceIndex(dataset(tmp_path / "x", [6, 11]), 7, 1, "n", cache=IndexCache(tmp_path / "cache")).sample(0)
    for key in (tmp_path / "cache").glob("*/key.json"):
        key.write_text(key.read_text().replace('"seed": 1', '"seed": 2'))
    with pytest.raises(UserError, match=r"sequence index of other data \(seed differ\)"):
        SequenceIndex(dataset(tmp_path / "x", [6, 11]), 7, 1, "n", cache=IndexCache(tmp_path / "cache")).sample(0)


def test_more_tokens_than_an_int32_counts(tmp_path: Path) -> None:
    lengths = [1_500_000_000, 1_500_000_000, 10]  # a sparse .bin of 6 GB that takes no space
    with IndexedWriter(tmp_path / "x", np.uint16) as writer:
        for _ in lengths:
            writer.add_document(np.zeros(1, np.uint16))
    raw = bytearray((tmp_path / "x.idx").read_bytes())
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    raw[34:46] = np.array(lengths, "<i4").tobytes()
    raw[46:70] = (starts * 2).astype("<i8").tobytes()
    (tmp_path / "x.idx").write_bytes(raw)
    with open(tmp_path / "x.bin", "wb") as file:
        file.truncate(sum(lengths) * 2)
    index = SequenceIndex(IndexedTokens(tmp_path / "x"), 1 << 20, 1)
    assert index.tokens_per_epoch == 3_000_000_010
    count = index.sequences_in(0)
    assert count == -(-3_000_000_010 // (1 << 20))
    assert sum(s.stop - s.start for n in range(count) for s in index.spans(n) if s.epoch == 0) == 3_000_000_010
