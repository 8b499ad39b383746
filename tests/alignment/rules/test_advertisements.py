"""Calls to action go, news about offers and apps stays; a team's own list works in place of the shipped one."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_native.alignment.rules import build_rules
from megatron_native.alignment.rules.advertisements import SHIPPED, load_advertisements
from megatron_native.errors import UserError

CALLS = [
    "اشترك الآن في قناتنا ليصلك كل جديد", "اشتركوا في النشرة البريدية", "سجّل الآن!", "لا تنسوا الاشتراك وتفعيل الجرس",
    "فعّل الجرس", "Subscribe to our newsletter", "اضغط هنا", "انقر على الرابط لمشاهدة الفيديو", "لمزيد من التفاصيل اضغط هنا",
    "للإعلان معنا", "أعلن معنا على موقعنا", "احجز مساحتك الإعلانية اليوم", "تابعونا على تويتر @example",
    "تابعنا على فيسبوك", "تابعوا حسابنا على سناب", "تابعونا", "لمتابعة قناتنا على يوتيوب", "شاركونا عبر صفحتنا",
    "Follow us on Twitter", "حمّل التطبيق الآن", "حمّلوا تطبيق الصحيفة من متجر التطبيقات", "حمل التطبيق",
    "Download our app today", "انضموا إلى مجموعتنا في واتساب", "للانضمام إلى المجموعة https://chat.example.com/abc",
    "رابط القناة في تلغرام https://t.me/example", "شارك الخبر مع أصدقائك", "اطلب الآن واحصل على هدية",
    "للحجز والاستفسار: 0501234567", "للبيع شقة في حي النخيل، ثلاث غرف، الاتصال على 0501234567",
    "خصم خاص على العطور، واتساب 0501234567", "عرض خاص لفترة محدودة، اطلبه قبل نفاد الكمية",
    "رابط الخبر بصحيفة المدينة: افتتاح متحف جديد",
]  # fmt: skip
NEWS = [
    "اشترك في القناة مليون شخص خلال عام واحد.", "سجل اللاعب هدفين في الشوط الأول.", "سجل الآن رقمًا جديدًا في السباق.",
    "حمل تطبيق الوزارة على عاتقه تبسيط الإجراءات.", "حمل المتظاهرون لافتات.", "نزل التطبيق إلى الأسواق أمس.",
    "انضم 20 طالبًا إلى مجموعة واتساب أنشأها المعلم.", "شارك الفيديو على تويتر آلاف المستخدمين.",
    "أعلن على الموقع الرسمي موعد القبول.", "أعلن هنا في الرياض عن المشروع.", "تابعنا عبر الشاشات ما جرى في الملعب.",
    "عروض المسرح تبدأ في 2014 - 2015 وتستمر شهرًا.", "خصم البنك 200 ريال من الحساب ثم أعادها.",
    "اتصل بنا والد الطفل وشكر الطبيب.", "للبيع والشراء أحكام في الفقه.", "عرض خاص للوفد أقيم في المتحف الوطني.",
    "لا تنس أن الوقت كالسيف.", "رابط الأخوة بين البلدين قديم.", "انشر العلم بين الناس.", "احجز السيول كان هدف السد.",
    "دعت الشركة زبائنها قائلة: اشترك الآن.", "وكتب على اللوحة «اضغط هنا».",
    "«هذه رسالتهم. اشترك الآن معنا في الحملة»، كما يقول المعلم.", 'وقال: "هذه رسالتهم. اشترك الآن معنا"، كما يقول المعلم.',
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "frame", ["{}", "انتهى الاجتماع.\n{}\nوغادر الوفد.", "انتهى الاجتماع. {}", "انتهى الاجتماع.\n» {}\nوغادر."]
)
def test_calls_go_with_their_line_or_sentence(call: str, frame: str) -> None:
    result = build_rules({"only": ["advertisements"]}).apply(frame.format(call))
    assert result.edits == {"advertisements": 1}
    rest = [line for line in frame.replace("» ", "").format("").split("\n") if line.strip()]
    assert result.text.split("\n") == ([line.strip() for line in rest] or [""])


@pytest.mark.parametrize("news", NEWS)
@pytest.mark.parametrize("frame", ["{}", "انتهى الاجتماع. {} وغادر الوفد."])
def test_news_about_offers_and_apps_stays(news: str, frame: str) -> None:
    text = frame.format(news)
    assert build_rules({"only": ["advertisements"]}).apply(text) == (text, {})


def test_a_sentence_that_goes_leaves_the_others_apart() -> None:
    text = "وصل الوفد أمس. اضغط هنا للمزيد. ثم غادر."
    assert build_rules({"only": ["advertisements"]}).apply(text).text == "وصل الوفد أمس. ثم غادر."


def test_a_long_sentence_stays() -> None:
    text = "اشترك الآن " + "كلمة " * 40
    assert build_rules({"only": ["advertisements"]}).apply(text).text == text


def test_every_group_of_patterns_has_a_call_here() -> None:
    import yaml

    raw = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    for group, patterns in raw["patterns"].items():
        for pattern in patterns:
            one = load_advertisements()._replace(pattern=_compiled(pattern))
            assert any(one.remove(call, frozenset())[1] for call in CALLS), f"{group}: {pattern}"


def _compiled(pattern: str):  # type: ignore[no-untyped-def]
    import tempfile

    import yaml

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.yaml"
        content = {"max_words": 30, "first_words": ["اشترك"], "patterns": {"one": [pattern]}}
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return load_advertisements(path).pattern


def test_an_own_list(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("max_words: 5\nfirst_words: [زوروا]\npatterns:\n  shop: ['زوروا متجرنا']\n", encoding="utf-8")
    rules = build_rules({"only": ["advertisements"], "advertisements": str(path)})
    assert rules.apply("وصل الوفد.\nزوروا متجرنا!").text == "وصل الوفد."
    assert rules.apply("اضغط هنا").text == "اضغط هنا"
    assert rules.parameters["advertisements"] != build_rules().parameters["advertisements"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_words: 5", "keys"), ("max_words: 5\nfirst_words: [a b]\npatterns: {a: [b]}", "first_words"),
        ("max_words: 5\nfirst_words: [a]\npatterns: {a: ['(']}", "no pattern"), ("a: [", "own.yaml"),
    ],
)  # fmt: skip
def test_a_wrong_list_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        build_rules({"advertisements": str(path)})
