"""Each filter refuses its kind of text and keeps a near one; presets and settings that can't be meant are refused."""

import pytest

from megatron_native.corpus.filters import QualityFilters, load_preset
from megatron_native.errors import UserError
from tests.corpus.corpus_files import ENGLISH, LIBRARY, STORY

FIVE, OTHERS, MORE = "اب جد هو زح طي", "كل من سع فص قر", "شت ثخ ذض ظغ با تا ثا جا حا خا دا ذا را زا سا"
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
        # Of 30 letters the second run of five words has 10, then of 60.
        ({"max_duplicate_ngrams": {5: 0.3}}, f"{FIVE} {FIVE} {OTHERS}", f"{FIVE} {FIVE} {OTHERS} {MORE}", "repeated passages"),
        ({"max_duplicate_ngrams": {10: 0.3}}, f"{FIVE} {OTHERS} " * 2, f"{FIVE} {FIVE} {OTHERS}", "repeated passages"),
        ({"min_punctuated_lines": 0.5}, "سطر\nسطر\nسطر.", "سطر\nسطر؟", "too few punctuated lines"),  # 1/3 and 1/2
        ({"min_punctuated_lines": 0.5}, "سطر\nسطر\nسطر؛", "سطر\nسطر\nسطر", "too few punctuated lines"),  # none is enough
        ({"max_line_breaks_per_word": 0.5}, "سطر\n\nسطر", "سطر أول\nسطر ثان", "too many line breaks"),  # 2/2 and 1/4
        ({"max_ellipsis_lines": 0.5}, "سطر...\nسطر…\nسطر", "سطر...\nسطر", "too many lines end in an ellipsis"),
        ({"max_bullet_lines": 0.9}, "- بند\n" * 5, "- بند\n" * 4 + "قول", "too many bullet lines"),
        ({"max_bullet_lines": 0.9}, "• بند\n" * 5, f"• {STORY}\n" * 5, "too many bullet lines"),  # paragraphs are no list
        ({"min_letters_share": 0.5}, "كتب 1234", "كتب 123", "too few letters"),  # 3/7 and 3/6
        ({"min_letters_share": 0.9}, "كَتَبَ :", "كَتَبَ دَرَسَ", "too few letters"),  # marks are not counted
        ({"max_unsafe_words": {"count": 1, "share": 0.1}}, "porn Porn كتب", "porn كتب", "unsafe words"),
        ({"max_unsafe_words": {"count": 1, "share": 0.1}}, "porn porn كتب", f"porn porn {STORY}", "unsafe words"),
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


DATELINE = (
    "الرياض 12/5/2015 (واس): أغلق مؤشر السوق أمس عند 9,098.27 نقطة مرتفعاً 45.3 نقطة، أي بنسبة 0.5 في المئة، وبلغت قيمة "
    "التداول 5.2 مليار ريال، وارتفعت أسهم 80 شركة من بين 165 شركة، في حين تراجعت أسهم 60 شركة أخرى في التعاملات كلها."
)
NEWS = [
    DATELINE,
    "\n".join(f"• {paragraph}" for paragraph in (STORY, LIBRARY, DATELINE)),
    f"{STORY}\n\n" + LIBRARY.replace(".", "…"),
    "نظرت المحكمة في قضية المواقع الإباحية، وقال الطبيب إن العلاج يحمي المريض من الأمراض الجنسية. وأضاف القاضي أن القانون "
    "يعاقب على نشر الصور الإباحية، وأن حماية الأطفال من المواقع الإباحية واجب على الأسرة وعلى المدرسة وعلى الدولة كلها.",
    "قال حاكم ولاية بورنو إن أهل بورنو يعودون إلى قراهم، وإن المدارس في بورنو تفتح أبوابها هذا الشهر. وأضاف أن الطريق إلى "
    "عاصمة بورنو صار آمناً، وأن التجار عادوا إلى السوق التي كانت مغلقة منذ عام، وشكر كل من ساعد الولاية على ذلك.",
]


