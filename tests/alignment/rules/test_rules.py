"""What each rule does, and what it leaves alone: texts before and after, written by hand."""

# ruff: noqa: E501 (texts)

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_native.alignment.rules import NAMES, RULES, RuleSettings, build_rules, triggers
from megatron_native.corpus.folding import code_points
from megatron_native.corpus.scripture import ScriptureFinder
from megatron_native.errors import UserError

BEFORE_AND_AFTER = {
    "html": [
        ("<p>تقع المدينة على <b>الساحل</b>.</p>", "\n\nتقع المدينة على الساحل.\n\n"),
        ("الطب &amp; الصيدلة", "الطب & الصيدلة"),
    ],
    "bbcode": [
        ("قال [b]الوزير[/b] إن [color=red]العمل[/color] بدأ.", "قال الوزير إن العمل بدأ."),
        ("صورة المبنى [img]pic.jpg[/img] بعد الترميم", "صورة المبنى  بعد الترميم"),
        ('[caption id="a1" width="300"]واجهة المتحف[/caption]', "واجهة المتحف"),
    ],
    "wiki": [
        ("زار [[الرياض|العاصمة]] ثم [[جدة]].", "زار العاصمة ثم جدة."),
        ("== التاريخ ==\nبُني الحصن قديمًا.", "## التاريخ\nبُني الحصن قديمًا."),
        ("'''الكيمياء''' علم [عدل]", "الكيمياء علم"),
    ],
    "templates": [
        ("مرحبًا ${user.name} في المكتبة", "مرحبًا  في المكتبة"),
        ("انظر [الجدول](javascript:void(0)) أدناه", "انظر الجدول أدناه"),
        ("نص أول\n(adsbygoogle = window.adsbygoogle || []).push({});\nنص ثان", "نص أول\nنص ثان"),
    ],
    "blanks": [
        ("  كتب   الطالب\u00a0درسه.  \n\n\n\nثم نام.\n", "كتب الطالب درسه.\n\nثم نام."),
        ("سطر أول\r\n   سطر ثان", "سطر أول\nسطر ثان"),
    ],
    "site_lines": [
        ("انتهى الاجتماع.\n\n...المزيد", "انتهى الاجتماع.\n"),
        ("انتهى الاجتماع.\nعدد المشاهدات: 152\nوغادر الوفد.", "انتهى الاجتماع.\nوغادر الوفد."),
        ("انتهى الاجتماع.\nصورة أرشيفية\nوغادر الوفد.", "انتهى الاجتماع.\nوغادر الوفد."),
    ],
    "advertisements": [
        ("انتهى الاجتماع. اضغط هنا للاشتراك في النشرة.", "انتهى الاجتماع."),
        ("انتهى الاجتماع.\nتابعونا على تويتر\nوغادر الوفد.", "انتهى الاجتماع.\nوغادر الوفد."),
    ],
    "wrapped_lines": [
        (
            "كانت القرية تنام على سفح جبل عال تحيط به\nأشجار الصنوبر من كل جانب وتجري بقربها عين\n"
            "ماء صافية يقصدها الناس من القرى المجاورة كل\nصباح ليملؤوا جرارهم قبل أن تشتد حرارة الشمس\nفي النهار.",
            "كانت القرية تنام على سفح جبل عال تحيط به أشجار الصنوبر من كل جانب وتجري بقربها عين "
            "ماء صافية يقصدها الناس من القرى المجاورة كل صباح ليملؤوا جرارهم قبل أن تشتد حرارة الشمس في النهار.",
        )
    ],
    "bullets": [
        ("المقادير:\n• كوب أرز\n•ملعقة ملح", "المقادير:\n- كوب أرز\n- ملعقة ملح"),
        ("الشروط:\n1-حسن السيرة\n2 - إجادة اللغة", "الشروط:\n1. حسن السيرة\n2. إجادة اللغة"),
    ],
    "tatweel": [
        ("الســـلام عليكم", "السلام عليكم"),
        ("عام 1436هــ الموافق", "عام 1436هـ الموافق"),
    ],
    "arabic_signs": [
        ("جاء خالد, ثم سعيد; فمن بقي?", "جاء خالد، ثم سعيد؛ فمن بقي؟"),
        ("في عام 2014, قال المدير", "في عام 2014، قال المدير"),
    ],
    "repeated_signs": [
        ("يا للعجب!!!! من فعل هذا؟؟؟", "يا للعجب! من فعل هذا؟"),
        ("خبز،، وملح..... وماء", "خبز، وملح... وماء"),
    ],
    "mirrored_quotes": [("قرأت كتاب »الأيام« أمس.", "قرأت كتاب «الأيام» أمس.")],
    "blanks_before_signs": [("وصل الوفد ، ثم غادر .", "وصل الوفد، ثم غادر.")],
    "blanks_inside_brackets": [
        ("زار العاصمة ( الرياض ) اليوم، وقرأ « الأيام ».", "زار العاصمة (الرياض) اليوم، وقرأ «الأيام».")
    ],
    "straight_quotes": [
        ('كشفت شركة" زيمبريوم "ثغرة', None),
        ('كشفت شركة "زيمبريوم"ثغرة في نظام " أندرويد ".', 'كشفت شركة "زيمبريوم" ثغرة في نظام "أندرويد".'),
    ],
    "blanks_after_signs": [
        ("وصل الوفد،وغادر الضيف.وقال الوزير:إن العمل مستمر", "وصل الوفد، وغادر الضيف. وقال الوزير: إن العمل مستمر"),
        ("الوزير(السابق)حضر", "الوزير (السابق) حضر"),
    ],
}
LEFT_ALONE = {
    "html": ["إذا كان أ < ب وكان ب > ج", "اكتب `<b>` لتغميق الخط", "```\n<p>نص</p> & مثال\n```"],
    "bbcode": ["الفصل [1] من الكتاب [هكذا]", "`[b]نص[/b]`"],
    "wiki": ["قال [[إن الأمر، كما رأينا، واضح]]", "المصفوفة [[1,2],[3,4]]"],
    "templates": ["السعر 5$ أو {خمسة} دولارات", "```\necho ${HOME}\n```"],
    "blanks": [
        "قفا نبك من ذكرى حبيب ومنزل     بسقط اللوى بين الدخول فحومل\nفتوضح فالمقراة لم يعف رسمها     لما نسجتها من جنوب وشمأل",
        "مثال:\n\n    for i in range(3):\n        print(i)",
        "- بند\n  - بند فرعي",
    ],
    "site_lines": ["قرأ المزيد من الناس الخبر بعد نشره في الصحيفة.", "بلغت المشاهدات: مليون مشاهدة في اليوم، بحسب الشركة المالكة للموقع التي أعلنت الأرقام في مؤتمر صحفي عقدته أمس في مقرها الرئيسي بحضور عدد كبير من الصحفيين."],
    "advertisements": [
        "أطلقت الشركة تطبيقًا جديدًا يتيح للمستخدم أن يضغط على الرابط ليشترك في الخدمة.",
        "أعلنت الوزارة عن خصم بنسبة 20 في المائة على المخالفات المرورية.",
        "وقال المذيع للجمهور: «اشترك الآن في القناة».",
        "حمل التطبيق اسم «طريق»، وأطلقته الهيئة أمس.",
        "سجل الآن فريق الهلال ثلاثة أهداف في المباراة.",
        "تابعنا في الحلقة الماضية قصة الرحالة ابن بطوطة.",
        "اتصل بنا أحد القراء وروى ما حدث في الحي.",
        "عروض المسرح المدرسي تبدأ يوم 12 من الشهر.",
        "للبيع شروط ذكرها الفقهاء في كتبهم.",
    ],
    "wrapped_lines": [
        "الخيل والليل والبيداء تعرفني\nوالسيف والرمح والقرطاس والقلم\nصحبت في الفلوات الوحش منفردا\nحتى تعجب مني القور والأكم",
        "- كوب من الأرز المصري المغسول جيدًا قبل الطبخ\n- ملعقة كبيرة من السمن البلدي أو الزبدة الطرية\n- نصف ملعقة صغيرة من الملح وقليل من الفلفل الأسود\n- ماء ساخن يكفي لغمر الأرز ويزيد",
        "عنوان أول\nعنوان ثان\nعنوان ثالث\nعنوان رابع",
    ],
    "bullets": ["-5 درجات في الليل\n3 درجات في النهار", "- نعم\n- لا", "2014-2015\n2015-2016", "*مهم* جدًا\n*انتبه* إلى هذا"],
    "tatweel": ["لـ«العربية» ولـ20 طالبًا", "عام 1436هـ", "رَحْمَـٰن", "ـــــــ"],
    "arabic_signs": ["بلغ السعر 1,500 ريال", "هو كتاب Programming, Web, Data", "قرأت x, y ثم z", "ا?لي", "كأس الخليج ???? في الرياض", "https://example.org/?q=a,b;c", "النقطة (3, 4)", "`س, ص`", "$ف(س, ص) = 2$"],
    "repeated_signs": ["حقا؟!", "كأس الخليج ???? في الرياض", "ربما.. نعم", "a ?? b", "انتظر... ثم قال", "int main() { return a||b; }"],
    "mirrored_quotes": ["قرأت «الأيام» ثم «دعاء الكروان»", "5 » 3 « 2"],
    "blanks_before_signs": ["الهلال 3 : 1 النصر", "منصة .NET للبرمجة", "مبتسم :)", "voilà !"],
    "blanks_inside_brackets": ["- [ ] مهمة", "1 ) البند الأول", "اختر ( )"],
    "straight_quotes": ['قطر الأنبوب 5" وطوله 3"', 'قال " ثم سكت', 'print("a" )'],
    "blanks_after_signs": ["الساعة 7:30", "موقع العربية.نت", "أ.د.محمد", "بي.سي", "الطالب(ة)", "ال(تشديد)", "من ”أولى“ إلى ”ثانية“", "3.14", "http://a.sa/ب:ج"],
}  # fmt: skip
VERSE = "الحمد لله رب العالمين الرحمن الرحيم مالك يوم الدين"


