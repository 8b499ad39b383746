"""Every count of the compiled pass, worked out again in slow and plain Python, and by hand."""

import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_native.corpus import statistics
from megatron_native.corpus.filters import QualityFilters
from megatron_native.corpus.folding import fold
from megatron_native.corpus.statistics import measure_text
from tests.corpus.corpus_files import ENGLISH, LIBRARY, STORY, arabic_text

BULLETS = "-•●▪*–◦■□➤►"
SYMBOLS = regex.compile(r"\.{3,}|[…#|<>{}\[\]\\^~*=_]|[\p{So}--\p{Arabic}--\p{InArabic}]", regex.V1)
RUNS = regex.compile(r"[\p{L}\p{N}\p{M}\u0640]+")
ENDS = '.!?؟؛…:»”")]۔。！？'


def bare(word):
    return "".join(c for c in word if unicodedata.category(c)[0] in "LN" and c != "\u0640")


def has_letter(text):
    return any(unicodedata.category(c)[0] == "L" and c != "\u0640" for c in text)


def plain_words(text):
    """Runs of letters and digits that don't fold to nothing (as marks alone do); numbers and hyphenated words joined."""
    words, last = [], None
    for run in RUNS.finditer(text):
        if not fold(run.group()):
            continue
        kind = has_letter(run.group())
        if last and run.start() == last[0] + 1 and kind == last[1] and text[last[0]] in ("'’-" if kind else ".,:/٫٬"):
            words[-1] += text[last[0]] + run.group()
        else:
            words.append(run.group())
        last = (run.end(), kind)
    return words


def duplicate_share(words, size):
    seen, place, repeated = set(), 0, 0
    while place < len(words) - size + 1:
        gram = tuple(map(fold, words[place : place + size]))
        if gram in seen:
            repeated += sum(len(bare(word)) for word in words[place : place + size])
            place += size
        else:
            seen.add(gram)
            place += 1
    return repeated / max(1, sum(len(bare(word)) for word in words))


def top_share(words, size):
    grams = [tuple(map(fold, words[start : start + size])) for start in range(len(words) - size + 1)]
    counts = Counter(grams)
    if not counts or max(counts.values()) < 2:
        return 0
    most = max(counts.values())
    first = next(place for place, gram in enumerate(grams) if counts[gram] == most)
    return most * sum(len(bare(word)) for word in words[first : first + size]) / sum(len(bare(word)) for word in words)


def slow(text):
    words = plain_words(text)
    lines = [
        line.strip(" \t\r")
        for line in text.split("\n")
        if any(unicodedata.category(c)[0] in "LN" and c != "\u0640" for c in line)
    ]
    duplicates = [line for place, line in enumerate(lines) if line in lines[:place]]
    return {
        "characters": len(text), "words": len(words), "letters": sum(len(bare(word)) for word in words),
        "alphabetic_words": sum(map(has_letter, words)),
        "lines": len(lines), "duplicate_lines": len(duplicates), "duplicate_line_characters": sum(map(len, duplicates)),
        "punctuated_lines": sum(line[-1] in ENDS for line in lines),
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines),
        "bullet_lines": sum(line[0] in BULLETS for line in lines),
        "symbols": sum(len(SYMBOLS.findall(line)) for line in text.split("\n")),
        "blanks": sum(c in " \t\r\n" for c in text),
        "arabic": sum(unicodedata.name(c, "").startswith("ARABIC ") and has_letter(c) for c in text),
        "latin": sum(unicodedata.name(c, "").startswith("LATIN ") and has_letter(c) for c in text),
        "stop_words": sum(fold(word) in map(fold, STOP_WORDS) for word in RUNS.findall(text)),
        "line_breaks": text.count("\n"), "tatweel": text.count("\u0640"),
        "marks": sum(unicodedata.category(c)[0] == "M" for c in text),
        "digits": sum(unicodedata.category(c)[0] == "N" for c in text),
    }  # fmt: skip


STOP_WORDS = ["في", "على", "من", "the"]
PIECES = ["كتب الطالب", "درس", "\n", " 12.5 ", "فِي", "عَلَى كل", "the"]
LEXICONS = QualityFilters({"min_stop_words": 1, "stop_words": STOP_WORDS}, "test").lexicons
ALPHABET = st.sampled_from("ابجدهوزحطي لاإأآةىءؤئ ٠١٢3456.,،؛؟!:-'\n \u064b\u064e\u0651\u0640abcXYZ…*#()«»[]\t•.۞😀")
TEXTS = [
    STORY, LIBRARY, ENGLISH, f"{STORY}\n{LIBRARY}\n\n{STORY}", "", " ", "\n\n", "َ", "كتب كتب كتب كتب", "9,098.27 ريال و ٩٫٥ ٪",
    "- نقطة\n- نقطة أخرى...\n• ثالثة…", arabic_text(3, 300), "\n".join([arabic_text(1, 8)] * 5),
    "well-known don't كِتَابٌ ـــ كتـــاب",
]  # fmt: skip


