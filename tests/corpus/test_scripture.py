"""Verses are found in any spelling at their exact place, and come through letter for letter; prose is left alone."""

import importlib.resources
import itertools
import json
import os
import random
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import orjson
import pytest

from megatron_native.corpus.arabic import normalise
from megatron_native.corpus.cleaner import Cleaner, CleanerSettings
from megatron_native.corpus.filters import load_preset
from megatron_native.corpus.folding import code_points
from megatron_native.corpus.scripture import ScriptureFinder, freeze, holds_placeholder
from tests.corpus.corpus_files import LIBRARY, STORY

FINDER = ScriptureFinder()
SENTENCES = [sentence.strip() + "." for sentence in f"{STORY} {LIBRARY}".split(".") if sentence.strip()]


def verses():
    """500 verses in both spellings, chosen evenly over the whole text, of eight consonants and three words at least."""
    raw = orjson.loads(importlib.resources.files("quran_text_data").joinpath("hafs.json").read_bytes())
    starts = [*raw["ayah_starts"], len(raw["words"])]
    found = []
    for start, stop in itertools.pairwise(starts):
        uthmani, modern = (" ".join(filter(None, raw[key][start:stop])) for key in ("words", "rasm_imlai"))
        consonants = sum(character not in "اأإآٱويىئؤء " for character in modern)
        if stop - start >= 3 and consonants >= 8:
            found.append((uthmani, modern))
    return found[:: len(found) // 500][:500]


def stripped(verse):
    return "".join(c for c in verse if unicodedata.category(c) != "Mn" and c != "\u0640")


def some_marks(verse):
    generator = random.Random(verse)
    return "".join(c for c in verse if unicodedata.category(c) != "Mn" or generator.random() < 0.5)


SPELLINGS = {
    "uthmani": lambda uthmani, modern: uthmani,
    "uthmani without marks": lambda uthmani, modern: stripped(uthmani),
    "some marks": lambda uthmani, modern: some_marks(uthmani),
    "decomposed": lambda uthmani, modern: unicodedata.normalize("NFD", uthmani),
    "composed": lambda uthmani, modern: unicodedata.normalize("NFC", uthmani),
    "modern": lambda uthmani, modern: modern,
    "modern with tatweel": lambda uthmani, modern: modern.replace("ل", "لـ"),
    "modern with bare alef": lambda uthmani, modern: modern.translate(str.maketrans("أإآ", "ااا")),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_500_verses_are_found_at_their_place_and_come_through_letter_for_letter(spelling):
    missed, changed = [], []
    for number, pair in enumerate(verses()):
        verse = SPELLINGS[spelling](*pair)
        before, after = SENTENCES[number % len(SENTENCES)], SENTENCES[(number + 1) % len(SENTENCES)]
        text = f"{before} وقد جاء: {verse} . {after}  ثم  تابعوا"
        begin = text.index(verse)
        spans = FINDER.spans(code_points(text))
        if not any(start <= begin and end >= begin + len(verse) for start, end in spans):
            missed.append(verse)
        frozen = freeze(text, spans)
        if verse not in frozen.thaw(normalise(frozen.text)):
            changed.append(verse)
    assert not missed, f"{len(missed)} of 500: {missed[:3]}"
    assert not changed, f"{len(changed)} of 500: {changed[:3]}"


def test_verses_come_through_the_whole_of_clean(tmp_path):
    cleaner = Cleaner(CleanerSettings("none", load_preset("none")["languages"]))
    for number, pair in enumerate(verses()[::5]):
        verse = SPELLINGS[list(SPELLINGS)[number % len(SPELLINGS)]](*pair)
        found = cleaner.clean(f"<p>{STORY}</p>\n{verse}\nاقرأ المزيد\n{LIBRARY}", Counter())
        assert found.reason is None
        assert verse in found.text.split("\n")


def test_prose_has_no_spans():
    for text in (
        STORY,
        LIBRARY,
        "",
        "abc",
        "قال المدير إن العمل سيبدأ غدا إن شاء الله في المدينة القديمة",
        "الله أكبر",
        "الحمد لله",
    ):
        assert FINDER.spans(code_points(text)) == []


def test_what_stands_in_ornate_brackets_is_frozen_whatever_it_is():
    text = "قال تعالى: ﴿ الم ﴾ وقال: ﴾والعصر﴿ ثم سكت ﴿ ولم يغلق"
    assert [text[start:end] for start, end in FINDER.spans(code_points(text))] == ["﴿ الم ﴾", "﴾والعصر﴿"]
    far = "﴿" + "كلمة " * 2000 + "﴾"
    assert FINDER.spans(code_points(far)) == []


def test_a_part_of_a_verse_is_whole_words_with_their_marks_and_signs():
    text = "وفيه قوله: يَٰٓأَيُّهَا ٱلَّذِينَ ءَامَنُواْ كُتِبَ عَلَيۡكُمُ ٱلصِّيَامُ ۝١٨٣ وهو معروف."
    ((start, end),) = FINDER.spans(code_points(text))
    assert text[start:end] == "يَٰٓأَيُّهَا ٱلَّذِينَ ءَامَنُواْ كُتِبَ عَلَيۡكُمُ ٱلصِّيَامُ ۝١٨٣"


def test_freezing_and_thawing_leaves_private_characters_of_the_text_alone():
    text = "قبل \U00100000 ﴿ الم ﴾ بعد \U00100005 ﴿ طه ﴾"
    frozen = freeze(text, FINDER.spans(code_points(text)))
    assert "﴿" not in frozen.text and frozen.thaw(frozen.text) == text
    assert holds_placeholder(frozen.text) and not holds_placeholder(STORY)


def test_quotations_in_real_news_are_few_and_no_ordinary_prose():
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA")
    if not data:
        pytest.skip("MEGATRON_NATIVE_TEST_DATA names no folder of real test data")
    archive = zipfile.ZipFile(sorted(Path(data, "saudinewsnet").glob("*.zip"))[0])
    articles = json.loads(archive.read(archive.namelist()[0]))
    found = [
        article["content"][start:end]
        for article in articles for start, end in FINDER.spans(code_points(article["content"]))
    ]  # fmt: skip
    words = sum(len(article["content"].split()) for article in articles)
    assert 0 < len(found) < len(articles) * 0.1
    assert sum(len(passage.split()) for passage in found) < 0.005 * words
