"""HTML that can't be injected into: elements are built by `tag`, which escapes every text that is not an element itself.

Text of documents is hostile until shown otherwise: besides markup, control characters and the marks that turn the direction
of writing are made visible, so that no text can change the page around it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

NOT_RECORDED = "not recorded"
_EMPTY = {"meta", "br", "input", "path", "rect", "line", "circle"}
_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Html(str):
    """Text that is HTML already; everything else is escaped."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]


def shown(text: str) -> Html:
    """Any text as HTML: escaped, with what can't be seen made visible."""
    text = _TURNING.sub(lambda found: f"⟨{ord(found[0]):04X}⟩", text)
    return Html(escape(_CONTROL.sub(_picture, text), quote=True))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"⟨{code:04X}⟩"


def joined(children: Child) -> Html:
    """Elements and texts, one after another; texts escaped, None left out."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str | int):
        return shown(str(children))
    return Html("".join(map(joined, children)))


def tag(name: str, /, *children: Child, **attributes: Any) -> Html:
    """An element. `class_` is `class`, other underscores are dashes; True is an attribute without value, None none."""
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.removesuffix("_")
        key = key if key in ("viewBox", "preserveAspectRatio") else key.replace("_", "-")
        if isinstance(value, float):
            value = f"{value:.2f}".rstrip("0").rstrip(".")
        written.append(f" {key}" if value is True else f' {key}="{shown(str(value))}"')
    opening = f"<{name}{''.join(written)}"
    return Html(f"{opening}/>" if name in _EMPTY and not children else f"{opening}>{joined(children)}</{name}>")


def number(value: float | None, digits: int = 0) -> str:
    """With thousands separators."""
    return NOT_RECORDED if value is None else f"{value:,.{digits}f}"


def share(part: float | None, whole: float | None) -> str:
    """A percentage; small ones are not rounded to nothing."""
    if part is None or whole is None:
        return NOT_RECORDED
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if 99.95 <= percent < 100 else f"{percent:.1f} %"


def size(count: float | None) -> str:
    """Bytes, readable."""
    if count is None:
        return NOT_RECORDED
    for name, unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,.0f} B"


def amount(count: float | None) -> str:
    """A large number in words: 12.7 million."""
    if count is None:
        return NOT_RECORDED
    for name, unit in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,.0f}"


def isolated(text: str) -> Html:
    """A name of either direction inside a line."""
    return tag("bdi", text)


def table(caption: str, head: Sequence[Child], rows: Sequence[Sequence[Child]], words: int = 1) -> Html:
    """A table that scrolls by itself; the first `words` columns are words, the others numbers."""

    def cell(column: int, content: Child) -> Html:
        unknown = content in (NOT_RECORDED, "–")
        kind = ("" if column < words else "number") + (" unknown" if unknown else "")
        if column == 0:
            return tag("th", content, scope="row")
        return tag("td", content, class_=kind.strip() or None)

    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag(
                "thead",
                tag(
                    "tr",
                    [
                        tag("th", content, scope="col", class_=None if column < words else "number")
                        for column, content in enumerate(head)
                    ],
                ),
            ),
            tag("tbody", [tag("tr", [cell(column, content) for column, content in enumerate(row)]) for row in rows]),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def section(anchor: str, title: str, *content: Child) -> Html:
    """A part of the page with its heading."""
    return tag("section", tag("h2", title), *content, id=anchor)


def note(*content: Child) -> Html:
    """A paragraph of explanation."""
    return tag("p", *content, class_="note")


def document(title: str, style: str, script: str, *body: Child) -> str:
    """A whole page; a policy in it forbids every script and style but these two, by their hashes, and all loading."""
    allowed = f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Html(style)),
    )
    whole = tag("body", *body, tag("script", Html(script)))
    return f"<!DOCTYPE html>\n{tag('html', head, whole, lang='en', dir='ltr')}\n"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def tile(name: str, value: str, below: str, kind: str) -> Html:
    """A figure of the header: its name, the figure, and what it is a share of; `kind` is its colour."""
    return tag("div", tag("dt", name), tag("dd", value), tag("dd", below, class_="muted"), class_=f"tile {kind}")