@pytest.mark.parametrize(("name", "before", "after"), [
    (name, before, after) for name, pairs in BEFORE_AND_AFTER.items() for before, after in pairs if after is not None
])  # fmt: skip
def test_a_rule_alone_edits_what_it_names(name: str, before: str, after: str) -> None:
    result = build_rules({"only": [name]}).apply(before)
    assert result.text == after
    assert set(result.edits) == {name} and result.edits[name] >= 1


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in LEFT_ALONE.items() for text in texts])
def test_a_rule_leaves_alone_what_is_right_or_doubtful(name: str, text: str) -> None:
    assert build_rules({"only": [name]}).apply(text) == (text, {})


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in LEFT_ALONE.items() for text in texts])
def test_all_rules_together_are_idempotent_on_doubtful_texts(name: str, text: str) -> None:
    rules = build_rules()
    once = rules.apply(text).text
    assert rules.apply(once) == (once, {})


def test_every_rule_has_examples_of_both_kinds_and_a_description() -> None:
    assert set(BEFORE_AND_AFTER) == set(LEFT_ALONE) == set(NAMES)
    assert all(rule.description.endswith(".") for rule in RULES)


def test_rules_work_together() -> None:
    text = "<p>وصل الوفد ,ثم غادر .</p>\n&nbsp;اشترك الآن في قناتنا\nوقال الوزير ( أمس ):شكرًا!!"
    result = build_rules().apply(text)
    assert result.text == "وصل الوفد، ثم غادر.\n\nوقال الوزير (أمس): شكرًا!"
    assert result.edits["html"] == 1 and result.edits["advertisements"] == 1


