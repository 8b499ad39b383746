"""Passages: nothing of a text is lost, budgets hold, what belongs together stays together, and what is joined fits."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_native.alignment.passages import Outcome, estimated_tokens, join, separators, split
from megatron_native.alignment.sentence_bounds import BLANKS
from megatron_native.errors import UserError

FENCE = "```python\nprint(1)\n\nprint(2)\n```"


def words(text):
    """A counter to reckon with by hand: a token a word."""
    return len(text.split())


def letters(text):
    """A counter under which even a word can be too long."""
    return len(text)


def texts(found):
    return [passage.text for passage in found]


def whole(text, found):
    between = separators(text, found)
    return between[0] + "".join(passage.text + after for passage, after in zip(found, between[1:]))


def kept(found):
    return [Outcome(passage.id, passage.digest, None) for passage in found]


def sentence(length, first="كلمة"):
    return " ".join([first] + ["كلمة"] * (length - 1)) + "."


PIECES = st.sampled_from([
    "كلمة", "والعدد", "قال", "د", "word", "The", "3.5", "١٢", " ", " ", " ", "\n", "\n\n", "\r\n", "\t", ".", "، ", "؛ ", "؟",
    "!", "…", "...", "«", "»", '"', "(", ")", "﴿", "﴾", "```", "\n```\n", "|", "\n| 1 | 2 |\n", "# ", "- ", "1. ", "ً", "\u200f",
    "\u00a0", "https://a.b/c", "👩‍👩‍👧", "$$", "x" * 40, "\ufeff", "\u2028",
])  # fmt: skip
TEXTS = st.lists(PIECES, max_size=60).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.integers(1, 60), st.sampled_from([words, letters, estimated_tokens]), st.integers(0, 20))
def test_nothing_is_lost_and_budgets_hold(text, budget, count, context):
    found = split(text, budget, count, context, document_id="d")
    assert whole(text, found) == text
    assert all(BLANKS.issuperset(separator) for separator in separators(text, found))
    assert [passage.id for passage in found] == [f"d#{number}" for number in range(len(found))]
    for passage in found:
        assert passage.text == text[passage.start : passage.stop] and passage.text
        assert passage.text[0] not in BLANKS and passage.text[-1] not in BLANKS
        assert passage.tokens == count(passage.text)
        assert passage.tokens <= budget or passage.frozen
        assert passage.digest == xxhash.xxh3_128_hexdigest(passage.text.encode())
    for before, after in pairwise(found):
        assert before.stop <= after.start
    assert join(text, found, kept(found)) == text
    assert split(text, budget, count, context, document_id="d") == found


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(1, 30), st.sampled_from([words, letters]), st.integers(1, 20))
def test_context_is_the_text_next_to_a_passage(text, budget, count, context):
    found = split(text, budget, count, context)
    for passage in found:
        assert count(passage.before) <= context and count(passage.after) <= context
        before, after = text[: passage.start], text[passage.stop :]
        blanks = "".join(BLANKS)
        assert before.rstrip(blanks).endswith(passage.before)
        assert after.lstrip(blanks).startswith(passage.after)


def test_a_counter_whose_pieces_do_not_add_up_is_obeyed():
    def more_together(text):
        return len(text.split()) ** 2 // 4 + 1

    text = " ".join(sentence(3) for _ in range(40))
    found = split(text, 20, more_together)
    assert whole(text, found) == text
    assert max(passage.tokens for passage in found) <= 20


def test_a_blank_text_has_no_passage():
    for text in ("", " \n\t ", "\u200f"):
        assert split(text, 5, words) == [] and separators(text, []) == [text] and join(text, [], []) == text


def test_a_text_that_fits_is_one_passage_without_context():
    (passage,) = split("  سطر.\n\nسطر آخر.\n", 10, words, 5, "x")
    assert (passage.text, passage.start, passage.stop, passage.before, passage.after) == (
        "سطر.\n\nسطر آخر.",
        2,
        16,
        "",
        "",
    )


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="budget 0"):
        split("نص", 0)
    with pytest.raises(ValueError, match="context -1"):
        split("نص", 5, context=-1)


def test_a_paragraph_that_fills_half_goes_before_a_sentence_that_fills_more():
    first, second, third = sentence(6), sentence(3), sentence(7)
    assert texts(split(f"{first}\n\n{second} {third}", 10, words)) == [first, f"{second} {third}"]


def test_a_paragraph_that_fills_less_than_half_is_joined_by_sentences():
    text = f"{sentence(2)}\n\n{sentence(5)} {sentence(6)}"
    assert texts(split(text, 10, words)) == [f"{sentence(2)}\n\n{sentence(5)}", sentence(6)]


def test_passages_come_out_alike():
    text = " ".join(sentence(1) for _ in range(12))
    assert [passage.tokens for passage in split(text, 10, words)] == [6, 6]
    text = " ".join(sentence(1) for _ in range(21))
    assert [passage.tokens for passage in split(text, 10, words)] == [7, 7, 7]


def test_a_tail_is_not_left_alone_where_a_sentence_allows_it():
    text = f"{sentence(5)} {sentence(4)}\n\n{sentence(2)}"
    assert texts(split(text, 10, words)) == [sentence(5), f"{sentence(4)}\n\n{sentence(2)}"]


def test_a_sentence_that_fits_is_not_cut():
    text = f"{sentence(2)} {sentence(9)} {sentence(3)}"
    assert texts(split(text, 10, words)) == [sentence(2), sentence(9), sentence(3)]


def test_a_long_sentence_is_cut_at_the_strongest_mark_inside_it():
    assert texts(split("أ ب ج، د ه؛ و ز ح، ط", 5, words)) == ["أ ب ج، د ه؛", "و ز ح، ط"]
    assert texts(split("أ ب ج، د ه و، ز ح ط", 6, words)) == ["أ ب ج، د ه و،", "ز ح ط"]
    assert texts(split("أ ب ج د ه و ز ح", 4, words)) == ["أ ب ج د", "ه و ز ح"]


def test_a_long_word_is_cut_between_what_a_reader_sees_as_characters():
    found = split("بَ" * 10, 8, letters)
    assert max(passage.tokens for passage in found) <= 8
    assert all(passage.text.startswith("ب") and passage.text.endswith("\u064e") for passage in found)
    assert texts(split("👩‍👩‍👧", 2, letters)) == ["👩‍👩‍👧"]


def test_quotations_brackets_and_groups_of_digits_that_fit_are_not_cut():
    quotation = "«كلمة. كلمة كلمة، كلمة»"
    text = f"كلمة كلمة كلمة {quotation} كلمة كلمة كلمة كلمة كلمة"
    assert any(quotation in passage for passage in texts(split(text, 5, words)))
    text = "كلمة كلمة كلمة (كلمة. كلمة كلمة، كلمة) كلمة كلمة كلمة كلمة كلمة"
    assert any("(كلمة. كلمة كلمة، كلمة)" in passage for passage in texts(split(text, 5, words)))
    assert all("10 000" in passage or "0" not in passage for passage in texts(split("عدد من 10 000 رجل", 2, words)))


def test_a_quotation_that_does_not_fit_is_cut_at_its_sentences():
    text = "قال: «نعم نعم نعم نعم. لا لا لا لا. كلا كلا كلا» ثم"
    assert texts(split(text, 5, words)) == ["قال: «نعم نعم نعم نعم.", "لا لا لا لا.", "كلا كلا كلا» ثم"]


def test_verses_are_never_cut():
    verse = "﴿" + " ".join(["كلمة"] * 30) + "﴾"
    found = split(f"{sentence(4)}\n{verse}\n{sentence(4)}", 8, words)
    assert [(passage.text, passage.frozen) for passage in found] == [
        (sentence(4), None), (verse, "scripture"), (sentence(4), None)
    ]  # fmt: skip


def test_scripture_without_brackets_is_given_by_its_place():
    verse = "الحمد لله رب العالمين. الرحمن الرحيم. مالك يوم الدين"
    text = f"{sentence(5)}\n{verse}\n{sentence(5)}"
    start = text.index(verse)
    found = split(text, 6, words, scripture=[(start, start + len(verse))])
    assert [(passage.text, passage.frozen) for passage in found] == [
        (sentence(5), None), (verse, "scripture"), (sentence(5), None)
    ]  # fmt: skip
    assert verse not in texts(split(text, 6, words))


def test_code_is_never_cut():
    code = "```\n" + "x = 1. y = 2\n\n" * 10 + "```"
    found = split(f"{sentence(5)}\n\n{code}\n\n{sentence(5)}", 8, words)
    assert [(passage.text, passage.frozen) for passage in found] == [
        (sentence(5), None), (code, "code"), (sentence(5), None)
    ]  # fmt: skip


def test_tables_are_cut_between_rows_only():
    rows = [f"| اسم. أول، آخر | {number}.5 |" for number in range(8)]
    table = "\n".join(rows)
    found = split(f"{sentence(5)}\n\n{table}\n\n{sentence(5)}", 16, words)
    lines = [line for passage in found for line in passage.text.split("\n") if line.startswith("|")]
    assert lines == rows
    short = "\n".join(rows[:2])
    assert any(short in passage for passage in texts(split(f"{sentence(9)}\n\n{short}\n\n{sentence(9)}", 18, words)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (FENCE, "code"),
        (f"{FENCE}\n\n{FENCE}", "code"),
        (f"{FENCE}\nنص", None),
        ("$$\nx = y + z\n$$", "code"),
        ("﴿قل هو الله أحد﴾ [الإخلاص: 1]", "scripture"),
        ("قال تعالى: ﴿قل هو الله أحد﴾", None),
        ("| أ | 1234 | 5678 |\n| ب | 2345 | 6789 |", "table"),
        ("| الاسم | العدد |\n| محمد | 1 |", None),
        ("أ\t1234\t5678\nب\t2345\t6789", "table"),
        ("https://example.com/a/b", "address"),
        ("انظر https://example.com/a/b", None),
        ("* * * 123 ---", "no words"),
        ("جملة.", None),
    ],
)
def test_what_is_frozen_and_why(text, reason):
    assert [passage.frozen for passage in split(text, 100, words)] == [reason]


def test_an_address_that_exceeds_the_budget_is_frozen_whole():
    address = "https://example.com/" + "a" * 100
    found = split(f"{'كلمة ' * 20}{address} {'كلمة ' * 20}", 50, letters)
    assert [passage.frozen for passage in found if passage.text == address] == ["address"]


def test_layout_is_between_passages():
    text = "\n  عنوان هنا\n\n\n    - بند أول هنا\n\t- بند ثان هنا  \n"
    found = split(text, 4, words)
    assert texts(found) == ["عنوان هنا", "- بند أول هنا", "- بند ثان هنا"]
    assert separators(text, found) == ["\n  ", "\n\n\n    ", "\n\t", "  \n"]
    outcomes = [Outcome(passage.id, passage.digest, f" [{number}]\n") for number, passage in enumerate(found)]
    assert join(text, found, outcomes) == "\n  [0]\n\n\n    [1]\n\t[2]  \n"


def test_a_heading_stays_with_what_follows_it():
    text = f"{sentence(6)}\n# عنوان قصير\n\n{sentence(5)}"
    assert texts(split(text, 10, words)) == [sentence(6), f"# عنوان قصير\n\n{sentence(5)}"]


def test_context_is_cut_at_sentences_or_else_at_words():
    text = " ".join(sentence(5, first) for first in ("أول", "ثان", "ثالث", "رابع"))
    found = split(text, 5, words, 6)
    assert [passage.before for passage in found] == ["", *(sentence(5, first) for first in ("أول", "ثان", "ثالث"))]
    assert [passage.after for passage in found] == [*(sentence(5, first) for first in ("ثان", "ثالث", "رابع")), ""]
    assert (
        found == split(text, 5, words, 9)
        and split(text, 5, words, 10)[2].before == f"{sentence(5, 'أول')} {sentence(5, 'ثان')}"
    )
    found = split(text, 5, words, 3)
    assert (found[1].before, found[1].after) == ("كلمة كلمة كلمة.", "ثالث كلمة كلمة")


def joined_example():
    text = f"{sentence(5)}\n\n{sentence(5)} {sentence(5)}\n"
    return text, split(text, 5, words, document_id="doc")


def test_outcomes_may_come_in_any_order_and_none_keeps_the_original():
    text, found = joined_example()
    assert join(text, found, reversed(kept(found))) == text
    outcomes = [
        Outcome(found[2].id, found[2].digest, "ج"),
        *kept(found[:1]),
        Outcome(found[1].id, found[1].digest, "ب"),
    ]
    assert join(text, found, outcomes) == f"{sentence(5)}\n\nب ج\n"


@pytest.mark.parametrize(
    ("taken_out", "expected"),
    [({0}, "ب ج\n"), ({1}, "أ\n\nج\n"), ({2}, "أ\n\nب\n"), ({1, 2}, "أ\n"), ({0, 1, 2}, "\n")],
)
def test_a_passage_taken_out_leaves_one_separator(taken_out, expected):
    text, found = joined_example()
    outcomes = [
        Outcome(passage.id, passage.digest, "" if number in taken_out else "أبج"[number])
        for number, passage in enumerate(found)
    ]
    assert join(text, found, outcomes) == expected


def test_outcomes_that_do_not_fit_are_refused():
    text, found = joined_example()
    right = kept(found)
    for outcomes, message in [
        (right[:2], "No outcome for doc#2"),
        ([], "doc#0, doc#1, doc#2"),
        ([*right, right[0]], "doc#0 has two outcomes"),
        ([*right, Outcome("doc#3", "", None)], "doc#3 is of another document"),
        ([right[0]._replace(digest="0" * 32), *right[1:]], "doc#0 was made from another text"),
    ]:
        with pytest.raises(UserError, match=message):
            join(text, found, outcomes)


def test_passages_that_are_not_of_the_text_are_refused():
    text, found = joined_example()
    with pytest.raises(ValueError, match="not of this text"):
        join("ن" + text, found, kept(found))
    with pytest.raises(ValueError, match="missing"):
        join(text, found[1:], kept(found[1:]))
    with pytest.raises(ValueError, match="order"):
        join(text, [*found, replace(found[0], id="doc#9")], kept(found))


def test_a_frozen_passage_needs_no_outcome_and_takes_none():
    found = split(FENCE, 100, words)
    assert join(FENCE, found, []) == FENCE == join(FENCE, found, kept(found))
    with pytest.raises(UserError, match="frozen"):
        join(FENCE, found, [Outcome(found[0].id, found[0].digest, "x")])


@pytest.fixture(scope="module")
def news():
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA")
    if not data:
        pytest.skip("MEGATRON_NATIVE_TEST_DATA names no folder of real test data")
    archives = [zipfile.ZipFile(path) for path in sorted(Path(data, "saudinewsnet").glob("*.zip"))]
    return [article["content"] for archive in archives for article in json.loads(archive.read(archive.namelist()[0]))]


@pytest.mark.parametrize(("budget", "context"), [(512, 64), (128, 0)])
def test_all_of_the_real_news_comes_back(news, budget, context):
    assert len(news) == 20_329
    sizes = []
    for text in news:
        found = split(text, budget, context=context)
        assert whole(text, found) == text
        assert join(text, found, kept(found)) == text
        assert all(passage.tokens <= budget or passage.frozen for passage in found)
        if len(found) > 1:
            sizes += [passage.tokens for passage in found]
    sizes.sort()
    assert sizes[len(sizes) // 2] > 0.6 * budget
    assert sum(size < 0.2 * budget for size in sizes) < 0.02 * len(sizes)


def test_the_estimate_is_near_a_tokenizer_of_its_kind(news):
    sample = news[::40]
    assert sum(map(len, sample)) / 3.0 < sum(map(estimated_tokens, sample)) < sum(map(len, sample)) / 2.4
