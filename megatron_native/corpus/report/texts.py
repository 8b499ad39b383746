"""The parts of the page that show texts: samples, pairs of copies, and the settings of the stages."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping

from megatron_native.corpus.report.elements import Html, isolated, joined, note, number, section, shown, table, tag
from megatron_native.corpus.report.figures import Pair, Report, Sample, SampleGroup
from megatron_native.corpus.report.stages import COPIES

_COMPARED_WORDS, _WORDS_BEFORE = 110, 20
_LANGUAGES = {
    "ar": "Arabic",
    "ar-dialect": "Arabic dialects",
    "ar-latn": "Arabic in Latin letters",
    "en": "English",
    "fr": "French",
    "fa": "Persian",
    "ur": "Urdu",
    "ckb": "Kurdish",
    "?": "not told",
}
_CODE = re.compile(r"[a-z]{2,3}(-[a-z]{2,8})?")
_RIGHT_TO_LEFT = {"ar", "fa", "ur", "ckb", "ps", "sd", "he"}
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
_KINDS = {"kept": "Kept", "dropped": "Dropped", "quarantined": "Quarantined"}


def language_name(code: str) -> str:
    """A bucket in words, with its code."""
    return f"{_LANGUAGES[code]} ({code})" if code in _LANGUAGES and code != "?" else _LANGUAGES.get(code, code)


def passage(text: str, language: str = "", cut: bool = False, raw: bool = False) -> Html:
    """A text, each paragraph in its own direction, never as HTML; `raw` is shown letter for letter."""
    if not text:
        return tag("p", "(empty)", class_="passage muted")
    code = "ar" if language == "ar-dialect" else "ar-Latn" if language == "ar-latn" else language
    spoken = code if _CODE.fullmatch(code.lower()) else ""
    more = tag("span", " …", class_="muted") if cut else None
    if raw:
        return tag("pre", text, more, class_="passage", dir="ltr", lang="")
    *paragraphs, last = _PARAGRAPH_BREAK.split(text.strip("\n"))
    direction = "rtl" if code in _RIGHT_TO_LEFT else "auto"
    content = [tag("p", paragraph, dir=direction) for paragraph in paragraphs] + [tag("p", last, more, dir=direction)]
    return tag("div", content, class_="passage", lang=spoken)


def texts_section(report: Report, names: Mapping[str, str]) -> Html:
    """Kept documents by language, then what was dropped and quarantined by reason."""
    content: list[Html] = []
    for kind, title in _KINDS.items():
        groups = [group for group in report.samples if group.kind == kind]
        if groups:
            content.append(tag("h3", title))
            content += [_group(group, names, opened=n == 0) for n, group in enumerate(groups)]
    lacking = [
        stage.name
        for stage in report.stages
        if sum(count for reason, count in stage.dropped.items() if reason not in COPIES)
        and not any(group.kind == "dropped" and group.stage == stage.name and group.samples for group in report.samples)
    ]
    if lacking:
        content.append(
            note("Texts of what was dropped: not recorded by ", ", ".join(names[name] for name in lacking), ".")
        )
    if not content:
        return Html("")
    search = tag(
        "div",
        tag("label", "Find in these texts ", tag("input", type="search", id="find", autocomplete="off")),
        tag(
            "label",
            "Show ",
            tag(
                "select",
                tag("option", "all", value=""),
                [tag("option", title.lower(), value=kind) for kind, title in _KINDS.items()],
                id="kind",
            ),
        ),
        tag("button", "open all", type="button", id="open"),
        tag("button", "close all", type="button", id="close"),
        tag("output", id="found", aria_live="polite"),
        class_="filter",
        hidden=True,
    )
    return section(
        "texts",
        "Texts to look at",
        note(
            "The documents with the least hashes of their ids in each group: always the same ones. Signs that can't be seen "
            "and marks that turn the direction of writing are shown by their code, as in ⟨202E⟩."
        ),
        search,
        *content,
    )


def _group(group: SampleGroup, names: Mapping[str, str], opened: bool) -> Html:
    stages = ", ".join(names.get(name, name) for name in group.stage.split(", "))
    said = (
        f"{number(group.count)} by {stages}, {len(group.samples)} shown"
        if group.samples
        else (f"{number(group.count)} by {stages}, none recorded to show")
    )
    summary = tag(
        "summary",
        tag("span", language_name(group.label) if group.kind == "kept" else group.label, class_=f"reason {group.kind}"),
        tag("span", said, class_="muted"),
    )
    articles = [_article(sample, raw=group.kind == "quarantined") for sample in group.samples]
    return tag("details", summary, articles, open=opened and bool(articles), class_="group", data_kind=group.kind)


def _article(sample: Sample, raw: bool) -> Html:
    about = [isolated(value) for value in dict.fromkeys((sample.id, sample.source, sample.note)) if value]
    line = [part for value in about for part in (Html(" · "), value)][1:]
    return tag("article", tag("p", line, class_="about"), passage(sample.text, sample.language, sample.cut, raw))


def pair_texts(pair: Pair) -> Html:
    """Two documents beside each other, with what differs marked."""
    similarity = "not recorded" if pair.similarity is None else f"{pair.similarity:.2f}"
    gone, stays = _compared(pair.gone, pair.stays)
    return tag(
        "details",
        tag(
            "summary",
            tag("span", pair.reason, class_="reason copy"),
            tag(
                "span",
                f"similarity {similarity} · ",
                isolated(pair.id),
                " is a copy of ",
                isolated(pair.copy_of),
                class_="muted",
            ),
        ),
        tag(
            "div",
            tag("div", tag("p", "left: ", isolated(pair.id), class_="about"), gone),
            tag("div", tag("p", "stays: ", isolated(pair.copy_of), class_="about"), stays),
            class_="columns",
        ),
        class_="group",
    )


def _compared(gone: str | None, stays: str | None) -> tuple[Html, Html]:
    """The two texts from shortly before their first difference, each with the words marked that the other one lacks."""
    missing = tag("p", "not found among the documents of the stages given", class_="passage muted")
    if gone is None or stays is None:
        return missing if gone is None else passage(gone, cut=True), missing if stays is None else passage(
            stays, cut=True
        )
    wholes = gone.split(), stays.split()
    same = next((n for n, (one, other) in enumerate(zip(*wholes)) if one != other), min(map(len, wholes)))
    start = max(0, same - _WORDS_BEFORE) if same < max(map(len, wholes)) else 0
    ones, others = (words[start : start + _COMPARED_WORDS] for words in wholes)
    steps = difflib.SequenceMatcher(None, ones, others, autojunk=False).get_opcodes()
    if steps and steps[-1][0] != "equal" and any(len(words) > start + _COMPARED_WORDS for words in wholes):
        steps = steps[:-1]  # what the cut took from one side alone is no difference
    sides: list[list[Html]] = [[], []]
    for kind, begin, end, other_begin, other_end in steps:
        for side, words in zip(sides, (ones[begin:end], others[other_begin:other_end])):
            if words:
                side.append(shown(" ".join(words)) if kind == "equal" else tag("mark", " ".join(words)))
    dots = tag("span", "… ", class_="muted") if start else None
    shown_sides = []
    for side, words in zip(sides, wholes):
        more = tag("span", " …", class_="muted") if len(words) > start + _COMPARED_WORDS else None
        text = joined([dots, Html(" ".join(side)), more])
        shown_sides.append(tag("div", tag("p", text, dir="auto"), class_="passage", lang=""))
    return shown_sides[0], shown_sides[1]


def settings_section(report: Report, names: Mapping[str, str]) -> Html:
    """What the stages were run with, for who wants to do it again."""
    content = []
    for stage in report.stages:
        if not stage.parameters:
            continue
        software = [[name, version] for name, version in sorted(stage.software.items())]
        content.append(
            tag(
                "details",
                tag(
                    "summary",
                    tag("span", isolated(names[stage.name]), class_="reason plain"),
                    tag("span", f"{stage.kind} · finished {stage.created or 'not recorded'}", class_="muted"),
                ),
                tag("p", "parameters, sha256 ", tag("code", stage.parameters_hash or "not recorded"), class_="about"),
                tag("pre", json.dumps(stage.parameters, ensure_ascii=False, indent=2), class_="settings", dir="ltr"),
                table("Software", ["package", "version"], software, words=2) if software else None,
                class_="group",
            )
        )
    return section("settings", "Settings of the stages", *content) if content else Html("")
