"""The report on a rewriting as one HTML file: nothing is loaded from outside; figures are there without JavaScript.

The pairs are packed into the page and shown by its script (`embedding.py`, `script.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_native.alignment.report.embedding import embedded
from megatron_native.alignment.report.gather import RewriteReport
from megatron_native.alignment.report.script import script
from megatron_native.alignment.report.sections import (
    fluency_section,
    gates_section,
    grades_section,
    lengths_section,
    outcomes_section,
    settings_section,
    toxicity_section,
    words_section,
)
from megatron_native.alignment.report.style import STYLE as PAIR_STYLE
from megatron_native.corpus.report.elements import Child, Html, document, isolated, note, section, share, tag, tile
from megatron_native.corpus.report.page import short_names
from megatron_native.corpus.report.style import STYLE

_ALIKE = (("أ", "ا", ", "), ("ى", "ي", ", "), ("ة", "ه", ". "))


def page(report: RewriteReport) -> str:
    """The whole HTML document."""
    names = short_names([one.name for one in report.inputs])
    by_place = report.grades.by_pair if report.grades else {}
    graded = {row: by_place[place] for row, place in enumerate(report.places) if place in by_place}
    scripts = embedded(report.pairs, graded)
    sections = [
        ("outcomes", "Outcomes", outcomes_section(report, names)),
        ("gates", "Gates", gates_section(report)),
        ("toxicity", "Toxicity", toxicity_section(report.toxicity)),
        ("fluency", "Fluency", fluency_section(report.fluency)),
        ("grades", "Grades", grades_section(report.grades)),
        ("lengths", "Lengths", lengths_section(report)),
        ("words", "Vocabulary", words_section(report)),
        ("pairs", "Pairs", pairs_section(report)),
        ("settings", "Settings", settings_section(report, names)),
    ]
    present = [(anchor, title, content) for anchor, title, content in sections if content]
    links = [tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title, _ in present]
    return document(
        f"Rewriting report: {_headline(report)}",
        f"{STYLE}\n{PAIR_STYLE}",
        script(),
        tag("a", "to the pairs", href="#pairs", class_="skip"),
        _header(report, names),
        tag("nav", tag("ul", links), aria_label="parts of the report"),
        tag("main", [content for _, _, content in present]),
        tag("footer", "Made by ", tag("code", "megatron-native rewrite-report"), "."),
        scripts,
    )


def _headline(report: RewriteReport) -> str:
    return f"{report.total:,} pairs, {report.accepted:,} accepted"


def _header(report: RewriteReport, short: Mapping[str, str]) -> Html:
    created = max((one.created for one in report.inputs if one.created), default="")[:10]
    names: list[Child] = []
    for one in report.inputs:
        names += [", " if names else None, isolated(short[one.name])]
    tiles = [
        tile(state, f"{count:,}", f"{share(count, report.total)} of the pairs", kind)
        for state, kind in (
            ("rewritten", "kept"),
            ("unchanged", "plain"),
            ("refused", "quarantined"),
            ("quarantined", "dropped"),
        )
        if (count := report.states.get(state, 0))
    ]
    by_letters = next((one for one in report.lengths if one.unit == "characters"), None)
    if by_letters is not None and by_letters.mean_ratio is not None:
        ratio = by_letters.after / max(1, by_letters.before)
        tiles.append(tile("length", f"{100 * ratio:.1f} %", "of the originals' characters", "plain"))
    return tag(
        "header",
        tag("p", "Rewriting report", class_="eyebrow"),
        tag("h1", _headline(report)),
        tag("p", "From ", names, f" · finished {created}" if created else None, class_="muted"),
        tag("dl", tiles, class_="tiles") if tiles else None,
        tag(
            "ul",
            [
                tag("li", f"{count:,} records of the input are no pairs and were passed over: {reason}")
                for reason, count in report.passed_over.items()
            ],
            class_="warnings",
        )
        if report.passed_over
        else None,
    )


def pairs_section(report: RewriteReport) -> Html:
    """The controls; the script fills in what is shown."""
    if not report.pairs:
        return section("pairs", "Pairs", note("No pairs were asked for (--max-pairs 0)."))
    said = f"All {report.total:,} pairs are here."
    if len(report.pairs) < report.total:
        said = f"{len(report.pairs):,} of {report.total:,} pairs are here, drawn at random (seed {report.seed})."
    controls = tag(
        "div",
        _choice("State ", "state", [("", "all")]),
        _choice("Refused by ", "reason", [("", "any or none")]),
        _choice("Source ", "source", [("", "all")]),
        tag("label", "Find ", tag("input", type="search", id="q", autocomplete="off", dir="auto"), class_="find"),
        _choice(
            "in ",
            "where",
            [("", "both texts"), ("original", "original"), ("rewrite", "rewrite"), ("reasons", "reasons and names")],
        ),
        _choice(
            "Order ",
            "sort",
            [
                ("", "as they came"),
                ("shortest", "rewrites that lost most"),
                ("longest", "that gained most"),
                ("length", "longest"),
            ],
        ),
        tag("button", "clear", type="button", id="clear"),
        tag("output", id="found", aria_live="polite"),
        class_="filter",
        role="search",
        hidden=True,
    )
    return section(
        "pairs",
        "Pairs to look at",
        note(
            f"{said} What the rewrite leaves out is ",
            tag("del", "struck through"),
            ", what it brings is ",
            tag("ins", "underlined"),
            ". The search knows no vowel signs and no difference between ",
            [[isolated(one), " and ", isolated(other), mark] for one, other, mark in _ALIKE],
            "Signs that can't be seen are shown by their code, as in ⟨202E⟩. The address keeps the filters.",
        ),
        tag("noscript", note("The pairs need JavaScript; nothing is loaded from outside.")),
        controls,
        _pager("Pages above"),
        tag("output", id="working", aria_live="polite"),
        tag("div", id="pairs-shown"),
        _pager("Pages below"),
    )


def _choice(name: str, identifier: str, options: Sequence[tuple[str, str]]) -> Html:
    return tag(
        "label",
        name,
        tag("select", [tag("option", shown, value=value) for value, shown in options], id=identifier),
    )


def _pager(name: str) -> Html:
    return tag(
        "div",
        tag("button", "← back", type="button", name="back"),
        tag("label", "page ", tag("input", type="number", name="page", min="1", value="1")),
        tag("span", class_="pages"),
        tag("button", "on →", type="button", name="on"),
        class_="pager",
        role="navigation",
        aria_label=name,
        hidden=True,
    )