def test_a_text_without_edits_is_the_same_object() -> None:
    text = "هذا نص سليم، لا يحتاج إلى تعديل."
    result = build_rules().apply(text)
    assert result.text is text and result.edits == {}
    assert build_rules().apply("") == ("", {})


@pytest.mark.parametrize(
    "frame", ["{}", "قال تعالى : {} .", "قال تعالى: ﴿ {} ﴾ ,ثم شرح", "<b>{}</b>\u00a0 ,, \n\n\n {}"]
)
@pytest.mark.parametrize(
    "verse", [VERSE, VERSE.replace(" ", "  "), VERSE.replace("الدين", "الديـــن"), VERSE.replace(" مالك", " , مالك")]
)
def test_scripture_stays_letter_for_letter(frame: str, verse: str) -> None:
    text = frame.format(*[verse] * frame.count("{}"))
    spans = ScriptureFinder().spans(code_points(text))
    passages = [text[begin:end] for begin, end in spans]
    assert passages, "the verse must be recognised, or the test says nothing"
    for result in (build_rules().apply(text), build_rules().apply(text, spans)):
        for passage in passages:
            assert passage in result.text


def test_spans_of_scripture_given_are_kept_where_the_text_begins_with_blanks() -> None:
    text = "   قال : وصل  القطار ."
    begin = text.index("وصل")
    assert build_rules().apply(text, [(begin, begin + len("وصل  القطار ."))]).text == "قال: وصل  القطار ."


