"""Length shift by hand."""

import pytest

from megatron_native.alignment.analyses.lengths import length_shift
from tests.alignment.analyses.pairs import pair


def test_lengths_are_counted_in_characters_words_and_sentences():
    found = {
        one.unit: one
        for one in length_shift(
            [pair("ذهب الولد. عاد الولد.", "ذهب الولد."), pair("جاء.", "جاء."), pair("نام", "نام الولد الآن")]
        )
    }
    assert {unit: (one.before, one.after) for unit, one in found.items()} == {
        "characters": (21 + 4 + 3, 10 + 4 + 14), "words": (4 + 1 + 1, 2 + 1 + 3), "sentences": (2 + 1 + 1, 1 + 1 + 1),
    }  # fmt: skip
    words = found["words"]
    assert words.mean_ratio.value == pytest.approx((0.5 + 1 + 3) / 3)
    assert (words.shorter, words.same, words.longer) == (1, 1, 1)
    assert words.ratio.bins[-1][2] == 1  # a ratio of 3 is in the last bin, which ends at 2
    assert found["sentences"].shorter == 1


def test_a_pair_with_nothing_before_has_no_ratio():
    (characters, *_) = length_shift([pair("", "نص")])
    assert (characters.after, characters.mean_ratio, characters.longer) == (2, None, 1)