def check(text):
    found = measure_text(text, LEXICONS)
    assert {key: getattr(found, key) for key in slow(text)} == slow(text)
    words = plain_words(text)
    for size, share in zip((2, 3, 4), found.top_ngrams):
        assert share == pytest.approx(top_share(words, size)), size
    for size, share in zip(range(5, 11), found.duplicate_ngrams):
        assert share == pytest.approx(duplicate_share(words, size)), size


@pytest.mark.parametrize("text", TEXTS)
def test_the_compiled_pass_agrees_with_plain_python(text):
    check(text)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.text(ALPHABET, max_size=12), st.sampled_from(PIECES)), max_size=40
    )
)
def test_it_agrees_on_anything(pieces):
    check(" ".join(pieces))


def test_counts_by_hand():
    found = measure_text("سطر أول، 9,098.27 ريال.\nسطر أول، 9,098.27 ريال.\n- نقطة ... ")
    assert (found.words, found.alphabetic_words, found.letters) == (9, 7, 36)  # 2 × (3 + 3 + 6 + 4) + 4
    assert (found.lines, found.duplicate_lines, found.duplicate_line_characters) == (3, 1, 23)
    assert (found.punctuated_lines, found.ellipsis_lines, found.bullet_lines, found.symbols) == (3, 1, 1, 1)
    assert found.top_ngrams == pytest.approx(
        (12 / 36, 24 / 36, 32 / 36)
    )  # "سطر أول", with the number, with "ريال": twice each


def test_a_gram_that_came_before_counts_once_and_the_walk_goes_on_behind_it():
    words = [f"كلمة{number}" for number in range(5)]
    found = measure_text(" ".join(words * 3)).duplicate_ngrams
    assert found[0] == pytest.approx(2 / 3)  # the second and the third run of five
    assert found[5] == pytest.approx(2 / 3)  # of ten words: the sixth run, 6–15, equals the first, 1–10


def test_lexicons_are_counted_in_the_matching_view():
    filters = QualityFilters({"min_stop_words": 1, "stop_words": ["في", "على"]}, "test")
    assert measure_text("فِي البيت وعلى الباب عَلَى فى", filters.lexicons).stop_words == 3


def test_scripts_are_counted_by_letters_without_marks():
    found = measure_text("كِتَابٌ abc é ۲ ـ")
    assert (found.arabic, found.latin, found.marks, found.tatweel, found.digits) == (4, 4, 3, 1, 1)


def test_a_text_far_larger_than_the_buffers_is_measured():
    text = " ".join(f"ك{number}" for number in range(30_000))
    assert measure_text(text).words == len(plain_words(text))


@pytest.mark.parametrize(
    ("text", "words", "letters", "alphabetic"),
    [
        ("٩٫٥ 9,098.27 12/5/2015 10:30", 4, 19, 0),  # one number each, of 2, 6, 7 and 4 digits
        ("1, 2", 2, 2, 0),  # a separator with a space behind it parts
        ("النهاية.البداية", 2, 14, 2),  # a full stop joins figures alone
        ("㎏ ㎏ ㎏", 3, 3, 3),  # a sign that is spelled out in the matching view
        ("َ ُ ِ", 0, 0, 0),
        ("\U000f0000 \U000f0001", 0, 0, 0),  # private characters
    ],
)
def test_what_a_word_is(text, words, letters, alphabetic):
    found = measure_text(text)
    assert (found.words, found.letters, found.alphabetic_words) == (words, letters, alphabetic)


def test_signs_of_scripture_are_no_symbols_and_pictographs_are():
    assert measure_text("۞ وقال ﷽ ثم قال ۩").symbols == 0
    assert measure_text("😀 ثم قال ★").symbols == 2


def test_a_run_of_dots_is_one_symbol():
    assert measure_text("قال... ثم قال ..... ثم..").symbols == 2


def test_threads_do_not_disturb_each_other():
    texts = [arabic_text(seed, 400) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(measure_text, texts)) == list(map(measure_text, texts))


def test_tables_begin_anew_where_their_clock_ends():
    text = f"{STORY}\n{STORY}\n{LIBRARY}"
    expected = measure_text(text)
    statistics._BUFFERS.clock[0] = statistics._LAST_STAMP - 5
    assert [measure_text(text) for _ in range(3)] == [expected] * 3
    assert statistics._BUFFERS.clock[0] < 100
