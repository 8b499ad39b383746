"""The two views of Arabic text: the training view keeps what a writer wrote, the matching view folds it away."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_native.corpus.arabic import normalise
from megatron_native.corpus.folding import fold


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("ﻣﺮﺣﺒﺎ ﺑﻜﻢ", "مرحبا بكم"),
        ("ﻻ ﺑﺄﺱ", "لا بأس"),
        ("الســـــلام", "السلام"),
        ("كت\u200bاب\u200f جد\u00adيد\ufeff", "كتاب جديد"),
        ("\u202bنص\u202c", "نص"),
        ("كلمة\u00a0 أخرى\tهنا", "كلمة أخرى هنا"),
        ("سطر\r\nآخر\n\n\n\nبعيد", "سطر\nآخر\n\nبعيد"),
        ("أ\u0654", unicodedata.normalize("NFC", "أ\u0654")),
        ("ا\u0653لآن", "آلآن"),
    ],
)
def test_what_encodings_and_editors_did_is_undone(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


@pytest.mark.parametrize(
    "text",
    [
        "قال النبي ﷺ، والله ﷲ وجل ﷻ",
        "﴿الحمد لله﴾",
        "بِسۡمِ ٱللَّهِ ٱلرَّحۡمَٰنِ",
        "الرحمـٰن",
        "ۖ ۗ ۚ",
        "مُدَرِّسَةٌ",
        "👨\u200d👩\u200d👧",
        "أ < ب ؟ نعم؛ 3 > 2.",
        "١٢٣ and 456",
    ],
)
def test_what_a_writer_wrote_stays(text: str) -> None:
    assert normalise(text) == unicodedata.normalize("NFC", text)


def test_tatweel_can_be_kept() -> None:
    assert normalise("ســلام", tatweel="keep") == "ســلام"


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("إِنَّ العِلْمَ نُورٌ", "ان العلم نور"),
        ("المدرسة الكبرى", "المدرسه الكبري"),
        ("الســــلام عليكم", "السلام عليكم"),
        ("عام ١٤٤٥هـ", "عام 1445ه"),
        ("«نعم»، قال: لا!", "نعم قال لا"),
        ("ﻣﺮﺣﺒﺎ", "مرحبا"),
        ("Hello, WORLD", "hello world"),
    ],
)
def test_spellings_of_one_text_fold_to_one(one: str, other: str) -> None:
    assert fold(one) == fold(other)


def test_different_words_stay_different() -> None:
    assert fold("كتاب") != fold("كاتب")
