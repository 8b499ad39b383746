"""Signatures estimate the Jaccard similarity of word shingles, worked out here by brute force on sets."""

import itertools
import random

import numpy as np
import pytest

from megatron_native.corpus.arabic import fold
from megatron_native.corpus.minhash import Components, MinHasher, MinHashSettings, near_copies
from megatron_native.errors import UserError
from tests.corpus.corpus_files import arabic_text

WIDE = MinHashSettings(bands=32, rows=8)


def shingle_set(text, size=5):
    words = fold(text).split()
    return {tuple(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}


def jaccard(one, other, size=5):
    first, second = shingle_set(one, size), shingle_set(other, size)
    return len(first & second) / len(first | second)


def changed(text, places, seed=0):
    """The text with as many words, at random places, made into ones that are nowhere else."""
    generator, words = random.Random(seed), text.split()
    for place in generator.sample(range(len(words)), places):
        words[place] = f"كلمة{seed}و{place}"
    return " ".join(words)


def pairs(count=60):
    for seed in range(count):
        text = arabic_text(seed, 300)
        yield text, changed(text, seed % 40, seed)


def test_the_estimate_errs_as_a_mean_of_coin_throws_does():
    """Each position agrees with probability J: the estimate's variance is J (1 − J) / positions."""
    hasher, errors, variances = MinHasher(WIDE), [], []
    for one, other in pairs():
        similarity = jaccard(one, other)
        estimate = float((hasher.signature(fold(one)) == hasher.signature(fold(other))).mean())
        errors.append(estimate - similarity)
        variances.append(similarity * (1 - similarity) / WIDE.permutations)
    expected = float(np.sqrt(np.mean(variances)))
    assert np.sqrt(np.mean(np.square(errors))) < 1.35 * expected
    assert abs(np.mean(errors)) < 3 * expected / np.sqrt(len(errors))


def test_it_errs_no_more_than_datasketch_does():
    datasketch = pytest.importorskip("datasketch")
    hasher, ours, theirs = MinHasher(WIDE), [], []
    for one, other in pairs(30):
        similarity = jaccard(one, other)
        ours.append(float((hasher.signature(fold(one)) == hasher.signature(fold(other))).mean()) - similarity)
        sketches = []
        for text in (one, other):
            sketch = datasketch.MinHash(num_perm=WIDE.permutations)
            sketch.update_batch([" ".join(words).encode() for words in shingle_set(text)])
            sketches.append(sketch)
        theirs.append(sketches[0].jaccard(sketches[1]) - similarity)
    assert np.sqrt(np.mean(np.square(ours))) < 1.4 * np.sqrt(np.mean(np.square(theirs)))


def test_signatures_are_the_same_whenever_and_in_whatever_pieces_they_are_made():
    text = fold(arabic_text(1, 9000))  # more shingles than one block takes
    first, second = MinHasher(MinHashSettings()), MinHasher(MinHashSettings())
    assert np.array_equal(first.signature(text), second.signature(text))
    assert first.signature(text).shape == (112,)
    assert first.signature(text).dtype == np.uint32
    halves = [first.signature(" ".join(text.split()[part])) for part in (slice(0, 5002), slice(4998, None))]
    assert np.array_equal(np.minimum(*halves), first.signature(text))  # the minimum over a union is the smaller minimum


@pytest.mark.parametrize(("words", "count"), [(1, 1), (5, 1), (6, 2), (10, 6)])
def test_a_text_has_a_shingle_for_every_run_of_five_words(words, count):
    text = fold(" ".join(f"كلمة{number}" for number in range(words)))
    assert len(MinHasher(MinHashSettings()).shingles(text)) == count


def test_short_texts_are_not_all_alike():
    hasher = MinHasher(MinHashSettings())
    texts = ["نعم", "لا", "شكرا جزيلا", "صباح الخير", "صباح الخير يا صديقي", ""]
    texts += ["واحد اثنان ثلاثة أربعة خمسة", "واحد اثنان ثلاثة أربعة ستة"]
    signatures = np.stack([hasher.signature(fold(text)) for text in texts])
    assert list(near_copies(signatures, MinHashSettings())) == []


@pytest.mark.parametrize(
    ("bands", "rows", "similarity", "probability"),
    [(14, 8, 0.8, 0.9235), (14, 8, 0.9, 0.9996), (14, 8, 0.5, 0.0533), (20, 5, 0.8, 0.99964), (1, 1, 0.3, 0.3)],
)  # 20 bands of 5: the book's own example, Mining of Massive Datasets, figure 3.8
def test_the_probability_of_being_looked_at(bands, rows, similarity, probability):
    assert MinHashSettings(bands=bands, rows=rows).candidate_probability(similarity) == pytest.approx(probability, abs=1e-4)


def test_bands_make_candidates_as_often_as_the_formula_says():
    """Signatures drawn so that two agree at each position with probability s, with no text behind them."""
    generator, settings, similarity, trials = np.random.default_rng(4), MinHashSettings(threshold=1e-9), 0.7, 2000
    first = generator.integers(0, 1 << 32, (trials, settings.permutations), dtype=np.uint32)
    other = generator.integers(0, 1 << 32, (trials, settings.permutations), dtype=np.uint32)
    second = np.where(generator.random(first.shape) < similarity, first, other)
    found = {pair[:2] for pair in near_copies(np.concatenate([first, second]), settings)}
    assert all(j - i == trials for i, j in found)
    expected = settings.candidate_probability(similarity)
    assert len(found) / trials == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / trials))


