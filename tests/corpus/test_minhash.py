"""Signatures estimate the Jaccard similarity of word shingles, worked out here by brute force on sets."""

import itertools
import random

import numpy as np
import pytest

from megatron_native.corpus.folding import WordFolder, fold
from megatron_native.corpus.minhash import MinHashSettings, Signer, similarity_of_sketches
from megatron_native.errors import UserError
from tests.corpus.corpus_files import STORY, arabic_text

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


def minima(signer, text):
    return signer.minima(WordFolder().words(text).hashes)


def test_the_estimate_errs_as_a_mean_of_coin_throws_does():
    """Each position agrees with probability J: the estimate's variance is J (1 − J) / positions."""
    signer, errors, of_sketches, variances = Signer(WIDE), [], [], []
    for one, other in pairs():
        similarity = jaccard(one, other)
        errors.append(float((minima(signer, one) == minima(signer, other)).mean()) - similarity)
        of_sketches.append(similarity_of_sketches(signer.sign(one).sketch, signer.sign(other).sketch) - similarity)
        variances.append(similarity * (1 - similarity) / WIDE.permutations)
    expected = float(np.sqrt(np.mean(variances)))
    for found in (errors, of_sketches):  # a byte agrees by chance once in 256, which costs next to nothing
        assert np.sqrt(np.mean(np.square(found))) < 1.35 * expected
        assert abs(np.mean(found)) < 3 * expected / np.sqrt(len(found))


def test_it_errs_no_more_than_datasketch_does():
    datasketch = pytest.importorskip("datasketch")
    signer, ours, theirs = Signer(WIDE), [], []
    for one, other in pairs(30):
        similarity = jaccard(one, other)
        ours.append(similarity_of_sketches(signer.sign(one).sketch, signer.sign(other).sketch) - similarity)
        sketches = []
        for text in (one, other):
            sketch = datasketch.MinHash(num_perm=WIDE.permutations)
            sketch.update_batch([" ".join(words).encode() for words in shingle_set(text)])
            sketches.append(sketch)
        theirs.append(sketches[0].jaccard(sketches[1]) - similarity)
    assert np.sqrt(np.mean(np.square(ours))) < 1.4 * np.sqrt(np.mean(np.square(theirs)))


def test_minima_are_those_of_the_shingles_whoever_signs():
    text = arabic_text(1, 9000)
    first, second = Signer(MinHashSettings()), Signer(MinHashSettings())
    assert np.array_equal(minima(first, text), minima(second, text))
    assert (minima(first, text).shape, minima(first, text).dtype) == ((112,), np.uint32)
    halves = [minima(first, " ".join(text.split()[part])) for part in (slice(0, 5002), slice(4998, None))]
    assert np.array_equal(np.minimum(*halves), minima(first, text))  # the minimum over a union is the smaller minimum


def test_a_text_has_a_shingle_for_every_run_of_five_words():
    signer, words = Signer(MinHashSettings()), arabic_text(3, 9).split()
    runs = [" ".join(words[start : start + 5]) for start in range(5)]
    assert np.array_equal(np.min([minima(signer, run) for run in runs], axis=0), minima(signer, " ".join(words)))
    assert not np.array_equal(minima(signer, " ".join(words[:4])), minima(signer, runs[0]))  # fewer words: one shingle of all


@pytest.mark.parametrize(
    "variant",
    [
        STORY.replace("كل", "كُلّ").replace("المعلمة", "المُعَلِّمَةُ"),
        STORY.replace("المعلمة", "المـــعلمة"),
        STORY.replace("أن ", "ان ").replace("إلى", "الى"),
        STORY.replace("القرية", "القريه"),
        STORY.replace("،", "").replace(".", " !").replace(" ", "  "),
        STORY.replace("لأ", "ﻷ"),
    ],
)
def test_another_spelling_has_the_same_signature(variant):
    one, other = Signer(MinHashSettings()).sign(STORY), Signer(MinHashSettings()).sign(variant)
    assert variant != STORY
    assert one.digest == other.digest
    assert np.array_equal(one.bands, other.bands) and np.array_equal(one.sketch, other.sketch)


def test_signs_are_compared_as_signs_and_nothing_is_empty_but_white_space():
    signer = Signer(MinHashSettings())
    signed = {text: signer.sign(text) for text in ("***", "!!!", " *** ", "َ", "ء", "", "  \n")}
    assert signed["***"].digest == signed[" *** "].digest
    assert len({signed[text].digest for text in ("***", "!!!", "َ", "ء", "")}) == 5
    assert [text for text, found in signed.items() if found.empty] == ["", "  \n"]
    assert {found.words for found in signed.values()} == {0}


def test_bands_agree_where_all_their_rows_do():
    """Pairs that share r minima of r in a band share its key, and no others: keys are 64-bit hashes of the rows."""
    settings = MinHashSettings(bands=40, rows=2)
    signer = Signer(settings)
    for one, other in itertools.islice(pairs(), 10):
        rows = (minima(signer, one) == minima(signer, other)).reshape(40, 2).all(axis=1)
        assert np.array_equal(signer.sign(one).bands == signer.sign(other).bands, rows)


def test_the_probability_of_becoming_a_candidate_by_hand():
    assert MinHashSettings(bands=2, rows=3).candidate_probability(0.5) == pytest.approx(1 - (1 - 0.125) ** 2)
    curve = dict(MinHashSettings().s_curve())
    assert curve[1.0] == 1
    assert curve[0.8] == pytest.approx(1 - (1 - 0.8**8) ** 14)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bands": 0}, "--bands 0: it must be 1 or more"),
        ({"shingle_words": -1}, "--shingle-words -1"),
        ({"threshold": 0}, "--threshold 0"),
        ({"threshold": 1.01}, "is 1 at most"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        MinHashSettings(**settings).check()