def test_an_advertisement_that_quotes_scripture_stays() -> None:
    text = f"اشترك الآن في قناتنا {VERSE}"
    assert build_rules().apply(text).text == text


def test_code_tables_and_addresses_stay() -> None:
    text = "مثال ,هنا :\n```python\nx = [ 1 ,2 ]  # تعليق ,هنا !!\n```\n| أ , ب | ج |\n|---|---|\nانظر https://ar.example.org/س,ص?x=1;y"
    result = build_rules().apply(text).text
    for kept in ("x = [ 1 ,2 ]  # تعليق ,هنا !!", "| أ , ب | ج |", "https://ar.example.org/س,ص?x=1;y"):
        assert kept in result
    assert result.startswith("مثال، هنا:")


def test_rules_are_switched_by_name() -> None:
    text = "وصل الوفد , ثم غادر !!"
    assert build_rules({"only": ["arabic_signs"]}).apply(text).text == "وصل الوفد ، ثم غادر !!"
    assert build_rules({"without": ["arabic_signs"]}).apply(text).edits.keys() == {
        "repeated_signs",
        "blanks_before_signs",
    }
    assert build_rules(RuleSettings(only=["tatweel"])).names == ("tatweel",)


def test_parameters_name_the_rules_and_are_json() -> None:
    every, some = build_rules().parameters, build_rules({"without": ["html"]}).parameters
    assert json.loads(json.dumps(every)) == every
    assert every["rules"] == list(NAMES) and "html" not in some["rules"]


@pytest.mark.parametrize("settings", [{"only": ["htlm"]}, {"without": list(NAMES)}, {"onyl": ["html"]}])
def test_wrong_settings_are_named(settings: dict[str, list[str]]) -> None:
    with pytest.raises(UserError, match=r"rule"):
        build_rules(settings)


PIECES = [
    "قال", "الوزير", "وال", "و", "ه", "الســلام", "1436", "هـ", "ـ", "2,5", "x", "Word", "قال: \"نعم؟\" ثم", ",", ";", "?", "،", "؛", "؟", "!", ".",
    ":", "…", "..", " ", " ", " ", "  ", "\u00a0", "\n", "\n\n", "(", ")", "«", "»", '"', "“", "”", "[", "]", "[b]", "[/b]", "<b>",
    "</b>", "&amp;", "`", "$", "|", "\t", "•", "- ", "1-", "* ", "https://a.sa/b?c,d", "اضغط هنا", "اشترك الآن", "المزيد", "﴿", "﴾",
    VERSE, "{{", "}}", "${a}", "'''", "==", "#", "```", "كلمة طويلة من عدة كلمات لا تقول شيئًا ذا بال لكنها تملأ السطر",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_a_second_time_changes_nothing(pieces: list[str]) -> None:
    for glue in ("", " "):
        text = glue.join(pieces)
        once = RULES_OF_ALL.apply(text).text
        assert RULES_OF_ALL.apply(once) == (once, {})


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.sampled_from(["", " "]))
def test_a_rule_whose_signs_are_not_there_has_nothing_to_do(pieces: list[str], glue: str) -> None:
    text = glue.join(pieces)
    flags = triggers.look(code_points(text))
    for rule in RULES:
        if not rule.triggers & (flags | triggers.SITE_WORDS | triggers.CALLS):
            assert rule.edit(text) == (text, 0)


@given(st.text(max_size=200))
def test_a_second_time_changes_nothing_in_any_text(text: str) -> None:
    once = RULES_OF_ALL.apply(text).text
    assert RULES_OF_ALL.apply(once) == (once, {})


RULES_OF_ALL = build_rules()
