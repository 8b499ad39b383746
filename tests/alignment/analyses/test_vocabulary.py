"""Vocabulary shift against scipy and by hand."""

import numpy as np
import pytest
from scipy.stats import chi2, chi2_contingency

from megatron_native.alignment.analyses.vocabulary import SIGNIFICANT, log_likelihood, vocabulary_shift
from tests.alignment.analyses.pairs import pair


@pytest.mark.parametrize(
    ("a", "b", "n", "m"), [(10, 30, 1000, 1200), (0, 25, 500, 400), (7, 7, 900, 900), (40, 0, 300, 9000)]
)
def test_g2_is_the_likelihood_ratio_of_the_two_by_two_table(a, b, n, m):
    table = [[a, b], [n - a, m - b]]
    expected = chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
    assert log_likelihood(np.array([a]), np.array([b]), n, m)[0] == pytest.approx(expected, abs=1e-9)


def test_the_threshold_is_of_one_in_ten_thousand():
    assert chi2.sf(SIGNIFICANT, 1) == pytest.approx(1e-4, rel=0.01)


def test_words_that_come_and_go_are_found_in_any_spelling():
    pairs = [pair("اشترك الآن في القناة، وذهبَ أحمد إلى المدرسه", "وذهب احمد الى المدرسة قريبًا abc") for _ in range(40)]
    found = vocabulary_shift(pairs)
    assert (found.words_before, found.words_after) == (8 * 40, 6 * 40)
    assert (found.types_before, found.types_after, found.types_lost, found.types_gained) == (8, 6, 4, 2)
    assert {(one.word, one.before, one.after) for one in found.lost} == {
        (word, 40, 0) for word in ("اشترك", "الان", "في", "القناه")
    }
    assert {one.word for one in found.gained} == {"قريبا", "abc"}  # ذهب, احمد, الي, المدرسه are the same words
    assert (found.foreign_before, found.foreign_after) == (0, 3 * 40)
    assert found.letters_before == 40 * len("اشتركالآنفيالقناةوذهبأحمدإلىالمدرسه")
    assert all(one.g2 > SIGNIFICANT for one in found.lost + found.gained)


def test_no_pairs_have_no_words():
    assert vocabulary_shift([]).gained == []
