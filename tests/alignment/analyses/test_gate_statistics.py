"""Counts over all pairs, and the scores of gates, by hand."""

from megatron_native.alignment.analyses.gate_statistics import GateCounts
from tests.alignment.analyses.pairs import pair

PAIRS = [
    pair("ا", "ب", gates={"length": (1.0, True), "numbers": (0.0, True)}),
    pair("ا", "ج", "refused", reasons=("numbers: new: 7",), gates={"length": (1.0, True), "numbers": (1.0, False)}),
    pair("ا", "د", "refused", reasons=("length: 9 words became 1", "numbers: lost: 3"),
         gates={"length": (0.1, False), "numbers": (2.0, False)}),
    pair("ا", None, "quarantined", reasons=("no endpoint answers",)),
    pair("ا", "ا", "unchanged"),
]  # fmt: skip


def test_what_each_gate_refused_and_refused_alone():
    counts = GateCounts()
    for one in PAIRS:
        counts.count(one)
    assert dict(counts.states) == {"rewritten": 1, "refused": 2, "quarantined": 1, "unchanged": 1}
    assert dict(counts.kinds) == {"numbers": 2, "length": 1, "no endpoint answers": 1}
    numbers, length = counts.gates(PAIRS)
    assert (numbers.gate, numbers.judged, numbers.refused, numbers.alone) == ("numbers", 3, 2, 1)
    assert (length.gate, length.judged, length.refused, length.alone) == ("length", 3, 1, 0)
    assert (length.refused_scores.count, length.refused_scores.mean, length.passed_scores.mean) == (1, 0.1, 1.0)
