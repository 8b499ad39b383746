"""The cases written by hand are whole: fields, ids, counts, and verses that the origins quote exactly."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from megatron_native.corpus.folding import code_points
from megatron_native.corpus.scripture import ScriptureFinder

CASES = Path(__file__).with_name("gate_cases")
DAMAGED = (
    "number_changed",
    "name_changed",
    "url_or_quotation_changed",
    "invented",
    "summarised",
    "cut_off",
    "translated",
    "dialect_changed",
    "looped",
    "scaffold",
    "refused",
    "verse_altered",
    "injection_obeyed",
    "misspelled",
)
LEAST_CASES = {"good": 120} | dict.fromkeys(DAMAGED, 40)
LEAST_UNCHANGED = 30
LONGEST_LINE = 2000
QUOTED_VERSE = re.compile(r'﴿([^﴾]+)﴾|تعالى ?: ?(?:«([^»]+)»|"([^"]+)"|\{([^}]+)\})')
MARKS = re.compile("[\u064b-\u065f\u0670\u0640]")


@cache
def cases_of(kind: str) -> list[dict[str, str]]:
    """The cases of a kind, in the order of the file."""
    with (CASES / f"{kind}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def verses_of(text: str) -> list[str]:
    """What the text quotes as scripture: between ornate brackets, or in quotation marks after قال تعالى."""
    return [next(filter(None, found.groups())) for found in QUOTED_VERSE.finditer(text)]


def letters_of(text: str) -> str:
    """The text without vowel signs and tatweel."""
    return MARKS.sub("", text)


def test_there_is_a_file_for_every_kind_and_no_other() -> None:
    assert {path.stem for path in CASES.glob("*.jsonl")} == set(LEAST_CASES)


@pytest.mark.parametrize("kind", LEAST_CASES)
def test_cases_are_whole(kind: str) -> None:
    cases = cases_of(kind)
    assert len(cases) >= LEAST_CASES[kind]
    for number, case in enumerate(cases, start=1):
        assert list(case) == ["id", "origin", "rewritten", "note"]
        assert case["id"] == f"{kind}-{number:03d}"
        assert all(value and value == value.strip() for value in case.values()), case["id"]


@pytest.mark.parametrize("kind", LEAST_CASES)
def test_lines_are_short_and_say_their_letters(kind: str) -> None:
    text = (CASES / f"{kind}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert "\\u06" not in text
    assert max(map(len, text.splitlines())) <= LONGEST_LINE


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_rewrite_differs_from_its_origin_and_from_good_ones(kind: str) -> None:
    good = {(case["origin"], case["rewritten"]) for case in cases_of("good")}
    pairs = [(case["origin"], case["rewritten"]) for case in cases_of(kind)]
    assert len(set(pairs)) == len(pairs)
    assert not good.intersection(pairs)
    assert all(origin != rewritten for origin, rewritten in pairs)


def test_good_origins_are_different_and_some_stay_as_they_are() -> None:
    good = cases_of("good")
    assert len({case["origin"] for case in good}) == len(good)
    assert sum(case["origin"] == case["rewritten"] for case in good) >= LEAST_UNCHANGED


def test_good_rewrites_keep_their_verses() -> None:
    quoted = [(case, verse) for case in cases_of("good") for verse in verses_of(case["origin"])]
    assert quoted
    assert all(verse in case["rewritten"] for case, verse in quoted)


@pytest.mark.parametrize("case", cases_of("verse_altered"), ids=lambda case: case["id"])
def test_origins_quote_verses_exactly_and_their_rewrites_do_not(case: dict[str, str]) -> None:
    verses = verses_of(case["origin"])
    assert verses
    finder = ScriptureFinder()
    for verse in verses:
        assert finder.spans(code_points(verse)) == [(0, len(verse))]
    rewritten = letters_of(case["rewritten"])
    assert any(letters_of(verse) not in rewritten for verse in verses)
