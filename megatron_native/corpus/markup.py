"""HTML remnants and the lines that sites put around their text: notices, advertisements, buttons.

Only names of real HTML elements count as tags, so that `a < b` stays; only whole, short lines are taken for
boilerplate, by patterns that are data (`presets/boilerplate.yaml`).
"""

from __future__ import annotations

import re
from functools import cache
from html import unescape
from html.entities import html5
from importlib import resources
from typing import Any, NamedTuple

import numba
import numpy as np
import yaml
from numpy.typing import NDArray

from megatron_native.corpus.folding import WordFolder, place_among, word_hash
from megatron_native.corpus.scripture import holds_placeholder

_ELEMENTS = (
    "a|abbr|address|article|aside|audio|b|blockquote|body|br|button|caption|center|cite|code|col|dd|del|details|div|dl|"
    "dt|em|embed|fieldset|figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|label|"
    "legend|li|link|main|mark|meta|nav|noscript|object|ol|option|p|param|picture|pre|q|s|section|select|small|source|"
    "span|strike|strong|sub|summary|sup|svg|table|tbody|td|textarea|tfoot|th|thead|time|title|tr|u|ul|video|wbr"
)
_LINE_ELEMENTS = "li|tr|td|th|dt|dd|h[1-6]|option|caption|figcaption|legend|summary|title"
_BLOCK_ELEMENTS = "p|div|article|section|blockquote|table|ul|ol|dl|pre|header|footer|main|nav|aside|form|figure|address"
# Beginning and end of what is taken out with all that stands between.
_INVISIBLE_SPANS = [
    *((rf"<{name}(?:\s[^<>]*)?>", rf"</{name}\s*>") for name in ("script", "style", "noscript", "iframe")),
    ("<!--", "-->"),
]
_INVISIBLE = [
    (re.compile(f"{begin}.*?{end}", re.IGNORECASE | re.DOTALL), re.compile(end, re.IGNORECASE))
    for begin, end in _INVISIBLE_SPANS
]
_DECLARATIONS = re.compile(r"<!doctype[^<>]*>|<!\[CDATA\[|\]\]>", re.IGNORECASE)
# An end and the beginning after it are one break; either may be missing, as HTML allows.
_BREAKS = re.compile(
    rf"<[bh]r(?:\s[^<>]*)?/?>|</(?:{_LINE_ELEMENTS})\s*>(?:\s*<(?:{_LINE_ELEMENTS})(?:\s[^<>]*)?>)?"
    rf"|<(?:{_LINE_ELEMENTS})(?:\s[^<>]*)?>",
    re.IGNORECASE,
)
_PARAGRAPHS = re.compile(rf"</?(?:{_BLOCK_ELEMENTS})(?:\s[^<>]*)?>", re.IGNORECASE)
_TAGS = re.compile(rf"</?(?:{_ELEMENTS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_ENTITIES = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,30}|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});")


def strip_html(text: str) -> str:
    """The text without tags, comments and scripts, entities decoded; block elements become line breaks."""
    if "<" in text:
        for span, end in _INVISIBLE:
            # No further than the last end: behind it every beginning would be followed to the end of the text in vain.
            last = max((found.end() for found in end.finditer(text)), default=0)
            text = span.sub("", text[:last]) + text[last:]
        text = _DECLARATIONS.sub("", text)
        text = _PARAGRAPHS.sub("\n\n", _BREAKS.sub("\n", text))
        text = _TAGS.sub("", text)
    if "&" in text:
        text = _ENTITIES.sub(_decoded, text)
    return text


def _decoded(entity: re.Match[str]) -> str:
    written = entity.group()
    return unescape(written) if written[1] == "#" else html5.get(written[1:], written)


class _Boilerplate(NamedTuple):
    pattern: re.Pattern[str]
    max_words: int
    triggers: NDArray[np.uint64]
    """Sorted hashes of words of which every line that a pattern matches has at least one."""


@cache
def _boilerplate() -> _Boilerplate:
    raw = resources.files("megatron_native.corpus").joinpath("presets/boilerplate.yaml").read_text(encoding="utf-8")
    rules = yaml.safe_load(raw)
    patterns = [pattern for group in rules["lines"].values() for pattern in group]
    triggers = np.array(sorted({word_hash(word) for word in rules["triggers"]}), dtype=np.uint64)
    pattern = re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)
    return _Boilerplate(pattern, int(rules["max_line_words"]), triggers)


def remove_boilerplate_lines(text: str, folder: WordFolder | None = None) -> tuple[str, int]:
    """The text without lines that are notices, advertisements or navigation; and how many there were.

    Lines that hold none of the trigger words of `presets/boilerplate.yaml` are not looked at.
    """
    rules = _boilerplate()
    words = (folder or WordFolder()).words(text)
    triggered = words.begins[_among(words.hashes, rules.triggers)]
    if not len(triggered):
        return text, 0
    taken: list[tuple[int, int]] = []
    end = -1
    for place in triggered.tolist():
        if place < end:
            continue
        begin = text.rfind("\n", 0, place) + 1
        end = text.find("\n", place)
        end = len(text) if end < 0 else end
        line = text[begin:end]
        if not holds_placeholder(line) and len(line.split()) <= rules.max_words and rules.pattern.search(line):
            taken.append((begin, end))
    if not taken:
        return text, 0
    kept, last = [], 0
    for begin, end in taken:
        kept.append(text[last : max(last, begin - 1)])
        last = end
    return "".join([*kept, text[last:]]), len(taken)


@numba.njit(cache=True, nogil=True)
def _among(hashes: Any, wanted: Any) -> Any:
    """Places of the hashes that are in the sorted array `wanted`."""
    found = np.empty(len(hashes), dtype=np.int64)
    count = 0
    for place in range(len(hashes)):
        if place_among(wanted, hashes[place]) >= 0:
            found[count] = place
            count += 1
    return found[:count]
