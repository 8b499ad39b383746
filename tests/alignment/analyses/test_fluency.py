"""Perplexity before and after, by hand from given likelihoods."""

import math

import pytest

from megatron_native.alignment.analyses.fluency import fluency_change
from megatron_native.alignment.perplexity import TextScore
from tests.alignment.analyses.pairs import pair


class Given:
    """Likelihoods as given for texts."""

    def __init__(self, nats):
        self.nats, self.asked = nats, []

    def identity(self):
        return {"model": "given"}

    def score(self, texts, on_scored=lambda texts: None):
        self.asked += texts
        return [TextScore(self.nats[text], len(text.split()), len(text.encode())) for text in texts]


def test_the_paired_difference_of_log_perplexity_and_bits_per_byte():
    scorer = Given({"ا ب": 8.0, "ا": 2.0, "ج د": 4.0, "": 0.0})
    found = fluency_change([pair("ا ب", "ا"), pair("ج د", "ا"), pair("ا", "")], scorer)
    assert sorted(scorer.asked) == ["", "ا", "ا ب", "ج د"]  # equal texts are scored once
    assert (found.pairs, found.unscored) == (2, 1)
    log, bits = found.measures
    assert log.difference.value == pytest.approx(((2 - 8 / 2) + (2 - 4 / 2)) / 2)
    assert log.before.mean == pytest.approx(3.0) and log.lower == 1
    expected = ((2 / 2 - 8 / 5) + (2 / 2 - 4 / 5)) / 2 / math.log(2)  # an Arabic letter has two bytes
    assert bits.difference.value == pytest.approx(expected)
