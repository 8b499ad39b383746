"""What holds for every pair of texts, whatever stands in them."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_native.alignment.gates.judging import build_gates

GATES = build_gates()
PIECES = st.sampled_from([
    "زار", "الوفد", "جدة", "٢٥", "12/3", "«نعم»", "https://example.org", "\n", ". ", "اشترك في قناتنا", "﴿", "<b>", "```", "و",
    "\u0640", "\u064b", "[3]", '"', "ا" * 12, "The", "🌙",
])  # fmt: skip
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=15).map(" ".join))


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_an_unchanged_text_passes(text):
    assert GATES.judge(text, text).passed


@given(TEXTS, TEXTS)
@example("", "نص")
@example("نص", "")
@settings(max_examples=200, deadline=None)
def test_every_gate_judges_every_pair_and_says_why_it_refuses(origin, rewritten):
    verdict = GATES.judge(origin, rewritten)
    assert tuple(judgement.gate for judgement in verdict.judgements) == GATES.names
    assert verdict.passed == all(judgement.passed for judgement in verdict.judgements)
    assert all(judgement.reason for judgement in verdict.judgements if not judgement.passed)
    assert set(verdict.as_json()["refused"]) == set(verdict.refused_by)


@given(TEXTS, TEXTS)
@settings(max_examples=50, deadline=None)
def test_a_verdict_does_not_depend_on_what_was_judged_before(origin, rewritten):
    first = GATES.judge(origin, rewritten)
    GATES.judge(rewritten, origin)
    assert GATES.judge(origin, rewritten) == first


@given(
    st.lists(
        st.sampled_from(["زار", "الوفد", "مدينة", "جدة", "وبقي", "فيها", "أياما", "ثم", "عاد"]), min_size=5, max_size=30
    )
)
@settings(max_examples=50, deadline=None)
def test_spaces_and_marks_alone_are_never_refused(words):
    assert GATES.judge(" ".join(words), "  ".join(words)).passed
    assert GATES.judge(" ".join(words), "ـ ".join(words).replace("اـ", "ا")).passed
