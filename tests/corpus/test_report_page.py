"""The report's page: texts that can't harm it, whole and accessible HTML, Arabic from right to left."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from megatron_native.corpus.report.elements import number, share, shown, tag
from megatron_native.corpus.report.figures import Pair
from megatron_native.corpus.report.gather import ReportSettings, gather
from megatron_native.corpus.report.page import page
from megatron_native.corpus.report.texts import pair_texts, passage
from tests.corpus.report_runs import read_manifest, run_of, stage_by_hand, write_manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("run"))


def report_of(run):
    return gather([str(run / "clean"), str(run / "dedup")], ReportSettings())


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text between them."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.scripts = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        (self.scripts if self.elements and self.elements[-1][0] in ("script", "style") else self.text).append(data)


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "</title></style><svg onload=alert(4)>",
    "<iframe src='https://evil.example/'></iframe>",
    "&lt;b&gt; &amp;#60;b>",
    "javascript:alert(5)",
    "\u202etxet desrever\u202c",
    "\u2066\u2067 isolates",
    "a\x00b\x1b[31m",
    "<!-- ",
    "]]>",
    "\ufeff\uffff",
]


@pytest.fixture
def hostile_page(tmp_path):
    """Every text of every kind of record is an attack."""
    documents = [
        {
            "text": text.replace("\x00", ""),
            "id": f"{text}-{n}",
            "metadata": {
                "lang": 'ar" onload=alert(6) x="' if n % 2 else "ar",
                "source": text,
                "dialect": text,
                "copies": 2,
                "from": {"file": text, "offset": 0},
            },
        }
        for n, text in enumerate(HOSTILE)
    ]
    dropped = [
        {
            "id": text,
            "source": text,
            "reason": text,
            "language": text,
            "text": text,
            "metadata": {"url": f"https://{text}/"},
        }
        for text in HOSTILE
    ]
    quarantined = [{"source": text, "offset": 0, "reason": text, "raw": text, "detail": text} for text in HOSTILE]
    folder = stage_by_hand(tmp_path / "work" / "<b onclick=alert(7)>", "clean", documents, dropped, quarantined)
    manifest = read_manifest(folder)
    manifest["counts"]["edits"] = dict.fromkeys(HOSTILE, 1)
    manifest["counts"]["read_by_language"] = dict.fromkeys(HOSTILE, 1)
    manifest["parameters"] = {text: text for text in HOSTILE}
    manifest["software"] = {text: text for text in HOSTILE}
    manifest["stage"] = "clean<script>alert(8)</script>"
    write_manifest(folder, manifest)
    return page(gather([str(folder)], ReportSettings()))


def test_hostile_texts_do_not_become_part_of_the_page(hostile_page):
    found = Elements(hostile_page)
    names = [name for name, _ in found.elements]
    assert names.count("script") == names.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "link", "base", "form", "b", "foreignobject"} & set(names)
    for name, attributes in found.elements:
        assert not [key for key in attributes if key.startswith("on")], (name, attributes)
        assert "style" not in attributes and "src" not in attributes
        assert all(value.startswith("#") for key, value in attributes.items() if key in ("href", "xlink:href"))
        if "lang" in attributes:
            assert re.fullmatch("([a-zA-Z]{2,3}(-[a-zA-Z]{2,8})?)?", attributes["lang"])
    assert "alert(" not in "".join(found.scripts)
    assert "<script>alert(1)</script>" in "".join(found.text)  # there to read, as text


def test_nothing_unseen_turns_the_page_around(hostile_page):
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00-\x08\x0b-\x1f\x7f]", hostile_page)
    assert "⟨202E⟩txet desrever⟨202C⟩" in hostile_page
    assert "a␀b␛[31m" in hostile_page
    hostile_page.encode("utf-8")


def test_the_page_loads_nothing_and_allows_its_own_script_and_style_alone(made):
    html = page(report_of(made))
    found = Elements(html)
    policy = next(attributes["content"] for _, attributes in found.elements if "http-equiv" in attributes)
    for name in ("script", "style"):
        content = re.search(f"<{name}>(.*?)</{name}>", html, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
        assert "http" not in content and "url(" not in content and "@import" not in content
    assert policy.startswith("default-src 'none'; ")
    assert not [
        value
        for _, attributes in found.elements
        for key, value in attributes.items()
        if key in ("src", "srcset", "action")
    ]


def test_the_page_is_whole_accessible_html(made):
    html = page(report_of(made))
    found = Elements(html)
    assert html.startswith('<!DOCTYPE html>\n<html lang="en"')
    anchors = [attributes["href"][1:] for name, attributes in found.elements if name == "a"]
    assert set(anchors) <= {attributes.get("id") for _, attributes in found.elements}
    for name, attributes in found.elements:
        if name == "svg" and attributes.get("role") == "img":
            assert attributes["aria-label"]
    opened = re.findall(r"<(table|section|details|div|tr|svg|ul)[ >]", html)
    closed = re.findall(r"</(table|section|details|div|tr|svg|ul)>", html)
    assert sorted(opened) == sorted(closed)
    assert html.count("<table>") == html.count("<caption>") > 5


def test_arabic_is_set_from_right_to_left_whatever_it_begins_with():
    assert passage("ABC ثم نص عربي", "ar") == '<div class="passage" lang="ar"><p dir="rtl">ABC ثم نص عربي</p></div>'
    assert passage("first\n\nثان") == '<div class="passage" lang=""><p dir="auto">first</p><p dir="auto">ثان</p></div>'
    assert 'lang="ar" ' not in passage("x", "ar-latn") and 'dir="auto"' in passage("x", "ar-latn")


def test_a_pair_is_shown_from_before_its_first_difference():
    words = [f"كلمة{n}" for n in range(300)]
    other = [*words[:200], "أخرى", *words[201:]]
    html = pair_texts(Pair("a", "b", "near copy", 0.9, " ".join(words), " ".join(other)))
    assert "<mark>كلمة200</mark>" in html and "<mark>أخرى</mark>" in html
    assert html.count("<mark>") == 2
    assert "كلمة179 " not in html and "كلمة180 " in html


def test_escaping_and_attributes():
    assert tag("p", "a<b", title='"x"') == '<p title="&quot;x&quot;">a&lt;b</p>'
    assert tag("p", tag("b", "&")) == "<p><b>&amp;</b></p>"
    assert tag("path", d="M0 0", x=1.50, y=2.0) == '<path d="M0 0" x="1.5" y="2"/>'
    assert shown("\ud800") == "⟨D800⟩"
    assert (number(1234567), number(None), share(1, 3), share(1, 3000), share(9999, 10000), share(0, 0)) == (
        "1,234,567",
        "not recorded",
        "33.3 %",
        "< 0.1 %",
        "> 99.9 %",
        "–",
    )
