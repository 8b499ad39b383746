"""The first look tells clean passages from damaged ones, by its signs alone and with a classifier."""

from __future__ import annotations

import json
import os
import random
import zipfile
from pathlib import Path

import pytest

from megatron_native.alignment.first_look import LIMITS, FirstLook, FirstLookSettings, Look
from megatron_native.alignment.first_look_statistics import Observer, Signs
from megatron_native.alignment.passages import split
from megatron_native.alignment.rules import build_rules
from megatron_native.errors import UserError
from tests.alignment.look_passages import CLEAN, DAMAGE

DATA = Path(os.environ.get("MEGATRON_NATIVE_TEST_DATA", "../shared/data")) / "saudinewsnet"


def look_at(text: str, look: FirstLook) -> Look:
    result = build_rules().apply(text)
    return look.look(result.text, result.edits)


@pytest.mark.parametrize("text", CLEAN)
def test_clean_passages_are_clean(text: str) -> None:
    found = look_at(text, FirstLook())
    assert found.clean and found.reason == "clean" and found.score < 0.5


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("number", range(len(CLEAN)))
def test_damaged_passages_are_not(kind: str, number: int) -> None:
    found = look_at(DAMAGE[kind](CLEAN[number], random.Random(number)), FirstLook())
    assert not found.clean and found.score > 0.5 and found.reason in LIMITS


REASONS = {
    "misspelt": "misspelt", "elongated": "elongated", "marked_up": "residue", "advertised": "offers", "abusive": "harm",
    "misread": "strange", "colloquial": "colloquial",
}  # fmt: skip


@pytest.mark.parametrize("kind", REASONS)
def test_the_reason_names_the_damage(kind: str) -> None:
    assert look_at(DAMAGE[kind](CLEAN[0], random.Random(0)), FirstLook()).reason == REASONS[kind]


def test_signs_are_counted_by_hand() -> None:
    text = "ذهب الي المدرسه فى 2014 و٢٠١٥"
    signs = Observer().signs(text, {"html": 2, "blanks": 3, "arabic_signs": 1})
    assert signs.residue == 2
    assert signs.edits == 1  # for a hundred words, of which there are fewer
    assert signs.misspelt == 2  # الي and فى; المدرسه does not end in يه
    assert signs.mixed_digits == 4
    assert signs.latin == 0 and signs.elongated == 0 and signs.broken_lines == 0
    assert Observer().signs("كلمة abc", {}).latin == 3 / 7


def test_words_that_end_in_ه_by_right_are_no_mistakes() -> None:
    observer = Observer()
    assert observer.signs("العلوم الاجتماعيه", {}).misspelt == 1
    assert observer.signs("الفقيه والتوجيه", {}).misspelt == 0


def test_one_look_does_not_change_the_next() -> None:
    look = FirstLook()
    texts = [*CLEAN, *(DAMAGE[kind](CLEAN[1], random.Random(1)) for kind in DAMAGE)]
    first = [look_at(text, look) for text in texts]
    assert [look_at(text, look) for text in reversed(texts)] == first[::-1]
    assert [look_at(text, FirstLook()) for text in texts] == first


def test_blank_and_short_passages_are_no_error() -> None:
    assert FirstLook().look("", {}).clean
    assert FirstLook().look("١٢٣", {}).clean


def test_limits_are_settings() -> None:
    passage = "ذهب الي المدرسه فى الصباح"
    assert FirstLook().look(passage, {}).reason == "misspelt"
    assert FirstLook(FirstLookSettings(limits={"misspelt": -1})).look(passage, {}).clean
    assert FirstLook(FirstLookSettings(limits={"misspelt": 50})).look(passage, {}).clean
    parameters = FirstLook(FirstLookSettings(limits={"misspelt": 50})).parameters
    assert json.loads(json.dumps(parameters)) == parameters and parameters["limits"]["misspelt"] == 50


@pytest.mark.parametrize(
    "settings",
    [
        FirstLookSettings(limits={"mispelt": 1}), FirstLookSettings(limits={"misspelt": 0}), FirstLookSettings(threshold=2),
        FirstLookSettings(limits={"misspelt": float("nan")}), FirstLookSettings(classifier="nothing.npz"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(settings: FirstLookSettings) -> None:
    with pytest.raises(UserError, match=r"first look"):
        FirstLook(settings)


def test_every_sign_has_a_limit() -> None:
    assert tuple(LIMITS) == Signs._fields


@pytest.mark.skipif(not DATA.is_dir(), reason="SaudiNewsNet is not there")
def test_on_news_most_passages_are_clean_and_hardly_any_damage_is_missed() -> None:
    archive = zipfile.ZipFile(min(DATA.glob("*.zip")))
    texts = [article["content"] for article in json.loads(archive.read(archive.namelist()[0]))][:400]
    passages = [passage.text for text in texts for passage in split(text, 256) if len(passage.text.split()) > 20]
    look, rules, chance = FirstLook(), build_rules(), random.Random(5)
    clean = [text for text in passages if look.look(*rules.apply(text)).clean]
    assert len(clean) / len(passages) > 0.8
    missed = {
        kind: sum(look.look(*rules.apply(damage(text, chance))).clean for text in clean) / len(clean)
        for kind, damage in DAMAGE.items()
    }
    assert max(missed.values()) < 0.05, missed
