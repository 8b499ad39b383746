"""On real news: a second time changes nothing, and words, numbers, addresses and verses are those that were there."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from megatron_native.alignment.rules import RULES, build_rules, triggers
from megatron_native.corpus.folding import code_points
from megatron_native.corpus.scripture import ScriptureFinder

DATA = Path(os.environ.get("MEGATRON_NATIVE_TEST_DATA", "../shared/data")) / "saudinewsnet"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="SaudiNewsNet is not there")
ADDRESS = re.compile(r"(?:https?://|www\.)[\w./?=&%#~+-]+")


@cache
def news() -> tuple[str, ...]:
    """Every eighth article."""
    archives = [zipfile.ZipFile(path) for path in sorted(DATA.glob("*.zip"))]
    every = [article["content"] for archive in archives for article in json.loads(archive.read(archive.namelist()[0]))]
    return tuple(every[::8])


def words(text: str) -> list[str]:
    """Words and numbers, without tatweel, which a rule takes out of them; numbers of lists apart from their signs."""
    return re.findall(r"\w+", text.replace("\u0640", ""))


def test_a_second_time_changes_nothing() -> None:
    rules = build_rules()
    for text in news():
        once = rules.apply(text).text
        assert rules.apply(once) == (once, {})


def test_rules_of_layout_and_punctuation_keep_every_word_and_number_in_its_order() -> None:
    rules = build_rules({"without": ["html", "bbcode", "wiki", "templates", "site_lines", "advertisements"]})
    edited = 0
    for text in news():
        result = rules.apply(text)
        edited += bool(result.edits)
        assert words(result.text) == words(text)
        assert ADDRESS.findall(result.text) == ADDRESS.findall(text)
    assert edited > len(news()) // 2


def test_rules_that_take_away_take_whole_lines_and_sentences() -> None:
    rules = build_rules()
    gone = 0
    for text in news():
        result = rules.apply(text)
        lost = Counter(words(text)) - Counter(words(result.text))
        assert not Counter(words(result.text)) - Counter(words(text))
        if lost:
            gone += 1
            assert result.edits.keys() & {"html", "bbcode", "wiki", "templates", "site_lines", "advertisements"}
            assert sum(lost.values()) <= 30 * result.edits.get("advertisements", 0) + 25 * result.edits.get(
                "site_lines", 0
            )
    assert gone > 50


def test_a_rule_whose_signs_are_not_there_has_nothing_to_do() -> None:
    for text in news():
        flags = triggers.look(code_points(text)) | triggers.SITE_WORDS | triggers.CALLS
        for rule in RULES:
            if not rule.triggers & flags:
                assert rule.edit(text) == (text, 0)


def test_verses_stay() -> None:
    rules, finder = build_rules(), ScriptureFinder()
    seen = 0
    for text in news():
        spans = finder.spans(code_points(text))
        for begin, end in spans:
            assert text[begin:end] in rules.apply(text, spans).text
            seen += 1
    assert seen > 50
