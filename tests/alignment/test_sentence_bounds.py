"""Ends of sentences, marked by hand with ‖ where a sentence ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_native.alignment.sentence_bounds import (
    BLANKS,
    COMMA,
    LINE,
    PARAGRAPH,
    SENTENCE,
    WEAK,
    bounds,
    sentence_ends,
    weaker,
    word_ends,
)

MARKED = {
    "plain": [
        "ذهب الولد إلى المدرسة.‖ ثم عاد إلى البيت.‖",
        "هل وصل القطار؟‖ لا أدري!‖ ربما غدا‖",
        "انتهى الدرس!!‖ هيا بنا.‖",
        "أحقا؟!‖ لم أكن أعلم.‖",
        "  مسافة في البداية.‖ وأخرى في النهاية.‖  ",
        "هو شاعر ؟‖ بل كاتب .‖ نعم‖",
        "یہ پہلا جملہ ہے۔‖ یہ دوسرا ہے۔‖",
        "今天很好。‖明天呢？‖",
    ],
    "full stops with no space after them": [
        "انتهت الحرب.‖وقال الوزير إنها لن تعود.‖",
        "لماذا؟‖لأن الوقت تأخر.‖",
        "كفى!‖هيا بنا.‖",
        "نشرته alarabiya.net أمس.‖",
    ],
    "abbreviations": [
        "وصل د. محمد إلى الرياض.‖ ثم غادر.‖",
        "ألقى أ.د. علي محاضرة.‖ وحضر م. سعيد.‖",
        "قال أ. د. أحمد ذلك.‖",
        "انظر ص. 15 من الكتاب.‖",
        "ولد سنة 200 هـ. في بغداد.‖",
        "مات سنة 322 ق.م. في بابل.‖",
        "اشترى الخبز والجبن إلخ. ثم عاد.‖",
        "حضر د.محمد الحفل.‖",
        "وقال لتلفزيون بي.بي.سي إنه باق.‖",
        "صدر عام 1990م.‖ ونفدت طبعته.‖",
        "مع ود. خالد وغيره.‖",
        "حضر (د. محمد) الحفل.‖",
    ],
    "English": [
        "Dr. Smith met Mr. Jones.‖ They talked.‖",
        "The U.S. economy grew.‖ Prices fell.‖",
        "J. K. Rowling wrote it.‖ He read it.‖",
        "It is approx. five, i.e. few.‖",
        "Is it? he said.‖ Yes.‖",
        "See fig. 3 and no. 5.‖ No. 6 is lost.‖",
        "يستعمل Windows 11.‖ وهو من شركة Microsoft.‖ انتهى‖",
    ],
    "numbers and dates": [
        "بلغ السعر 3.5 دولار.‖ ثم ارتفع.‖",
        "النسبة ٣٫٥ في المئة.‖ والعدد 1,000.‖",
        "في 1.2.2020 بدأ العمل.‖",
        "في 1. 2. 2020 بدأ العمل.‖",
        "وصل عددهم إلى 300.‖ وقال آخرون إنهم أكثر.‖",
        "صدر الإصدار 2.0.‖ وهو أسرع.‖",
        "ارتفع بنسبة 5.2%.‖ ثم هبط.‖",
    ],
    "addresses and files": [
        "زوروا www.example.com.‖ أو اتصلوا.‖",
        "الموقع https://example.com/a.b?c=d.e مفيد.‖ جربه.‖",
        "راسلنا على info@example.com.sa أو تعال.‖",
        "افتح الملف report.final.docx ثم اقرأ.‖",
        "في https://ar.wikipedia.org/wiki/السعودية.الرياض خبر.‖",
    ],
    "ellipses": [
        "والآن... ماذا نفعل؟‖",
        "كان يا ما كان… ثم نام.‖",
        "قال.. ثم سكت.‖",
        "هل أنت متأكد...؟‖ نعم.‖",
        "...وما زال ينتظر.‖",
        "He waited...‖ Then he left.‖",
        "لا أعرف...‖\nربما غدا.‖",
    ],
    "quotations and brackets": [
        "قال: «سنعود غدا.»‖ ثم خرج.‖",
        "قال: «سنعود غدا. لن نتأخر» ثم خرج.‖",
        'قال "سنعود. لن نتأخر" ثم خرج.‖',
        "قال “سنعود. لن نتأخر” ثم خرج.‖",
        "قال »سنعود. لن نتأخر« ثم خرج.‖",
        "انتهى الأمر (كما قيل. وقد لا يكون) اليوم.‖",
        "(انظر الفصل الثالث.)‖ وقال غيره.‖",
        "هذا إنجاز (!) كبير.‖",
        "قال ذلك [الكتاب. الباب] أمس.‖",
        'قال: "كفى."‖ وخرج.‖',
        "انتهى الفصل.[1]‖ وبدأ غيره.‖",
        "سأل: «لماذا؟»‖ فأجاب.‖",
    ],
    "verses": [
        "قال تعالى: ﴿الحمد لله. رب العالمين﴾ [الفاتحة: 2].‖ وقال غيره.‖",
        "﴿قل هو الله أحد ۝ الله الصمد. لم يلد﴾ سورة.‖",
        "قرأ ﴾الحمد لله. رب العالمين﴿ ثم ركع.‖",
    ],
    "dialogue": [
        "- كيف حالك؟‖ - بخير.‖",
        "- من هناك؟‖\n- أنا.‖\n- ادخل!‖",
    ],
    "lines": [
        "عنوان الخبر‖\nنص الخبر هنا.‖ وتتمته.‖",
        "# المقدمة‖\n\nنص المقدمة.‖",
        "1. افتح الباب‖\n2. ادخل.‖ ثم اجلس‖",
        "١. البند الأول‖\n٢. البند الثاني‖",
        "1.1. فرع‖\n1.2. فرع آخر‖",
        "أ. الخيار الأول‖\nب. الخيار الثاني‖",
        "• تفاح‖\n• موز‖\n• برتقال‖",
        "قفا نبك من ذكرى حبيب ومنزل ... بسقط اللوى بين الدخول فحومل‖\nفتوضح فالمقراة لم يعف رسمها ... لما نسجتها من جنوب‖",
        "على قدر أهل العزم تأتي العزائم *** وتأتي على قدر الكرام المكارم‖",
        "فقرة أولى.‖\r\n\r\nفقرة ثانية.‖\r\n",
        "سطر.‖\u2028سطر آخر.‖",
    ],
    "marks and bidirectional controls": [
        "ذَهَبَ الوَلَدُ.\u064b‖ ثُمَّ عَادَ.‖",
        "وصل \u200fد\u200f. محمد.‖ ثم غادر.‖",
        "انتهى.\u200f‖ وبدأ.‖",
    ],
    "dialect": [
        "إزيك يا عم؟‖ عامل إيه؟‖ أنا تمام والحمد لله.‖",
        "شو بدك تعمل هلق؟‖ ما بعرف والله!‖",
        "وش السالفة..؟‖ ما دريت.‖",
    ],
}
"""What ends where; the last end of each example is the end of its text."""
EXAMPLES = [
    pytest.param(example, id=f"{kind} {number}") for kind in MARKED for number, example in enumerate(MARKED[kind])
]


def unmarked(example):
    """The text, and where its sentences end."""
    parts = example.split("‖")
    ends, length = [], 0
    for part in parts[:-1]:
        length += len(part)
        ends.append(length)
    return "".join(parts), ends


@pytest.mark.parametrize("example", EXAMPLES)
def test_sentences_end_where_a_reader_ends_them(example):
    text, ends = unmarked(example)
    assert sentence_ends(text) == ends, [text[:end][-12:] for end in sentence_ends(text)]


def test_there_are_enough_examples_to_speak_of():
    assert sum(example.count("‖") for examples in MARKED.values() for example in examples) >= 120


def test_blank_texts_have_no_sentence():
    for text in ("", "  \n\n ", "\u200f\n", "\ufeff"):
        assert sentence_ends(text) == []


def test_a_quotation_that_is_too_long_protects_nothing():
    sentence = "هذه جملة طويلة من كلام الوزير. "
    assert len(sentence_ends("قال: «" + sentence * 3 + "نعم» وخرج.")) == 1
    assert len(sentence_ends("قال: «" + sentence * 30 + "نعم» وخرج.")) == 31


def test_a_bracket_that_is_never_closed_protects_nothing():
    assert len(sentence_ends("قال «نعم. ثم خرج. وعاد.")) == 3
    assert len(sentence_ends("قال (نعم. ثم خرج.\nوعاد) اليوم.")) == 3


def test_strengths_of_bounds():
    text = "# عنوان\nجملة. جملة\nسطر\n\nفقرة\n## عنوان ثان\n\nنص"
    found = bounds(text)
    cut = [text[begin:end].strip() for begin, end in zip([0, *found.places], found.places)]
    assert cut == ["# عنوان", "جملة.", "جملة", "سطر", "فقرة", "## عنوان ثان", "نص"]
    assert found.strengths == [SENTENCE, SENTENCE, LINE, PARAGRAPH, PARAGRAPH, SENTENCE, PARAGRAPH]


def test_a_tag_at_the_beginning_of_a_line_is_no_heading():
    assert bounds("سطر\n#وسم\nسطر").strengths == [LINE, LINE, PARAGRAPH]


def test_weak_ends_and_commas():
    text = "قال: نعم؛ ثم، بعد 1,000 و١،٥ عام... عاد ,وبقي, هنا"
    assert [text[:place][-4:] for place in weaker(text, 0, len(text), WEAK)] == ["قال:", "نعم؛", "م..."]
    assert [text[:place][-3:] for place in weaker(text, 0, len(text), COMMA)] == ["ثم،", "قي,"]


def test_groups_of_digits_are_one_word():
    text = "عدد 10 000 رجل"
    assert [text[:place] for place in word_ends(text, 0, len(text))] == ["عدد", "عدد 10 000"]


ALPHABET = st.text('ابتد محر .!؟?…،؛:«»"“”()[]﴿﴾\n\r\t#|-123٣ّ\u200fABCd@/', max_size=200)


@settings(max_examples=300, deadline=None)
@given(ALPHABET)
def test_bounds_are_ascending_and_after_something_visible(text):
    found = bounds(text)
    assert len(found.places) == len(found.strengths)
    begin = 0
    for end in found.places:
        assert begin < end and not BLANKS.issuperset(text[begin:end])
        begin = end
    assert BLANKS.issuperset(text[begin:])
    assert all(first < last for first, last in found.spans)
    inside = [place for place in found.places for first, last in found.spans if first < place < last]
    assert inside == []


@settings(max_examples=200, deadline=None)
@given(ALPHABET, ALPHABET)
def test_what_follows_a_blank_line_changes_no_bound_before_it(first, second):
    first = first.replace("﴿", "").replace("﴾", "") + "ن"
    second = "ن" + second.replace("﴿", "").replace("﴾", "")
    places = bounds(first).places
    assert bounds(first + "\n\n" + second).places[: len(places)] == places
