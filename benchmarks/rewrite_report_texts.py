"""Passages for the report's benchmark and screenshot: written sentences combined at random, worn as the web wears them.

Every sentence is written for this project. What a worker makes of a passage is mended text, mostly; some answers have a
fault that a gate is there for.
"""

from __future__ import annotations

import random
from typing import NamedTuple

_CITIES = (
    "دمشق",
    "تونس",
    "الرباط",
    "عمّان",
    "الإسكندرية",
    "بغداد",
    "مسقط",
    "نواكشوط",
    "صنعاء",
    "الجزائر",
    "الخرطوم",
    "بيروت",
)
_MONTHS = (
    "يناير",
    "فبراير",
    "مارس",
    "أبريل",
    "مايو",
    "يونيو",
    "يوليو",
    "أغسطس",
    "سبتمبر",
    "أكتوبر",
    "نوفمبر",
    "ديسمبر",
)
_THINGS = ("المكتبة العامة", "المتحف الوطني", "المستشفى الجامعي", "محطة القطار", "حديقة النباتات", "مدرسة الفنون")
_PEOPLE = (
    "مدير المشروع",
    "رئيسة اللجنة",
    "الباحثة المشرفة",
    "المتحدث باسم البلدية",
    "أستاذ التاريخ",
    "كبيرة المهندسين",
)
_NAMES = ("سامر الحداد", "ليلى منصور", "كمال الدين يوسف", "هدى النجار", "رامي الخطيب", "نادية بن صالح")
_SENTENCES = (
    "افتتحت مدينة {city} {thing} بعد أعمال ترميم استمرت {number} شهرًا.",
    "وقال {person} {name} إن العمل بدأ في شهر {month} وانتهى قبل موعده.",
    "بلغت كلفة المشروع {number} مليون دينار، دفعت الدولة نصفها.",
    "ويتوقع القائمون على {thing} أن يستقبل المكان {number} ألف زائر في العام.",
    "هل تكفي هذه الخطوة لإحياء وسط المدينة؟ يرى بعض السكان أنها بداية حسنة.",
    "وأضاف {name} أن الفريق درس تجارب مشابهة في {city} و{other} قبل أن يضع خطته.",
    "شارك في الورشة {number} طالبًا من جامعات مختلفة، وقدّم كل منهم بحثًا قصيرًا.",
    "وتعود أقدم الوثائق المحفوظة في {thing} إلى القرن التاسع عشر.",
    "يزرع المزارعون حول {city} القمح والزيتون، ويعتمدون على أمطار الشتاء.",
    "وأوضحت الدراسة أن درجات الحرارة ارتفعت درجتين منذ عام 19{number}.",
    "وسيُعقد اللقاء التالي في {city} يوم {day} {month} المقبل، والدعوة عامة.",
    "أما الطريق القديم فقد حُوّل إلى ممشى تظلله الأشجار من الجانبين.",
    "ودعا {person} إلى إشراك الشباب في إدارة {thing} وفي اختيار برامجها.",
    "نُشرت نتائج البحث في مجلة علمية محكّمة، وراجعها ثلاثة خبراء.",
    "ويقول أهل الحي إن الضجيج خفّ كثيرًا منذ أن منعت البلدية مرور الشاحنات.",
    "وتضم المجموعة {number} مخطوطة، منها ما كُتب بماء الذهب.",
)  # fmt: skip
_ADVERTISEMENTS = (
    "اشترك الآن في قناتنا ليصلك كل جديد!!!",
    "اضغط هنا للحصول على خصم 50%.",
    "شارك المقال مع أصدقائك على فيسبوك وتويتر.",
    "تابعونا على تويتر.",
)
_INSULTS = (
    "اخرس يا غبي، فلا أحد يسأل عن رأيك.",
    "أيها الحقير، كيف تجرؤ على الكتابة هنا؟",
    "سأكسر عظامك إن عدت إلى هنا.",
)
_INVENTED = "وقد زار الموقع بعد ذلك وفد من رواد الفضاء الكنديين وأهداه مرصدًا."
_SCAFFOLD = "النص المعاد صياغته: "
_REFUSAL = "عذرًا، لا أستطيع مساعدتك في هذا الطلب لأنه يخالف سياسة الاستخدام."
_ENGLISH = (
    "The city opened the new building after long restoration works, and officials said that visitors are welcome."
)
SOURCES = ("akhbar.example", "majalla.example", "mudawwana.example", "muntada.example", "jamia.example")


class Passage(NamedTuple):
    """A worn passage, and what the worker answers when asked to rewrite it."""

    origin: str
    answer: str


def passages(count: int, seed: int = 0) -> list[Passage]:
    """Different passages, the same ones for a seed."""
    draw = random.Random(seed)
    found: dict[str, Passage] = {}
    while len(found) < count:
        clean = [_filled(sentence, draw) for sentence in draw.sample(_SENTENCES, draw.randint(3, 6))]
        worn = [_worn(sentence, draw) for sentence in clean]
        if draw.random() < 0.35:
            worn.insert(draw.randint(1, len(worn)), draw.choice(_ADVERTISEMENTS))
        if draw.random() < 0.06:
            worn.append(draw.choice(_INSULTS))
        origin = _laid_out(worn, draw)
        found[origin] = Passage(origin, _answer(origin, clean, draw))
    return list(found.values())


def _filled(sentence: str, draw: random.Random) -> str:
    city, other = draw.sample(_CITIES, 2)
    return sentence.format(
        city=city, other=other, thing=draw.choice(_THINGS), number=draw.randint(11, 98), month=draw.choice(_MONTHS),
        person=draw.choice(_PEOPLE), name=draw.choice(_NAMES), day=draw.randint(1, 28),
    )  # fmt: skip


def _worn(sentence: str, draw: random.Random) -> str:
    for good, bad, share in (
        ("،", ",", 0.5), ("؟", "?", 0.5), (" إ", " ا", 0.3), (" أ", " ا", 0.3), ("ة ", "ه ", 0.15), (" إلى ", " الي ", 0.3),
        (".", " .", 0.2), (" ", "  ", 0.04), (" و", " و ", 0.06),
    ):  # fmt: skip
        if draw.random() < share:
            sentence = sentence.replace(good, bad)
    return sentence


def _laid_out(sentences: list[str], draw: random.Random) -> str:
    break_after = draw.randint(1, len(sentences))
    text = " ".join(sentences[:break_after]) + "\n" * draw.choice((1, 2, 2, 4)) + " ".join(sentences[break_after:])
    return text.strip()


def _answer(origin: str, clean: list[str], draw: random.Random) -> str:
    kind = draw.random()
    middle = max(1, len(clean) // 2)
    text = " ".join(clean[:middle]) + "\n\n" + " ".join(clean[middle:])
    if kind < 0.78:
        return text
    if kind < 0.84:
        return origin
    if kind < 0.88:
        numbers = [word for word in text.split() if word.isdigit()]
        return text.replace(numbers[0], str(int(numbers[0]) + 7), 1) if numbers else text
    if kind < 0.91:
        return f"{_SCAFFOLD}{text}"
    if kind < 0.94:
        return clean[0]
    if kind < 0.96:
        return f"{text} {_INVENTED}"
    if kind < 0.98:
        return text.replace(next((name for name in _NAMES if name in text), "\0"), "فؤاد القاضي", 1)
    return _REFUSAL if kind < 0.99 else _ENGLISH
