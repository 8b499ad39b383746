"""Clusters from signatures: found as brute force finds them, in little memory, whatever the cut into parts and ranges."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_native.corpus.clusters import (
    PAIR,
    Sketches,
    candidate_pairs,
    choose_keepers,
    components,
    first_numbers,
    verified_pairs,
)
from megatron_native.corpus.minhash import MinHashSettings, Signer, similarity_of_sketches
from megatron_native.corpus.signatures import SignaturePart, SignatureWriter, write_signatures
from megatron_native.errors import UserError
from tests.corpus.corpus_files import arabic_text
from tests.corpus.test_minhash import changed

SETTINGS = MinHashSettings()
ROOT = Path(__file__).resolve().parents[2]


def synthetic(folder, documents, cluster_of, cuts=(), bands=4, permutations=32, seed=0):
    """Signature files in which documents of one cluster share every band and their sketch."""
    generator = np.random.default_rng(seed)
    clusters = int(cluster_of.max()) + 1
    keys = generator.integers(0, 1 << 63, (bands, clusters), dtype=np.uint64) * np.uint64(2)
    sketches = generator.integers(0, 256, (clusters, permutations), dtype=np.uint8)
    digests = generator.integers(0, 256, (documents, 16), dtype=np.uint8)
    parts = []
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, documents])):
        here = cluster_of[start:stop]
        path = folder / f"{number}.signatures"
        write_signatures(
            path, digests[start:stop], keys[:, here], sketches[here], np.arange(start, stop, dtype=np.int64)
        )
        parts.append(SignaturePart(path))
    return parts


def clusters_of(roots):
    groups = {}
    for number, root in enumerate(roots.tolist()):
        groups.setdefault(root, []).append(number)
    return sorted(group for group in groups.values() if len(group) > 1)


@pytest.mark.parametrize("memory_bytes", [1 << 30, 20_000, 2_000])
@pytest.mark.parametrize("cuts", [(), (10, 10, 700)])
def test_planted_clusters_are_found_however_they_are_cut(tmp_path, memory_bytes, cuts):
    cluster_of = np.random.default_rng(1).integers(0, 400, 1000)
    parts = synthetic(tmp_path, 1000, cluster_of, cuts)
    files = []
    for band in range(4):
        files.append(tmp_path / f"{band}.pairs")
        verified_pairs(parts, band, 0.8, memory_bytes, files[-1])
    planted = sorted(np.flatnonzero(cluster_of == c).tolist() for c in range(400) if (cluster_of == c).sum() > 1)
    assert clusters_of(components(files, 1000, memory_bytes)) == planted


def test_pairs_are_those_of_brute_force_on_real_signatures(tmp_path):
    signer, texts = Signer(SETTINGS), []
    for seed in range(40):
        texts += [arabic_text(seed, 200), changed(arabic_text(seed, 200), seed // 2, seed)]
    signed = [signer.sign(text) for text in texts]
    with SignatureWriter(tmp_path / "a", SETTINGS) as writer:
        for one in signed:
            writer.add(one, 0)
    part = SignaturePart(tmp_path / "a")
    for band in range(3):
        count = verified_pairs([part], band, 0.8, 1 << 20, tmp_path / "pairs")
        found = {tuple(map(int, pair)) for pair in np.fromfile(tmp_path / "pairs", dtype=PAIR)}
        expected = {
            (i, j) for i in range(80) for j in range(i + 1, 80)
            if signed[i].bands[band] == signed[j].bands[band]
            and similarity_of_sketches(signed[i].sketch, signed[j].sketch) >= 0.8
        }  # fmt: skip
        assert found == expected
        assert count == len(found)
        assert found, "the sample has near copies in every band"


def test_a_large_bucket_costs_no_more_than_its_size(tmp_path):
    parts = synthetic(tmp_path, 5000, np.zeros(5000, dtype=np.int64))
    expected = {(0, other) for other in range(1, 5000)} | {(other - 1, other) for other in range(2, 5000)}
    for memory_bytes in (1 << 30, 1 << 10):  # at once, and in pieces
        pairs = np.concatenate(list(candidate_pairs(parts, 0, memory_bytes, tmp_path / "spool")))
        assert len(pairs) == 2 * 5000 - 3  # each with the first and the one before, the second with one that is both
        assert set(map(tuple, pairs.tolist())) == expected
    assert not (tmp_path / "spool").exists()


def test_pairs_are_the_same_however_little_memory_there_is(tmp_path):
    """A bucket of half the documents, many small ones and many documents alone, dealt out once, twice and in pieces."""
    generator = np.random.default_rng(4)
    cluster_of = np.where(generator.random(30_000) < 0.5, 0, generator.integers(1, 12_000, 30_000))
    parts = synthetic(tmp_path, 30_000, cluster_of, cuts=(1, 9000, 9000, 25_000), bands=1)
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "3").write_bytes(b"what a run that was killed left")
    found = []
    for memory_bytes in (1 << 30, 1 << 20, 200_000, 1):
        blocks = list(candidate_pairs(parts, 0, memory_bytes, tmp_path / "spool"))
        assert all((np.diff(block.view("<u4").reshape(-1, 2)[:, 0].astype(int)) >= 0).all() for block in blocks)
        found.append(np.sort(np.concatenate(blocks)))
    expected = set()
    for cluster in np.unique(cluster_of):
        members = np.flatnonzero(cluster_of == cluster).tolist()
        expected |= {(members[0], other) for other in members[1:]} | set(itertools.pairwise(members))
    assert set(map(tuple, found[0].tolist())) == expected
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_stored_documents_are_paired_with_others_alone_however_little_memory_there_is(tmp_path):
    """Each of the others with a bucket's first four stored ones and the last, the first of its kind and the one before."""
    generator = np.random.default_rng(6)
    cluster_of = np.where(generator.random(20_000) < 0.4, 0, generator.integers(1, 4000, 20_000))
    parts, stored = synthetic(tmp_path, 20_000, cluster_of, cuts=(4000, 9000), bands=1), 9000
    expected = set()
    for cluster in np.unique(cluster_of):
        members = np.flatnonzero(cluster_of == cluster).tolist()
        old, new = [n for n in members if n < stored], [n for n in members if n >= stored]
        expected |= {(one, other) for other in new for one in {*old[:4], *old[-1:]}}
        expected |= {(new[0], other) for other in new[1:]} | set(itertools.pairwise(new))
    for memory_bytes in (1 << 30, 1 << 20, 200_000, 1):
        pairs = np.concatenate(list(candidate_pairs(parts, 0, memory_bytes, tmp_path / "spool", stored)))
        assert len(pairs) == len(expected)
        assert set(map(tuple, pairs.tolist())) == expected


