"""HTML remnants go and what only looks like them stays; site lines go and prose about them stays."""

import re
import time

import pytest

from megatron_native.corpus.markup import remove_boilerplate_lines, strip_html


def shape(text):
    """Line breaks as they are, other space shortened: what is left once a text has been tidied."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" *\n *", "\n", re.sub(r"[^\S\n]+", " ", text))).strip()


@pytest.mark.parametrize(
    "text",
    [
        "إذا كان a < b و x > 3 فإن الشرط صحيح",
        "a<b",
        "x<y>z",
        "List<String> و vector<int>",
        "<3 أحب هذا <- هذا ->",
        "AT&T و R&D و Q&A;",
        "&nosuchentity; &section;",
        "<كلمة>",
        "https://example.org/?a=1&copy=2",
    ],
)
def test_text_that_is_no_markup_stays(text):
    assert strip_html(text) == text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("<p>فقرة</p><p>أخرى</p>", "فقرة\n\nأخرى"),
        ("<p>فقرة<p>أخرى", "فقرة\n\nأخرى"),
        ("سطر<br>سطر<BR/>سطر<br clear='all' />سطر", "سطر\nسطر\nسطر\nسطر"),
        ("<ul><li>واحد</li><li>اثنان</li>\n<li class=x>ثلاثة</ul>", "واحد\nاثنان\nثلاثة"),
        ("<tr><th>الاسم</th><th>العمر</th></tr>", "الاسم\nالعمر"),
        ("<h2>عنوان</h2>نص", "عنوان\nنص"),
        ("كلمة <b>مهمة</b> و<a href='https://example.org/?a=1'>رابط</a>", "كلمة مهمة ورابط"),
        ("قبل<script type='x'>if (a < b) { f('</p>') }</script>بعد", "قبلبعد"),
        ("قبل<STYLE>p {}</style >بعد<noscript>x</noscript>", "قبلبعد"),
        ("<!DOCTYPE html><html><!-- تعليق <p> \n --><body>نص</body></html>", "نص"),
        ("<![CDATA[نص]]>", "نص"),
        ("&laquo;نص&raquo; &amp; &#1593; &#x639; &quot;&lt;b&gt;&quot;", "«نص» & ع ع \"<b>\""),
        ("a&nbsp;b", "a b"),
        ("&amp;amp;", "&amp;"),
        ("&#xD800;&#9999999;", "\ufffd\ufffd"),
    ],
)
def test_markup_goes_and_blocks_become_breaks(raw, clean):
    assert shape(strip_html(raw)) == clean


@pytest.mark.parametrize("piece", ["<!--", "<script>", "<style ", "<!doctype ", "<a ", "<p ", "&", "<br ", "</li> "])
def test_hostile_repetition_takes_no_quadratic_time(piece):
    begin = time.perf_counter()
    strip_html(piece * (400_000 // len(piece)))
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(
    "line",
    [
        "نستخدم ملفات تعريف الارتباط لتحسين تجربتكم. موافق",
        "يستخدم موقعنا الكوكيز لتقديم أفضل خدمة",
        "باستمرارك في التصفح فإنك توافق على شروطنا",
        "إعلان",
        "- إعلانات -",
        "اشترك الآن واحصل على خصم ٥٠٪",
        "حمّل تطبيقنا مجانا من متجر بلاي",
        "سجل في النشرة البريدية",
        "شارك المقال: فيسبوك تويتر",
        "فيسبوك | تويتر | واتساب |",
        "اقرأ أيضاً",
        "طباعة الصفحة",
        "الرئيسية > أخبار > محليات",
        "عدد القراءات: ١٢٣",
        "جميع الحقوق محفوظة © 2024",
        "We use cookies to improve your experience.",
        "Accept all cookies",
        "ADVERTISEMENT",
        "Subscribe to our newsletter today",
        "Get 20% off your first order",
        "Read more",
        "Click here to continue",
        "All rights reserved",
    ],
)
def test_site_lines_go(line):
    assert remove_boilerplate_lines(f"نص قبلها\n{line}\nنص بعدها") == ("نص قبلها\nنص بعدها", 1)


@pytest.mark.parametrize(
    "line",
    [
        "نشرت الوزارة في الصحف الصباحية إعلان وظائف شاغرة للمهندسين والأطباء في المستشفيات الجديدة.",
        "كان إعلان الاستقلال يوما لا ينساه أهل البلاد، فقد خرجوا إلى الشوارع يحملون الأعلام وينشدون.",
        "اقرأ أيضا ما كتبه الجاحظ في وصف البخلاء فهو من أجمل ما قيل.",
        "وضعت الرئيسية من محطات القطار تحت الصيانة مدة شهرين.",
        "من المفيد أن يعرف القارئ أن المواقع تستخدم ملفات تعريف الارتباط لكي تتذكر ما اختاره الزائر من قبل، وأن في وسعه أن "
        "يحذفها متى شاء من إعدادات المتصفح، فلا يبقى منها شيء على جهازه.",
        "She baked cookies for the children of the whole street every Friday.",
        "The advertisement that the museum placed in the newspaper brought two thousand visitors.",
        "Historians who study how a web site uses cookies have found that the practice began as a way of remembering what a "
        "visitor had put into a basket, long before anybody thought of following people around.",
    ],
)
def test_prose_with_such_words_stays(line):
    assert remove_boilerplate_lines(line) == (line, 0)


def test_blank_lines_and_paragraphs_are_left_as_they_are():
    assert remove_boilerplate_lines("أول\n\nثان\n") == ("أول\n\nثان\n", 0)
