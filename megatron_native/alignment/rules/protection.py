"""What no rule touches: scripture, code, mathematics, tables and addresses, each behind a placeholder while rules work."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from megatron_native.alignment.layout_blocks import Span, blocks_of
from megatron_native.alignment.rules.residue import TRACKER
from megatron_native.corpus.scripture import Frozen, freeze

_ADDRESS = re.compile(
    r"(?:https?://|ftp://|www\.)[^\s<>\"«»“”،؛؟()\[\]{}]+(?<![.,;:!?'*])"
    r"|(?<![\w.+-])[A-Za-z0-9._+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|(?<![\w@])@[A-Za-z0-9_]{2,30}"
)
_CODE = re.compile(r"(`+)(?!`)[^\n]{1,300}?(?<!`)\1(?!`)")
_INDENTED_CODE = re.compile(r"^(?: {4,}|\t+)[!-~][ -~]*$", re.MULTILINE)
_MATHEMATICS = re.compile(
    r"(?<![\\$])\$(?=[^\s$])[^$\n]{1,300}?(?<=[^\s\\])\$(?!\$)|\\\([^\n]{1,400}?\\\)|\\\[.{1,1000}?\\\]"
    r"|\\begin\{(\w+\*?)\}.{0,4000}?\\end\{\1\}|\\[a-zA-Z]+(?:\{[^{}\n]*\})+",
    re.DOTALL,
)


@dataclass(frozen=True)
class Protected:
    """A text with placeholders in it, and what they stand for.

    Attributes:
        frozen: the text with placeholders, and the way back.
        addresses: placeholders that stand for addresses: these may go away with an advertisement, all others stay.
    """

    frozen: Frozen
    addresses: frozenset[str]


NOTHING = frozenset[str]()


def protect(text: str, scripture: Iterable[Span], signs: bool) -> Protected:
    """Put placeholders in the place of what is not to be touched.

    Args:
        text: the text.
        scripture: (begin, end) of verses and ligatures.
        signs: whether there may be addresses, code, mathematics or tables.
    """
    spans = list(scripture)
    if signs:
        # A call of a tracker with || in it looks like the row of a table.
        spans += [span for span in blocks_of(text).whole if TRACKER.match(text[slice(*span)]) is None]
        if "://" in text or "www." in text or "@" in text:
            spans += [found.span() for found in _ADDRESS.finditer(text)]
        if "`" in text:
            spans += [found.span() for found in _CODE.finditer(text)]
        if "    " in text or "\t" in text:
            spans += [found.span() for found in _INDENTED_CODE.finditer(text)]
        if "$" in text or "\\" in text:
            spans += [found.span() for found in _MATHEMATICS.finditer(text)]
    if not spans:
        return Protected(Frozen(text), NOTHING)
    frozen = freeze(text, _joined(spans))
    addresses = [_ADDRESS.fullmatch(passage) is not None for passage in frozen.passages]
    return Protected(frozen, frozenset(chr(0x100000 + number) for number, is_one in enumerate(addresses) if is_one))


def _joined(spans: list[Span]) -> list[Span]:
    """Sorted and apart; spans that touch become one."""
    apart: list[Span] = []
    for begin, end in sorted(spans):
        if apart and begin <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
        else:
            apart.append((begin, end))
    return apart
