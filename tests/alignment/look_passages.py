"""Clean Arabic passages, and seeded damage of the kinds that the web has."""

# ruff: noqa: E501 (a passage is a line)

from __future__ import annotations

import random
from collections.abc import Callable

CLEAN = (
    "يقع المتحف في قلب المدينة القديمة، ويضم أكثر من ألف قطعة أثرية جُمعت من أنحاء البلاد. ويستقبل الزوار كل يوم من الصباح حتى المساء.",
    "أكد الوزير أن العمل في المشروع سيبدأ مطلع العام المقبل، وأن الدراسة انتهت بالفعل. وأضاف أن السكان سيستفيدون من الخدمات الجديدة.",
    "تتكون النباتات من جذور وسيقان وأوراق، ولكل جزء منها وظيفة خاصة. فالجذور تمتص الماء، والأوراق تصنع الغذاء بمساعدة ضوء الشمس.",
    "ولد الشاعر في قرية صغيرة على ضفاف النهر، ثم انتقل إلى العاصمة لإكمال دراسته. وقد نشر ديوانه الأول وهو في العشرين من عمره.",
    "ينصح الأطباء بشرب كمية كافية من الماء، والمشي نصف ساعة كل يوم. كما ينصحون بالنوم المبكر والابتعاد عن القلق.",
    "اخترع العلماء في تلك المدة آلات كثيرة غيرت حياة الناس، منها المطبعة والساعة. وانتشرت الكتب بعد ذلك في المدن والقرى.",
    "تبدأ الدراسة في الجامعة يوم الأحد، ويستمر التسجيل أسبوعين. وعلى الطلاب الجدد أن يقدموا وثائقهم قبل الموعد المحدد.",
    "أقيم سباق القوارب في الميناء بمشاركة ثلاثين فريقًا، وفاز بالمركز الأول فريق البلدة المجاورة. وحضر الحفل عدد كبير من الأهالي.",
)  # fmt: skip


def misspelt(text: str, chance: random.Random) -> str:
    """Without hamza, with ه for ة, ي for ى and the other way round, as hurried writers have it."""
    return (
        text.translate(str.maketrans("أإآة", "ااا" + "ه")).replace("إلى", "الي").replace(" في ", " فى ")
        + " وان انه الى"
    )


def elongated(text: str, chance: random.Random) -> str:
    """Words drawn out."""
    words = text.split(" ")
    for place in chance.sample(range(len(words)), 3):
        words[place] = words[place][:2] + words[place][1:2] * 4 + words[place][2:]
    return " ".join(words)


def marked_up(text: str, chance: random.Random) -> str:
    """Tags, entities and a button of a site."""
    words = text.split(" ")
    place = chance.randrange(1, len(words))
    return "<p>" + " ".join(words[:place]) + "&nbsp;<b>" + " ".join(words[place:]) + "</b></p>\n...المزيد"


def advertised(text: str, chance: random.Random) -> str:
    """A shop's offer and its telephone number in the sentence."""
    return f"{text} وعندنا عروض وخصومات على العطور مع التوصيل واتساب 05{chance.randrange(10**7, 10**8)}"


def abusive(text: str, chance: random.Random) -> str:
    """A sentence of abuse."""
    return f"{text} ومن لا يوافق فهو {chance.choice(['حقير', 'سافل', 'تافه'])} لا قيمة له."


def misread(text: str, chance: random.Random) -> str:
    """Letters lost in a wrong encoding."""
    words = text.split(" ")
    for place in chance.sample([n for n, word in enumerate(words) if len(word) > 4], 3):
        words[place] = words[place][:2] + "?" + words[place][3:]
    return " ".join(words)


def unpunctuated(text: str, chance: random.Random) -> str:
    """Several times as long and without any sign."""
    return " ".join("".join(sign for sign in text if sign.isalpha() or sign == " ") for _ in range(4))


def colloquial(text: str, chance: random.Random) -> str:
    """A sentence in a dialect."""
    return f"{text} بس {chance.choice(['ليش ما رحتوا هناك وايد زين', 'مش عارف ليه كده عايزين إيه دلوقتي', 'شو بدك هلق هيك'])}"


DAMAGE: dict[str, Callable[[str, random.Random], str]] = {
    each.__name__: each
    for each in (misspelt, elongated, marked_up, advertised, abusive, misread, unpunctuated, colloquial)
}
