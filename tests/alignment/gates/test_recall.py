"""What the gates catch of the cases written by hand, as shares: a floor under both halves, and a ceiling of false alarms.

Cases of the test half are never shown by themselves: gates are made on the tuning half.
"""

from functools import cache

import pytest

from megatron_native.alignment.gates.judging import build_gates
from tests.alignment.gate_halves import cases_of, half_of

LEAST_TUNING, MOST_FALSE_TUNING = 0.98, 0.02
LEAST_TEST, LEAST_OF_A_KIND, MOST_FALSE_TEST = 0.97, 0.85, 0.2


@cache
def refused(half):
    """{kind: (refused, all)}."""
    gates = build_gates()
    return {
        kind: (sum(not gates.judge(case["origin"], case["rewritten"]).passed for case in cases), len(cases))
        for kind, cases in cases_of(half).items()
    }


def caught(half):
    damaged = [counts for kind, counts in refused(half).items() if kind != "good"]
    return sum(hits for hits, _ in damaged) / sum(total for _, total in damaged)


def test_a_half_is_all_cases_of_its_origins():
    tuning, test = cases_of("tuning"), cases_of("test")
    assert all(half_of(case["origin"]) == "tuning" for cases in tuning.values() for case in cases)
    origins = [{case["origin"] for cases in half.values() for case in cases} for half in (tuning, test)]
    assert not origins[0] & origins[1]
    assert all(len(cases) >= 13 for half in (tuning, test) for cases in half.values())


@pytest.mark.parametrize(("half", "floor"), [("tuning", LEAST_TUNING), ("test", LEAST_TEST)])
def test_damaged_rewrites_are_caught(half, floor):
    assert caught(half) >= floor


@pytest.mark.parametrize(("half", "ceiling"), [("tuning", MOST_FALSE_TUNING), ("test", MOST_FALSE_TEST)])
def test_good_rewrites_pass(half, ceiling):
    hits, total = refused(half)["good"]
    assert hits / total <= ceiling


def test_no_kind_is_missed():
    assert min(hits / total for kind, (hits, total) in refused("test").items() if kind != "good") >= LEAST_OF_A_KIND