@pytest.mark.parametrize("text", NEWS)
def test_news_passes_the_shipped_presets(text):
    for preset in ("msa", "dialect", "classical", "none"):
        assert QualityFilters(load_preset(preset)["languages"]["ar"], preset).refuse_text(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "ههههههه والله ضحكتني يا راجل الله يسعدك 😂😂",
        "حلووووو كتير هالفيديو وين بلاقي الباقي؟",
        "ههههه ههههه ههههه يا عمي شو هالحكي هاد",
        "ya 3am wallah el mosalsal da gamed awi 5alas ana ha2olak el 7a2i2a",
    ],
)
def test_posts_pass_the_preset_of_dialects(text):
    for bucket in ("ar-dialect", "ar-latn"):
        assert QualityFilters(load_preset("dialect")["languages"][bucket], "dialect").refuse_text(text) is None


def test_a_heritage_book_of_one_vocalised_line_passes_its_preset():
    line = " ".join(f"حَدَّثَنَا {name} عَنْ {STORY.split()[place]} قَالَ {LIBRARY}" for place, name in enumerate(LIBRARY.split()[:8]))
    verse = "\n".join([" ".join(STORY.split()[start : start + 3]) for start in range(0, 30, 3)])
    filters = QualityFilters(load_preset("classical")["languages"]["ar"], "classical")
    assert filters.refuse_text(line.replace(".", "").replace("،", "")) is None
    assert filters.refuse_text(verse) is None


@pytest.mark.parametrize(
    ("preset", "text", "reason"),
    [
        ("msa", "الرئيسية الأخبار الرياضة اتصل بنا", "too few words"),
        ("msa", f"{STORY}\n" * 6, "repeated lines"),
        ("msa", f"{LIBRARY} " * 3, "repeated phrases|repeated passages"),
        ("msa", "أرامكو 31.5 32.1 30.9 1,204,500\nسابك 98.2 99.0 97.5 803,100\n" * 4, "too few alphabetic words"),
        ("msa", "\n".join(f"- {word}" for word in f"{STORY} {LIBRARY}".split()), "too many line breaks|too many bullet lines"),
        ("msa", " ".join(f"<{word}> | #{word}" for word in STORY.split()), "too many symbols|too few letters"),
        ("msa", f"{STORY} " + "سكس porn " * 4, "unsafe words|repeated phrases"),
        ("dialect", "اشتري الحين اشتري الحين اشتري الحين اشتري الحين", "repeated phrases"),
        ("dialect", "😂" * 60 + " يا سلام على هالحكي الحلو", "too few letters|too many symbols"),
        ("classical", "شراء بيع " * 40, "repeated phrases"),
    ],
)
def test_planted_junk_is_refused_by_the_shipped_presets(preset, text, reason):
    assert QualityFilters(load_preset(preset)["languages"]["ar"], preset).refuse_text(text) in reason.split("|")


def test_every_preset_has_every_bucket_and_none_has_no_threshold():
    for preset in ("msa", "dialect", "classical", "none"):
        assert set(load_preset(preset)["languages"]) == {"ar", "ar-dialect", "ar-latn", "en"}
    assert not any(load_preset("none")["languages"].values())


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
        ("languages: {ar: {min_punctuated_lines: many}}", "min_punctuated_lines can't be 'many'"),
        ("languages: {ar: {max_duplicate_ngrams: {4: 0.2}}}", r"max_duplicate_ngrams can't be \{4: 0.2\}"),
        ("languages: {ar: {max_top_ngram: {2: 0.0, 5: 0.2}}}", r"max_top_ngram can't be"),
        ("languages: {ar: {max_unsafe_words: 3}}", "max_unsafe_words can't be 3"),
        ("languages: {ar: {max_unsafe_words: {count: 9, share: few}}}", "max_unsafe_words can't be"),
        ("languages: {ar: {max_unsafe_words: {count: 3}}}", "max_unsafe_words can't be"),
        ("languages: {ar: {min_stop_words: 2, stop_words: [في الدار]}}", "stop_words must hold single words; 'في الدار' is 2"),
        ("languages: {ar: {min_stop_words: 2, stop_words: ['!']}}", "stop_words must hold single words; '!' is 0"),
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