def test_a_band_is_written_byte_for_byte_again(tmp_path):
    parts = synthetic(tmp_path, 5000, np.random.default_rng(6).integers(0, 2000, 5000), cuts=(1234,))
    for name in ("a", "b"):
        verified_pairs(parts, 1, 0.8, 100_000, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != b""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.signatures", "1.signatures", "a", "b"]


def test_more_documents_than_32_bits_number_are_refused():
    class Part:
        documents = (1 << 31) + 1

    with pytest.raises(UserError, match="4,294,967,298 documents are too many"):
        first_numbers([Part(), Part()])


def test_keys_that_meet_by_chance_are_undone_by_the_sketches(tmp_path):
    generator = np.random.default_rng(3)
    keys = np.zeros((1, 2), dtype=np.uint64)
    sketches = generator.integers(0, 256, (2, 112), dtype=np.uint8)
    digests = generator.integers(0, 256, (2, 16), dtype=np.uint8)
    write_signatures(tmp_path / "a", digests, keys, sketches, np.zeros(2, dtype=np.int64))
    assert verified_pairs([SignaturePart(tmp_path / "a")], 0, 0.8, 1 << 20, tmp_path / "pairs") == 0


def test_digests_that_agree_in_half_their_bits_are_not_equal(tmp_path):
    digests = np.zeros((3, 16), dtype=np.uint8)
    digests[1, 15] = 1  # the same leading half as the first, another one behind it
    write_signatures(
        tmp_path / "a",
        digests,
        np.arange(3, dtype=np.uint64)[None],
        np.zeros((3, 8), dtype=np.uint8),
        np.zeros(3, dtype=np.int64),
    )
    assert verified_pairs([SignaturePart(tmp_path / "a")], -1, 0.8, 1 << 20, tmp_path / "pairs") == 1
    assert np.fromfile(tmp_path / "pairs", dtype=PAIR).tolist() == [(0, 2)]


def test_sketches_are_looked_up_over_parts_in_any_order(tmp_path):
    parts = synthetic(tmp_path, 50, np.arange(50), cuts=(20, 20))
    whole = np.concatenate([part.sketches() for part in parts])
    numbers = np.array([49, 0, 20, 19, 20, 3], dtype=np.uint32)
    assert np.array_equal(Sketches(parts).rows(numbers), whole[numbers])


def test_the_highest_rank_stays_and_of_equal_ones_the_first():
    roots = np.array([0, 0, 0, 3, 3, 5], dtype=np.uint32)
    assert choose_keepers(roots, np.array([1, 7, 7, 2, 2, 0])).tolist() == [1, 1, 1, 3, 3, 5]


MEASURE = """
import sys
from pathlib import Path
from megatron_native.corpus.clusters import verified_pairs
from megatron_native.corpus.signatures import SignaturePart

def peak():  # of this process: ru_maxrss would begin with what the process had that started it
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

big, small, column, limit, stored = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
for memory_bytes in (1, 1 << 30):  # compiled code is loaded
    verified_pairs([SignaturePart(small)], column, 0.8, memory_bytes, small.with_suffix(".pairs"), stored)
before = peak()
count = verified_pairs([SignaturePart(big)], column, 0.8, limit, big.with_suffix(".pairs"), stored)
print(count, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize(("column", "stored"), [(0, 0), (-1, 0), (0, 1000)])
@pytest.mark.parametrize("kind", ["pairs", "one bucket"])
def test_a_band_takes_no_more_memory_than_it_is_given(tmp_path, kind, column, stored):
    """A million documents whose keys and pairs are 24 MB at least; of them 112 MB of sketches are looked at."""
    count, limit = 1_000_000, 16 << 20
    generator = np.random.default_rng(5)
    cluster_of = np.zeros(count, dtype=np.int64) if kind == "one bucket" else np.tile(np.arange(count // 2), 2)
    for name, number in (("big", count), ("small", 5000)):
        here = cluster_of[:number]
        keys = generator.integers(0, 1 << 63, count, dtype=np.uint64)[here]
        digests = np.stack([keys, keys], axis=1).view(np.uint8)
        sketches = np.zeros((number, 112), dtype=np.uint8)
        write_signatures(tmp_path / name, digests, keys[None], sketches, np.zeros(number, dtype=np.int64))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "big"), str(tmp_path / "small"), str(column), str(limit), str(stored)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found, taken = map(int, done.stdout.split())
    new = count - stored  # in the bucket each with five stored ones too
    assert found == (2 * new - 3 + 5 * new * (stored > 0) if kind == "one bucket" else count // 2)
    assert taken < limit + (4 << 20), f"{taken >> 20} MB"  # a block of 65,536 keys and its copies besides
