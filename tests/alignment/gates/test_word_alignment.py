"""Words of a rewrite and where they come from: distances and subsequences against plain definitions."""

from functools import cache
from itertools import combinations, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_native.alignment.gates.alignment import (
    ALIGNED,
    ELSEWHERE,
    JOINED,
    NO_SOURCE,
    PARTED,
    PREFIXES,
    RELATED,
    SUFFIXES,
    TextReader,
    align,
    edits_between,
    related,
)
from megatron_native.corpus.folding import fold

READER = TextReader()
WORDS = st.lists(st.sampled_from(["قمر", "شمس", "بحر", "نجم"]), max_size=7)


def sources(origin, rewritten):
    found = align(READER.read(origin), READER.read(rewritten))
    return found.source.tolist()


def letters(word):
    return np.array([ord(letter) for letter in word], dtype=np.uint32)


def are_related(one, other):
    a, b = letters(fold(one)), letters(fold(other))
    return bool(related(a, 0, len(a), b, 0, len(b), *PREFIXES, *SUFFIXES))


def distance(a, b):
    """Restricted Damerau distance by its recursive definition."""

    @cache
    def of(i, j):
        if min(i, j) == 0:
            return max(i, j)
        options = [of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (a[i - 1] != b[j - 1])]
        if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
            options.append(of(i - 2, j - 2) + 1)
        return min(options)

    return of(len(a), len(b))


@given(st.text("ابتث", max_size=7), st.text("ابتث", max_size=7))
@settings(max_examples=150, deadline=None)
def test_edits_are_the_restricted_damerau_distance(a, b):
    assert edits_between(letters(a), 0, len(a), letters(b), 0, len(b)) == distance(a, b)


@given(WORDS, WORDS)
@settings(max_examples=150, deadline=None)
def test_partners_are_equal_words_in_order_and_none_could_be_added(a, b):
    found = align(READER.read(" ".join(a)), READER.read(" ".join(b)))
    pairs = [(int(i), j) for j, i in enumerate(found.partner) if i >= 0]
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(x[0] < y[0] for x, y in pairwise(pairs))
    longest = max(
        (size for size in range(len(a) + 1) for chosen in combinations(a, size) if is_within(chosen, b)), default=0
    )
    # runs are preferred to single words, which may cost a pair at most where words come again
    assert len(pairs) >= longest - 1
    if len(set(a)) == len(a) and len(set(b)) == len(b) and longest <= 1:
        assert len(pairs) == longest


def is_within(words, text):
    places = iter(text)
    return all(word in places for word in words)


def test_words_are_read_in_the_matching_view():
    text = READER.read("أُسْرَةٌ، ٢٥")
    assert [text.word(0), text.folded(0), text.folded(1)] == ["أُسْرَةٌ", "اسره", "25"]
    assert text.numeric.tolist() == [False, True]


def test_sources_of_words():
    assert sources("ذهب الولد إلى المدرسة", "ذهب الولد إلي المدرسه") == [ALIGNED] * 4
    assert sorted(sources("جاء الرجل ثم ذهب", "ذهب الرجل")) == [ALIGNED, ELSEWHERE]
    assert sources("كتب الطالب رسالة", "كتب الطلاب رسالته") == [ALIGNED, NO_SOURCE, RELATED]
    assert sources("تقعمدينة جدة", "تقع مدينة جدة") == [PARTED, PARTED, ALIGNED]
    assert sources("زار عبد الله جدة", "زار عبدالله جدة") == [ALIGNED, JOINED, ALIGNED]


def test_two_long_words_written_as_one_have_no_source():
    assert sources("زار وفدكم من المدرسة مصنع الزجاج", "زار وفدكم من المدرسةمصنع الزجاج")[3] == NO_SOURCE


def test_words_are_related_by_affixes_alone():
    assert are_related("مدرسة", "والمدرسة")
    assert are_related("كتاب", "كتابهم")
    assert are_related("المهندسون", "المهندسين")
    assert are_related("يشرب", "شرب")
    assert not are_related("القانون", "القانوث")
    assert not are_related("سعاد", "سعيدة")
    assert not are_related("من", "منه")  # stems of two letters say nothing


def test_the_nearest_word_is_of_the_same_place():
    found = align(READER.read("يقع جبل توبقال في المغرب"), READER.read("يقع جبل توبكان في المغرب"))
    assert (found.source[2], found.nearest[2], found.edits[2]) == (NO_SOURCE, 2, 2)


def test_long_texts_are_aligned_too():
    words = [f"كلمة{number}" for number in range(4000)]
    changed = [*words[:1000], "جديدة", *words[1000:2500], *words[2510:]]
    found = align(READER.read(" ".join(words)), READER.read(" ".join(changed)))
    assert np.flatnonzero(found.partner < 0).tolist() == [1000]
    assert np.flatnonzero(found.kept != ALIGNED).tolist() == list(range(2500, 2510))
