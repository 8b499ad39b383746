"""Personal data in Arabic text is masked in every form it is written in, and what only looks like it stays."""

import random

import pytest

from megatron_native.corpus.pii import mask

ARABIC_INDIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
EXTENDED = str.maketrans("0123456789", "۰۱۲۳۴۵۶۷۸۹")
FRAMES = [
    "يرجى التواصل مع المكتب على {} قبل نهاية الأسبوع.",
    "راسلونا: {}",
    "بيانات مقدم الطلب ({}) محفوظة لدى الإدارة.",
    "كتب في خانة البيانات {}، ثم وقع على الورقة.",
    "{} هو ما سجله الموظف في الدفتر.",
]


def luhn_digit(digits):
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 - place % 2)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def email(generator):
    name = "".join(generator.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=generator.randint(2, 10)))
    host = "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(3, 9)))
    return (
        generator.choice(["", "info.", "a_"])
        + name
        + "@"
        + host
        + generator.choice([".com", ".com.sa", ".org", ".net", ".gov.eg"])
    )


def phone(generator):
    country, national = generator.choice(
        [
            ("966", "5" + digits(generator, 8)),
            ("966", "11" + digits(generator, 7)),
            ("971", "50" + digits(generator, 7)),
            ("20", "10" + digits(generator, 8)),
            ("962", "79" + digits(generator, 7)),
            ("212", "6" + digits(generator, 8)),
            ("213", "55" + digits(generator, 7)),
            ("964", "77" + digits(generator, 8)),
            ("961", "3" + digits(generator, 6)),
            ("965", "9" + digits(generator, 7)),
            ("974", "5" + digits(generator, 7)),
            ("967", "71" + digits(generator, 7)),
        ]
    )
    form = generator.randrange(5)
    if form == 0:
        return f"+{country}{national}"
    if form == 1:
        return f"00{country}{national}"
    if form == 2:
        return f"+{country} {national[:2]} {national[2:5]} {national[5:]}"
    if form == 3:
        return f"(+{country}) {national[:3]}-{national[3:]}"
    return f"هاتف: 0{national}"


def digits(generator, count):
    return "".join(generator.choices("0123456789", k=count))


def iban(generator):
    country, length = generator.choice(
        [("SA", 24), ("AE", 23), ("EG", 29), ("JO", 30), ("KW", 30), ("QA", 29), ("TN", 24), ("BH", 22)]
    )
    body = digits(generator, length - 4)
    if country in ("JO", "KW", "QA", "BH"):
        body = "ABCD" + body[4:]
    number = int("".join(str(int(character, 36)) for character in body + country + "00"))
    whole = f"{country}{98 - number % 97:02d}{body}"
    return whole if generator.random() < 0.5 else " ".join(whole[start : start + 4] for start in range(0, length, 4))


def national_id(generator):
    kind = generator.randrange(4)
    if kind == 0:
        body = generator.choice("12") + digits(generator, 8)
        return body + luhn_digit(body)
    if kind == 1:
        return (
            generator.choice("23")
            + f"{generator.randrange(100):02d}{generator.randint(1, 12):02d}{generator.randint(1, 28):02d}"
            + generator.choice(["01", "02", "12", "21", "88"])
            + digits(generator, 5)
        )
    if kind == 2:
        body = f"784{generator.randint(1940, 2010)}{digits(generator, 7)}"
        whole = body + luhn_digit(body)
        return f"{whole[:3]}-{whole[3:7]}-{whole[7:14]}-{whole[14]}"
    return "رقم الهوية: " + digits(generator, 9)


def card(generator):
    body = generator.choice(["4", "51", "55"]) + digits(generator, 20)
    body = body[:15]
    whole = body + luhn_digit(body)
    return whole if generator.random() < 0.5 else " ".join(whole[start : start + 4] for start in range(0, 16, 4))


KINDS = {"email": email, "phone": phone, "iban": iban, "national-id": national_id, "card": card}


@pytest.mark.parametrize("kind", KINDS)
def test_of_300_planted_items_at_least_95_percent_are_masked(kind):
    generator = random.Random(kind)
    missed = []
    for number in range(300):
        item = KINDS[kind](generator)
        if kind != "email" and number % 3:
            item = item.translate(ARABIC_INDIC if number % 3 == 1 else EXTENDED)
        text = FRAMES[number % len(FRAMES)].format(item)
        masked, counts = mask(text)
        secret = item.split(": ")[-1]
        if secret in masked or not counts:
            missed.append(item)
    assert len(missed) <= 15, f"recall {1 - len(missed) / 300:.3f}: {missed[:5]}"


@pytest.mark.parametrize(
    "text",
    [
        "ولد عام 1975 وتوفي في 2015/7/21 بعد 40 سنة.",
        "بلغ السعر 9,098.27 ريالا، أي ٩٬٠٩٨٫٢٧.",
        "من 1990 إلى 2015",
        "الكتاب ISBN 978-3-16-148410-0 في 350 صفحة",
        "سورة البقرة 2:255",
        "تابعوا @news_sa ووسم #خبر2015",
        "مساحتها 2,149,690 كم مربع",
        "سكانها 31015999 نسمة",
        "رقم القرار 4500123 لعام 1436",
        "الساعة 10:30 - 12:45",
        "قيمة العقد 1234567890123 ريال",
        "الإصدار 192.168.1.1",
        "3.141592653589793",
        "نسبة 1000000%",
        "SA00 0000",
        "من المادة 20 21 22 23 24",
        "خطاب بالفاكس رقم 48051/6/36",
        "الحساب 48060801008902",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert mask(text) == (text, {})


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("اتصل على (0501234567) الآن", "اتصل على ([PHONE]) الآن"),
        ("a.b@x.com.", "[EMAIL]."),
        ("بريده user (at) example.org", "بريده [EMAIL]"),
        ("IBAN SA03 8000 0000 6080 1016 7519 BANK", "IBAN [IBAN] BANK"),
        ("هاتف 4567890", "هاتف [PHONE]"),
        ("رقم 4567890", "رقم 4567890"),
        ("رقم الهوية الوطنية للمواطن هو 290937306", "رقم الهوية الوطنية للمواطن هو [NATIONAL-ID]"),
        ("البطاقة البنكية 2223000048400011", "البطاقة البنكية [CARD]"),
        ("من ٠٥٠١٢٣٤٥٦٧ ومن 0559876543", "من [PHONE] ومن [PHONE]"),
    ],
)
def test_only_the_item_is_replaced(text, masked):
    assert mask(text)[0] == masked


def test_a_text_without_any_is_the_same_object():
    text = "تقع المكتبة في وسط المدينة منذ عام 1950"
    assert mask(text)[0] is text
