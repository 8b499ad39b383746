"""Verses are found in any spelling at their exact place, and come through letter for letter; prose is left alone."""

import importlib.resources
import importlib.util
import itertools
import json
import os
import random
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pytest

from megatron_native.corpus.arabic import normalise
from megatron_native.corpus.cleaner import Cleaner, CleanerSettings
from megatron_native.corpus.filters import load_preset
from megatron_native.corpus.folding import code_points
from megatron_native.corpus.scripture import VERSES, ScriptureFinder, freeze, holds_placeholder
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
        if spans != [(begin, begin + len(verse))]:
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


def test_brackets_in_brackets_and_brackets_left_over():
    for text, expected in (
        ("﴿ الم ﴿١﴾ ذلك ﴿٢﴾ ﴾ ثم قال ﴿ طه ﴾", ["﴿ الم ﴿١﴾ ذلك ﴿٢﴾ ﴾", "﴿ طه ﴾"]),
        ("بقية ﴾ ثم قال ﴿ طه ﴾", ["﴿ طه ﴾"]),
        ("﴾ طه ﴿ ثم قال ﴾ يس ﴿", ["﴾ طه ﴿", "﴾ يس ﴿"]),
    ):
        assert spans_of(text) == expected


def test_a_particle_before_a_verse_is_part_of_it_only_where_the_verse_has_it():
    assert spans_of("قرأ و«قل هو الله أحد» ثم سكت") == ["قل هو الله أحد"]
    assert spans_of("قرأ و قل هو الله أحد ثم سكت") == ["قل هو الله أحد"]
    assert spans_of("قرأ يا أيها الناس اتقوا ربكم الذي خلقكم ثم سكت") == ["يا أيها الناس اتقوا ربكم الذي خلقكم"]
    assert spans_of("قرأ أو لم ير الإنسان أنا خلقناه ثم سكت") == ["أو لم ير الإنسان أنا خلقناه"]


def test_verses_that_follow_each_other_are_found_with_their_numbers_the_short_ones_too():
    text = "قرأ: قُلۡ هُوَ ٱللَّهُ أَحَدٌ ۝١ ٱللَّهُ ٱلصَّمَدُ (٢) لَمۡ يَلِدۡ وَلَمۡ يُولَدۡ ﴿٣﴾ ثم سكت"
    assert spans_of(text) == ["قُلۡ هُوَ ٱللَّهُ أَحَدٌ ۝١ ٱللَّهُ ٱلصَّمَدُ (٢) لَمۡ يَلِدۡ وَلَمۡ يُولَدۡ ﴿٣﴾"]


def test_ligatures_are_frozen_and_the_sign_of_the_rial_is_not():
    assert spans_of("قال النبي ﷺ إن الأجر عند ﷲ وثمنه 5 ﷼") == ["ﷺ", "ﷲ"]


def spans_of(text):
    return [text[start:end] for start, end in FINDER.spans(code_points(text))]


@pytest.mark.parametrize("private", ["\U00100000", "\U0010fffd", "\U0010ffff", "\U00100005 \U00100001"])
def test_private_characters_of_the_text_survive_and_protect_no_less(private):
    text = f"قبل {private} ﴿ الم ﴾ بعد {private} ﴿ طه ﴾"
    frozen = freeze(text, FINDER.spans(code_points(text)))
    assert "﴿" not in frozen.text and frozen.thaw(frozen.text) == text
    assert holds_placeholder(frozen.text) and not holds_placeholder(STORY)


def test_more_passages_than_placeholders():
    text = " ".join(f"﴿{number}﴾" for number in range(70_000)) + " ثم سكت"
    frozen = freeze(text, FINDER.spans(code_points(text)))
    assert "﴿" not in frozen.text and frozen.text.endswith(" ثم سكت") and frozen.thaw(frozen.text) == text


def test_without_spans_the_text_is_the_same_object():
    frozen = freeze(STORY, [])
    assert frozen.text is STORY and frozen.thaw(STORY) is STORY


def test_the_committed_hashes_are_those_of_the_script():
    path = Path(__file__).parents[2] / "docs" / "make_verses.py"
    spec = importlib.util.spec_from_file_location("make_verses", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert np.array_equal(np.load(VERSES), script.packed())


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
