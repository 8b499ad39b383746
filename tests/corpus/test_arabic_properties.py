"""Properties of the two views over text made of the characters that matter, checked against Unicode's own tables."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_native.corpus.arabic import normalise
from megatron_native.corpus.folding import code_points, fold
from megatron_native.corpus.survey import survey
from tests.corpus.corpus_files import LIBRARY, STORY

TRICKY = (
    "ابلاآأإىةهؤئء لـََُِّْٰٕٔۖۗۚ\u06dd\u08f0\u0327\u0301\u0363e\u200b\u200c\u200d\u200e\u202b\ufeff\u00ad\t\r\n"
    "\u2028\u2029\u00a0\u3000\x01\x85ﻻﺑﷲﷺﹱﹰ﴿🌙☺\ufe0fक्\u1100\u1161"
)
tricky_text = st.text(alphabet=TRICKY, max_size=24)


@given(tricky_text)
@settings(max_examples=800, deadline=None)
def test_normalising_is_idempotent_and_ends_in_nfc(text):
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)


@given(st.text(alphabet=TRICKY, max_size=24), st.sampled_from(["remove", "keep"]))
@settings(max_examples=300, deadline=None)
def test_no_presentation_form_control_or_direction_mark_survives(text, tatweel):
    for character in normalise(text, tatweel):
        code = ord(character)
        assert unicodedata.category(character) not in ("Cc", "Cf") or character in "\n\u200c\u200d\u06dd"
        assert not (0xFE70 <= code <= 0xFEFC)
        assert character != "\ufeb1"


@given(st.text(alphabet=TRICKY.replace("\u1100", ""), max_size=24))  # Korean letters join when a mark between them goes
@settings(max_examples=300, deadline=None)
def test_marks_and_tatweel_and_joiners_make_no_difference_to_the_matching_view(text):
    decorated = "".join(
        character + ("\u064e\u0640\u200d" if "\u0628" <= character <= "\u0647" else "") for character in text
    )
    assert fold(decorated) == fold(text)
    assert fold(fold(text)) == fold(text)


def test_every_letter_form_becomes_its_compatibility_letters():
    for code in (*range(0xFB50, 0xFBB2), *range(0xFBD3, 0xFD3E), *range(0xFE70, 0xFEFD)):
        character = chr(code)
        if unicodedata.category(character) != "Lo":
            continue
        letters = unicodedata.normalize("NFKC", character)
        assert normalise("ب" + character, "keep") == unicodedata.normalize("NFC", "ب" + letters.lstrip(" ")), hex(code)


def test_words_that_are_one_character_and_ornate_brackets_stay():
    for character in "ﷲﷺﷻﷴ﷽ﷰ﴾﴿﷼":
        assert normalise(f"نص {character} نص") == f"نص {character} نص"


@pytest.mark.parametrize("text", [STORY, LIBRARY, f"{STORY}\n\n{LIBRARY}", "قُلْ هُوَ ٱللَّهُ أَحَدٌ ۝١", "(أ) ٪٥٠؛ «نعم»؟ !"])
def test_clean_text_is_unchanged(text):
    assert normalise(text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("الرَّحْمَـٰن", "الرَّحْمَـٰن"),  # the small alef sits on the tatweel
        ("هـــٰذا", "هـٰذا"),
        ("جمـــــيل", "جميل"),
        ("ـ\u0327\u0654", unicodedata.normalize("NFC", "ـ\u0327\u0654")),
        ("می\u200cخواهم", "میخواهم"),
        ("سطر\u2028سطر\u2029فقرة\x85سطر", "سطر\nسطر\n\nفقرة\nسطر"),
        ("   مسافات \u3000 كثيرة \n \n\n\n ثم نص ", "مسافات كثيرة\n\nثم نص"),
        ("क्\u0301\u200c", unicodedata.normalize("NFC", "क्\u0301\u200c")),
        ("❤\ufe0f\u200d🔥 👩🏽\u200d🏫", "❤\ufe0f\u200d🔥 👩🏽\u200d🏫"),
    ],
)
def test_fine_points_of_the_training_view(raw, clean):
    assert normalise(raw) == clean


def test_joiners_are_no_word_break_in_the_matching_view():
    assert fold("كتا\u200dب\u200c") == "كتاب"


def test_a_greeting_in_one_character_folds_as_its_words():
    assert fold("قال ﷺ") == fold("قال صلى الله عليه وسلم")


def test_letters_are_counted_without_marks_digits_and_signs():
    found = survey(code_points("كَتَبَ ١٢٣، abc 12 é؟ ـ"))
    assert (found.arabic, found.latin) == (3, 4)
