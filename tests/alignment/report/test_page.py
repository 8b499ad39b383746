"""The page: hostile texts stay texts, every pair can be read back from it, figures are there."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from megatron_native.alignment.analyses.pairs import read_pairs
from megatron_native.alignment.analyses.toxicity_lexicon import LexiconClassifier
from megatron_native.alignment.gates.pairs import PairSettings
from megatron_native.alignment.report.embedding import CHUNK, embedded, read_back
from megatron_native.alignment.report.gather import Models, RewriteReportSettings, gather
from megatron_native.alignment.report.page import page
from megatron_native.alignment.report.sections import gates_section
from tests.alignment.analyses.pairs import pair, rewriting

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)> & &amp; \"quoted\" 'single'",
    "\u202etxet desrever\u202c \x1b[31m \u2028 \ufeff",
    "]]> --> <!-- {{alert(3)}} ${alert(4)} \\u003c",
    '"}]</script><style>*{display:none}</style>',
)


class Elements(HTMLParser):
    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.scripts, self._in = [], [], None
        self.feed(html)
        self.close()

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        self._in = name if name == "script" else None

    def handle_endtag(self, name):
        self._in = None

    def handle_data(self, data):
        if self._in:
            self.scripts.append(data)


def write_pairs(path, pairs):
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in pairs), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    pairs = [
        {"id": text, "source": text, "origin": f"{text} نص", "rewritten": f"نص {text}",
         "gates": {"scores": {text: 1.0}, "refused": {text: text}}}
        for text in HOSTILE
    ]  # fmt: skip
    report = gather(
        [write_pairs(folder / "pairs.jsonl", pairs)], RewriteReportSettings(), Models([LexiconClassifier()])
    )
    return report, page(report)


def test_hostile_texts_ids_sources_gates_and_reasons_do_not_become_part_of_the_page(hostile):
    report, html = hostile
    found = Elements(html)
    names = [name for name, _ in found.elements]
    assert names.count("style") == 1
    scripts = [attributes for name, attributes in found.elements if name == "script"]
    assert [one.get("type") for one in scripts] == ["application/json"] * 2 + [None]  # index, a chunk, the page's own
    assert not {"img", "iframe", "object", "embed", "link", "base", "form", "foreignobject"} & set(names)
    for name, attributes in found.elements:
        assert not [key for key in attributes if key.startswith("on")], (name, attributes)
        assert "style" not in attributes and "src" not in attributes
        assert all(value.startswith("#") for key, value in attributes.items() if key == "href")
    assert "alert(" not in "".join(found.scripts)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f]", html)
    html.encode("utf-8")
    _, rows = read_back(html)
    assert [(row[0], row[1], row[2], row[3]) for row in rows] == [
        (one.id, one.origin, one.rewritten, list(one.reasons)) for one in report.pairs
    ]
    assert [one.id for one in report.pairs] == list(HOSTILE)


def test_the_page_loads_nothing_and_allows_its_own_script_and_style_alone(hostile):
    _, html = hostile
    policy = next(attributes["content"] for _, attributes in Elements(html).elements if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for name, contents in (("script", re.findall(r"<script>(.*?)</script>", html, re.S)),
                           ("style", re.findall(r"<style>(.*?)</style>", html, re.S))):  # fmt: skip
        (content,) = contents
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
        assert "http" not in content and "url(" not in content and "@import" not in content
        assert "innerHTML" not in content and "outerHTML" not in content and "eval(" not in content


def test_every_pair_can_be_read_back_with_what_filters_need():
    pairs = [
        pair(f"نص {n}", None if n % 7 == 0 else f"نص {n}" if n % 5 == 0 else f"آخر {n}",
             ("quarantined" if n % 7 == 0 else "unchanged" if n % 5 == 0 else "refused" if n % 3 == 0 else "rewritten"),
             id=f"d{n}", source=f"s{n % 4}.example",
             reasons=(f"numbers: {n}", "length: short") if n % 3 == 0 else (),
             gates={"numbers": (float(n), n % 3 != 0), "length": (0.5, True)} if n % 2 else {})
        for n in range(2 * CHUNK + 17)
    ]  # fmt: skip
    elements = embedded(pairs, {4: (1, 2, 3, 4, 5), CHUNK + 4: (5, 4, 3, 2, 1)})
    assert len(elements) == 1 + 3
    index, rows = read_back("".join(elements))
    rows = list(rows)
    assert index["chunk"] == CHUNK and len(rows) == len(pairs)
    for place, (one, row) in enumerate(zip(pairs, rows)):
        text = row[1] if row[2] == 0 else row[2]
        assert (row[0], row[1], text, tuple(row[3])) == (one.id, one.origin, one.rewritten, one.reasons)
        scores = {gate: (score[0], bool(score[1])) for gate, score in zip(index["gates"], row[4]) if score is not None}
        assert scores == dict(one.gates)
        assert row[5] == {"d4": [1, 2, 3, 4, 5], f"d{CHUNK + 4}": [5, 4, 3, 2, 1]}.get(one.id)
        assert index["states"][index["state"][place]] == one.state
        assert [index["kinds"][kind] for kind in index["kind"][place]] == one.reason_kinds
        assert index["sources"][index["source"][place]] == one.source
        assert (index["before"][place], index["after"][place]) == (len(one.origin), len(one.rewritten or ""))


def test_a_rewriting_by_rules_with_its_figures(tmp_path):
    folder = str(rewriting(tmp_path, 12))
    report = gather([folder], RewriteReportSettings(max_pairs=4, sample=5), Models([LexiconClassifier()]))
    assert (report.total, report.accepted, report.measured, len(report.pairs)) == (6, 6, 5, 4)
    assert report.states == {"rewritten": 6} and report.judged_here == 0
    assert {gate.gate: (gate.judged, gate.refused) for gate in report.gates}["numbers"] == (6, 0)
    assert report.inputs[0].stage == "rewrite" and report.inputs[0].rewriting["documents"]["rewritten"] == 6
    html = page(report)
    assert "4 of 6 pairs are here, drawn at random (seed 0)" in html
    assert "6 pairs, 6 accepted" in html and str(tmp_path) not in html.partition('id="settings"')[0]
    index, rows = read_back(html)
    assert set(index["sources"]) <= {f"site{n}.example" for n in range(3)}
    shown = {row[0] for row in rows}
    assert shown < {one.id for one in read_pairs([folder], PairSettings())} and len(shown) == 4
    figures = json.loads(json.dumps(report.as_json(), ensure_ascii=False))
    assert figures["lengths"][0]["unit"] == "characters" and figures["shown"] == 4
    assert "pairs" not in figures and figures["toxicity"][0]["categories"][0]["category"] == "hate"


def test_gates_are_asked_about_pairs_without_a_verdict(tmp_path):
    source = write_pairs(tmp_path / "a.jsonl", [
        {"origin": "بلغ العدد 12 طالبًا.", "rewritten": "بلغ العدد 21 طالبًا."},
        {"origin": "عاد الطلاب ,", "rewritten": "عاد الطلاب،"},
        {"origin": "عاد الطلاب.", "rewritten": "عاد الطلاب."},
    ])  # fmt: skip
    report = gather([source], RewriteReportSettings())
    assert report.judged_here == 2 and report.states == {"rewritten": 2, "unchanged": 1}
    assert report.kinds == {"numbers": 1} and report.pairs[0].refused_by == ["numbers"]
    assert report.accepted == 3  # somebody took them; the verdict is shown and changes nothing
    unasked = gather([source], RewriteReportSettings(judge_pairs=False))
    assert unasked.judged_here == 0 and unasked.gates == []
    assert "No gate judged these pairs." in page(unasked)


def test_shares_of_reasons_are_of_the_pairs_that_were_judged(tmp_path):
    pairs = [{"origin": f"بلغ العدد 1{n} طالبًا.", "rewritten": f"بلغ العدد 9{n} طالبًا."} for n in range(4)]
    report = gather([write_pairs(tmp_path / "a.jsonl", pairs)], RewriteReportSettings(max_pairs=1))
    assert (report.total, report.judged_here, report.with_verdict, report.kinds) == (4, 1, 1, {"numbers": 1})
    shown = str(gates_section(report))
    assert "1 · 100" in shown and "1 · 25" not in shown


def test_records_that_are_no_pairs_are_counted_and_said(tmp_path):
    records = [
        {"origin": "نص", "rewritten": "نص."},
        {"origin": "نص"},
        {"rewritten": "نص"},
        {"origin": 1, "rewritten": "نص"},
    ]
    report = gather([write_pairs(tmp_path / "a.jsonl", records)], RewriteReportSettings())
    assert report.total == 1 and report.passed_over == {"no origin": 2, "no text key": 1}
    assert "2 records of the input are no pairs and were passed over: no origin" in page(report)
