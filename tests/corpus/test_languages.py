"""Documents go to the bucket of their language and of their kind of Arabic."""

import json
import os
import zipfile
from collections import Counter
from importlib import resources
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_native.corpus.folding import WordFolder, fold
from megatron_native.corpus.languages import LanguageIdentifier, _count, _dialects
from tests.corpus.corpus_files import ENGLISH, LIBRARY, STORY
from tests.corpus.dialect_sentences import (
    ARABIZI,
    ARABIZI_HELD_OUT,
    CALIBRATION,
    HELD_OUT,
    LATIN,
    OTHERS,
    STANDARD,
    SUDANESE,
)

IDENTIFIER = LanguageIdentifier()


def _routed(sentences: dict[str, list[str]]) -> tuple[Counter[str], Counter[str], list[str]]:
    routed, named, missed = Counter[str](), Counter[str](), []
    for dialect, texts in sentences.items():
        for text in texts:
            language = IDENTIFIER.identify(text)
            routed[dialect] += language.bucket == "ar-dialect"
            named[dialect] += language.dialect == dialect
            if language.dialect != dialect:
                missed.append(f"{dialect} as {language.dialect or language.bucket}: {text}")
    return routed, named, missed


@pytest.mark.parametrize("sentences", [CALIBRATION, HELD_OUT], ids=["calibration", "held out"])
def test_dialects_go_to_their_bucket_under_their_name(sentences):
    routed, named, missed = _routed(sentences)
    assert routed.total() >= 0.85 * sum(map(len, sentences.values())), missed
    assert named.total() >= 0.7 * routed.total(), missed
    for dialect, texts in sentences.items():
        assert routed[dialect] >= 0.8 * len(texts), missed
        assert named[dialect] >= 0.6 * routed[dialect], missed


def test_sudanese_goes_to_the_bucket_of_dialects():
    missed = [text for text in SUDANESE if IDENTIFIER.identify(text).bucket != "ar-dialect"]
    assert len(missed) <= 0.15 * len(SUDANESE), missed


@pytest.mark.parametrize("sentences", [ARABIZI, ARABIZI_HELD_OUT], ids=["calibration", "held out"])
def test_arabic_in_latin_letters_has_a_bucket_of_its_own(sentences):
    missed = [sentence for sentence in sentences if IDENTIFIER.identify(sentence).bucket != "ar-latn"]
    assert len(missed) <= 0.15 * len(sentences), missed


@pytest.mark.parametrize("code", OTHERS)
def test_other_languages_are_neither_arabic_nor_arabizi(code):
    assert IDENTIFIER.identify(OTHERS[code]).bucket == code


@pytest.mark.parametrize(
    "text",
    [
        *LATIN,
        "mp3 h2o covid19 ps5 xbox 360 games",
        "k8s cluster with 3 nodes and s3 buckets in eu-west-2",
        "int main() { return 0; } // v2.5",
        "WW2 veterans met at 7pm in room B52",
        "I had a 7up",
    ],
)
def test_other_latin_text_code_and_names_with_digits_are_no_arabizi(text):
    assert IDENTIFIER.identify(text).bucket not in {"ar-latn", "ar", "ar-dialect"}


@pytest.mark.parametrize("text", STANDARD)
def test_short_standard_and_classical_sentences_are_standard(text):
    assert IDENTIFIER.identify(text).bucket == "ar"


@pytest.mark.parametrize(("text", "bucket"), [(STORY, "ar"), (LIBRARY, "ar"), (ENGLISH, "en"), ("صباح الخير", "ar")])
def test_standard_arabic_and_english(text, bucket):
    assert IDENTIFIER.identify(text).bucket == bucket


def test_full_vocalisation_does_not_hide_a_language():
    text = "إِنَّ الْعِلْمَ نُورٌ يُضِيءُ الطَّرِيقَ لِكُلِّ مَنْ طَلَبَهُ، وَالْجَهْلُ ظَلَامٌ لَا يَهْتَدِي فِيهِ أَحَدٌ"
    assert IDENTIFIER.identify(text).bucket == "ar"


def test_arabic_typed_on_a_persian_keyboard_is_arabic():
    assert IDENTIFIER.identify(STORY.replace("ي", "ی").replace("ك", "ک")).bucket == "ar"


@pytest.mark.parametrize("text", ["", "  ", "123 ٤٥٦", "🙂 🕌", "... !؟", "َُِ"])
def test_what_has_no_letters_is_undetermined(text):
    assert IDENTIFIER.identify(text).bucket == "und"


def test_the_answer_does_not_depend_on_what_was_asked_before_or_on_words_at_hand():
    texts = [STORY, ENGLISH, *HELD_OUT["gulf"], *OTHERS.values(), *ARABIZI_HELD_OUT]
    first = [IDENTIFIER.identify(text) for text in texts]
    other, folder = LanguageIdentifier(), WordFolder()
    assert [other.identify(text, folder.words(text)) for text in reversed(texts)] == first[::-1]


def test_markers_are_counted_as_plain_python_counts_them():
    raw = resources.files("megatron_native.corpus").joinpath("lexicons/dialects.yaml").read_text(encoding="utf-8")
    rules = yaml.safe_load(raw)
    never, dialects_of, worth_of = set(map(fold, rules["never"])), {}, {}
    for entry in rules["markers"]:
        for word in entry["words"]:
            for before in entry.get("before", [""]):
                for after in entry.get("after", [""]):
                    bare = fold(before + word + after)
                    for written in [bare] + [p + bare for p in rules["proclitics"] if len(bare) >= 3]:
                        if bare not in never and written not in never:
                            dialects_of.setdefault(written, set()).update(entry["of"])
                            worth_of[written] = min(worth_of.get(written, 3), entry.get("worth", 3))
    text = " ".join([*chain.from_iterable(CALIBRATION.values()), STORY])
    words = fold(text).split()
    lexicon = _dialects()
    counts = np.zeros(len(lexicon.groups), dtype=np.int64)
    _count(WordFolder().words(text).hashes, lexicon.hashes, lexicon.weights, counts)
    found = dict(zip(lexicon.groups, counts.tolist()))
    for group in ("standard", "common"):
        wanted = {fold(word) for word in rules[group]}
        assert found[group] == sum(word in wanted for word in words)
    assert found["worth"] == sum(worth_of.get(word, 0) for word in words)
    for dialect in CALIBRATION:
        shares = [60 // len(dialects_of[word]) for word in words if dialect in dialects_of.get(word, ())]
        assert found[dialect] == sum(shares) > 0


def _news() -> list[str]:
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA")
    if not data:
        pytest.skip("MEGATRON_NATIVE_TEST_DATA names no folder of real test data")
    archive = zipfile.ZipFile(sorted(Path(data, "saudinewsnet").glob("*.zip"))[1])
    articles = json.loads(archive.read(archive.namelist()[0]))
    return [article["content"] for article in articles if article["content"].strip()]


def test_real_news_is_standard_arabic_whole_and_in_pieces():
    texts = _news()
    pieces = [" ".join(text.split()[at : at + 25]) for text in texts for at in range(0, len(text.split()) - 24, 25)]
    for news in (texts, pieces):
        found = Counter(IDENTIFIER.identify(text).bucket for text in news)
        assert found["ar"] >= 0.995 * len(news), found