def test_planted_near_copies_are_found_and_nothing_else():
    settings = MinHashSettings()
    texts = [arabic_text(seed, 300) for seed in range(60)]
    texts += [changed(text, 3, seed) for seed, text in enumerate(texts[:40])]  # 15 of some 300 shingles
    texts += [changed(text, 60, 99) for text in texts[40:60]]
    sets = [shingle_set(text) for text in texts]
    exact = {
        (i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in itertools.combinations(range(len(sets)), 2)
    }
    planted = {pair for pair, similarity in exact.items() if similarity >= 0.9}
    assert len(planted) >= 38
    signatures = np.stack([MinHasher(settings).signature(fold(text)) for text in texts])
    found = {(i, j): similarity for i, j, similarity in near_copies(signatures, settings)}
    assert planted <= set(found)
    assert all(exact[pair] > 0.65 for pair in found)
    for (i, j), similarity in found.items():
        assert similarity == (signatures[i] == signatures[j]).mean() >= settings.threshold


def test_a_large_group_of_copies_is_joined_without_comparing_every_pair():
    settings, count = MinHashSettings(), 3000
    signatures = np.tile(MinHasher(settings).signature(fold(arabic_text(1))), (count, 1))
    components, compared = Components(count), 0
    for one, other, _ in near_copies(signatures, settings):
        components.join(one, other)
        compared += 1
    assert {components.find(item) for item in range(count)} == {0}
    assert compared < 2 * count


def test_no_documents_have_no_copies():
    assert list(near_copies(np.empty((0, 112), np.uint32), MinHashSettings())) == []


def test_components_agree_with_a_search_through_the_graph():
    generator = random.Random(2)
    edges = [(generator.randrange(200), generator.randrange(200)) for _ in range(120)]
    components = Components(200)
    for edge in edges:
        components.join(*edge)
    reached = {node: {node} for node in range(200)}
    for one, other in edges:
        joined = reached[one] | reached[other]
        for node in joined:
            reached[node] = joined
    assert [components.find(node) for node in range(200)] == [min(reached[node]) for node in range(200)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shingle_words": 0}, "--shingle-words 0: it must be 1 or more"),
        ({"bands": 0}, "--bands 0"),
        ({"rows": -1}, "--rows -1"),
        ({"threshold": 80}, "--threshold 80: a Jaccard similarity lies above 0 and is 1 at most"),
        ({"threshold": 0.0}, "--threshold 0.0"),
        ({"threshold": float("nan")}, "--threshold nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        MinHashSettings(**settings).check()
