"""Clusters from signatures: found as brute force finds them, in little memory, whatever the cut into parts and ranges."""

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
    verified_pairs,
)
from megatron_native.corpus.minhash import MinHashSettings, Signer, similarity_of_sketches
from megatron_native.corpus.signatures import SignaturePart, SignatureWriter, write_signatures
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


def test_signatures_come_back_as_they_were_signed(tmp_path):
    signer = Signer(SETTINGS)
    signed = [signer.sign(text) for text in ("", arabic_text(1), arabic_text(2), "***")]
    with SignatureWriter(tmp_path / "a", SETTINGS) as writer:
        for number, one in enumerate(signed):
            writer.add(one, -number)
    part = SignaturePart(tmp_path / "a")
    assert part.documents == 4
    for band in range(14):
        assert part.band(band).tolist() == [one.bands[band] for one in signed]
    assert np.array_equal(part.sketches(), [one.sketch for one in signed])
    assert [row.tobytes() for row in part.digests()] == [one.digest for one in signed]
    assert part.ranks().tolist() == [0, -1, -2, -3]
    assert part.empty().tolist() == [True, False, False, False]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), SignatureWriter(tmp_path / "a", SETTINGS):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


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
    (pairs,) = candidate_pairs(parts, 0, 1 << 30)
    assert len(pairs) == 2 * 5000 - 3  # each with the first and the one before, the second with one that is both


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
import resource, sys
from pathlib import Path
from megatron_native.corpus.clusters import verified_pairs
from megatron_native.corpus.signatures import SignaturePart
parts = [SignaturePart(Path(sys.argv[1]))]
verified_pairs(parts, 0, 0.8, 1 << 16, Path(sys.argv[1] + ".warm"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import numpy as np
verified_pairs(parts, 1, 0.8, int(sys.argv[2]), Path(sys.argv[1] + ".pairs"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_band_takes_no_more_memory_than_it_is_given(tmp_path):
    cluster_of = np.random.default_rng(5).integers(0, 1_500_000, 2_000_000)
    parts = synthetic(tmp_path, 2_000_000, cluster_of, permutations=8, bands=2)
    limit = 24 << 20
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(parts[0].path), str(limit)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    # Columns of a part are read whole: 16 MB of keys here, besides the range that is sorted.
    assert int(done.stdout) < limit + (60 << 20), f"{int(done.stdout) >> 20} MB"
