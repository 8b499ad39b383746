"""Each filter refuses its kind of text and keeps a near one; presets and settings that can't be meant are refused."""

import pytest

from megatron_native.corpus.filters import QualityFilters, load_preset
from megatron_native.errors import UserError
from tests.corpus.corpus_files import ENGLISH, LIBRARY, STORY

MARKED = "كَتَبَ الطَّالِبُ الدَّرْسَ"


def verdict(text, **thresholds):
    return QualityFilters(thresholds, "test").refuse_text(text)


@pytest.mark.parametrize(
    ("thresholds", "refused", "kept", "reason"),
    [
        ({"min_words": 4}, "واحد اثنان ثلاثة", "واحد اثنان ثلاثة أربعة", "too few words"),
        ({"min_words": 4}, MARKED, MARKED + " كُلَّهُ", "too few words"),  # marks don't break words
        ({"max_words": 3}, "واحد اثنان ثلاثة أربعة", "واحد اثنان ثلاثة", "too many words"),
        ({"mean_word_length": [2, 4]}, "كتبنا درسنا", "كتب درس", "mean word length"),  # 5 and 3 letters
        ({"mean_word_length": [2, 4]}, "و و و", "في من", "mean word length"),
        ({"mean_word_length": [2, 4]}, "كتابي قلمي درسي", "كَتَبَ دَرَسَ", "mean word length"),  # marks are no letters
        ({"min_alphabetic_words": 0.6}, "كتب 12 درس 13", "كتب 12 درس", "too few alphabetic words"),  # 1/2 and 2/3
        ({"max_duplicate_lines": 0.3}, "سطر\nسطر\nآخر", "سطر\nسطر\nآخر\nرابع", "repeated lines"),  # 1/3 and 1/4
        # Two letters a word: the pair "اب جد" is 8 of 12 letters, then 8 of 20.
        ({"max_top_ngram": {2: 0.5}}, "اب جد اب جد هو زح", "اب جد اب جد هو زح طي كل من سع", "repeated phrases"),
        ({"max_top_ngram": {2: 0.5}}, "َ " * 30 + "اب جد اب جد هو زح", "َ " * 30, "repeated phrases"),
        ({"max_symbols_per_word": 0.3}, "كتب # درس", "كتب # درس علم عمل", "too many symbols"),  # 1/2 and 1/4
        ({"max_symbols_per_word": 0.3}, "كتب… درس...", "كتب… درس، علم. عمل!", "too many symbols"),
        ({"min_stop_words": 2, "stop_words": ["في", "من"]}, "كتب في الدار", "في الدار مِنْ كتب", "too few stop words"),
        ({"min_stop_words": 2, "stop_words": ["The", "on"]}, "the house", "THE house On it", "too few stop words"),
    ],
)
def test_a_filter_refuses_its_kind_and_keeps_what_is_near(thresholds, refused, kept, reason):
    assert verdict(refused, **thresholds) == reason
    assert verdict(kept, **thresholds) is None


def test_a_pair_that_comes_once_is_no_repetition():
    assert verdict("اب جد", max_top_ngram={2: 0.1}) is None


def test_empty_text_breaks_no_filter():
    for preset in ("msa", "dialect", "classical", "none"):
        for thresholds in load_preset(preset)["languages"].values():
            QualityFilters(thresholds, preset).refuse_text("")


@pytest.mark.parametrize(("text", "language"), [(STORY, "ar"), (LIBRARY, "ar"), (ENGLISH, "en")])
def test_good_prose_passes_the_shipped_presets(text, language):
    for preset in ("msa", "none"):
        assert QualityFilters(load_preset(preset)["languages"][language], preset).refuse_text(text) is None


def test_the_english_stop_words_are_words():
    words = load_preset("msa")["languages"]["en"]["stop_words"]
    assert "on" in words
    assert all(isinstance(word, str) for word in words)


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("languages: {ar: {min_wrods: 3}}", r"unknown filters \['min_wrods'\]; known are .*'min_words'"),
        ("languages: {ar: {1: 3}}", r"unknown filters \['1'\]"),
        ("languages: {ar: {min_words: many}}", "min_words can't be 'many'"),
        ("languages: {ar: {mean_word_length: [2]}}", r"mean_word_length can't be \[2\]"),
        ("languages: {ar: {max_top_ngram: [0.2]}}", r"max_top_ngram can't be \[0.2\]"),
        ("languages: {en: {min_stop_words: 2, stop_words: [the, on]}}", "stop_words holds True, which is no word; put quotes"),
        ("languages: {en: {min_stop_words: 2}}", "stop_words must be a list of words, it is None"),
        ("languages: {en: {min_stop_words: 2, stop_words: the}}", "stop_words must be a list"),
        ("languages: {ar: 5}", "5 where thresholds"),
        ("languages: [ar]", "is no preset: it needs 'languages:'"),
        ("filters: {}", "is no preset"),
        ("", "is no preset"),
        ("languages: {ar: {", "is not valid YAML"),
    ],
)
def test_a_preset_that_can_not_be_meant_is_refused_with_its_place(tmp_path, yaml, said):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml)
    with pytest.raises(UserError, match=said) as caught:
        load_preset(str(path))
    assert "mine.yaml" in str(caught.value)


def test_a_preset_that_is_not_utf8_or_not_there_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"mine\.yaml can't be read"):
        load_preset(str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match="there is no preset 'boilerplate'; known are classical, dialect, msa, none"):
        load_preset("boilerplate")


def test_a_language_without_thresholds_keeps_everything(tmp_path):
    (tmp_path / "mine.yaml").write_text("languages: {ar: }")
    assert QualityFilters(load_preset(str(tmp_path / "mine.yaml"))["languages"]["ar"] or {}, "mine").refuse("ا") is None
