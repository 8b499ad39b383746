"""Charts as inline SVG, coloured by the page's style sheet: histograms, bars, shares of a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from megatron_native.corpus.report.elements import Html, share, tag

WIDTH = 680
_CHARACTER = 6.4


def svg(width: float, height: float, title: str, *content: Html) -> Html:
    """A drawing that scales with the page."""
    return tag(
        "svg",
        tag("title", title),
        *content,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        role="img",
        aria_label=title,
        class_="chart",
    )


def label(x: float, y: float, text: str, anchor: str = "start", kind: str | None = None) -> Html:
    """A line of text in a drawing."""
    return tag("text", text, x=x, y=y, text_anchor=anchor if anchor != "start" else None, class_=kind)


class Series(NamedTuple):
    """One colour of a histogram: [from, below, count] a bin; `kind` names its colour."""

    name: str
    kind: str
    bins: Sequence[tuple[float, float, int]]


def histogram(
    title: str,
    series: Sequence[Series],
    ticks: Sequence[tuple[float, str]],
    name: Callable[[float, float], str],
    place: Callable[[float], float],
    width: float = WIDTH,
    height: float = 210,
) -> Html:
    """Counts by bin, one series on top of another; `place` maps a value to the axis, `name` says what a bin is."""
    edges = sorted({(low, high) for one in series for low, high, _ in one.bins})
    if not edges:
        return Html("")
    counts = {(n, low): count for n, one in enumerate(series) for low, _, count in one.bins}
    most = max(sum(counts.get((n, low), 0) for n in range(len(series))) for low, _ in edges)
    step = _round_step(most)
    top_value = step * math.ceil(most / step) if most else 1
    left, right, top, bottom = _CHARACTER * len(f"{top_value:,}") + 14, 8.0, 10.0, 26.0
    first, last = place(edges[0][0]), place(edges[-1][1])
    scale = (width - left - right) / max(1e-9, last - first)
    tall = height - top - bottom

    def x(value: float) -> float:
        return left + (place(value) - first) * scale

    parts = []
    for line in range(int(top_value // step) + 1):
        y = top + tall * (1 - line * step / top_value)
        parts.append(tag("line", x1=left, x2=width - right, y1=y, y2=y, class_="grid" if line else "axis"))
        parts.append(label(left - 6, y + 4, f"{line * step:,}", "end", "muted"))
    for value, text in ticks:
        if first - 1e-9 <= place(value) <= last + 1e-9:
            anchor = "end" if x(value) > width - 30 else "middle"
            parts.append(tag("line", x1=x(value), x2=x(value), y1=top + tall, y2=top + tall + 4, class_="axis"))
            parts.append(label(min(x(value), width - 2), height - 8, text, anchor, "muted"))
    for low, high in edges:
        base = top + tall
        start, wide = x(low) + 0.75, max(1.0, x(high) - x(low) - 1.5)
        for n, one in enumerate(series):
            count = counts.get((n, low), 0)
            if count:
                high_px = max(1.0, tall * count / top_value)
                base -= high_px
                what = f"{name(low, high)}: {count:,}" + (f" ({one.name})" if len(series) > 1 else "")
                bar = tag("rect", tag("title", what), x=start, y=base, width=wide, height=high_px, class_=one.kind)
                parts.append(bar)
    return svg(width, height, title, *parts)


def _round_step(most: float) -> int:
    raw = max(1.0, most / 4)
    unit = 10 ** int(math.log10(raw))
    return int(
        next(
            unit * factor
            for factor in (1, 2, 2.5, 5, 10)
            if unit * factor >= raw and unit * factor == int(unit * factor)
        )
    )


def decades(low: float, high: float) -> list[tuple[float, str]]:
    """Marks of a logarithmic axis."""
    marks = []
    for power in range(max(0, math.floor(math.log10(max(1.0, low)))), math.ceil(math.log10(max(1.0, high))) + 1):
        steps = (1, 2, 5) if high / max(1.0, low) < 3000 else (1,)
        for step in steps:
            value = step * 10**power
            marks.append((float(value), f"{value:,}" if value < 1e6 else f"{value / 1e6:,g} M"))
    return marks


class Bar(NamedTuple):
    """One row of `bars`: its share of the longest one is drawn."""

    name: str
    value: float
    text: str
    kind: str = "kept"


def bars(title: str, rows: Sequence[Bar], mark: tuple[float, str] | None = None, width: float = WIDTH) -> Html:
    """Horizontal bars, each with its name before and its figure behind; `mark` is a line across, with its name."""
    if not rows:
        return Html("")
    left = min(0.42 * width, max(len(row.name) for row in rows) * _CHARACTER + 14)
    right = max(len(row.text) for row in rows) * _CHARACTER + 14
    most = max([row.value for row in rows] + ([mark[0] * 1.15] if mark else [])) or 1
    scale = (width - left - right) / most
    top = 22.0 if mark else 4.0
    parts = []
    for n, row in enumerate(rows):
        y = top + 24 * n
        name = row.name if len(row.name) * _CHARACTER <= left else row.name[: int(left / _CHARACTER) - 1] + "…"
        parts.append(label(left - 8, y + 15, name, "end"))
        parts.append(
            tag(
                "rect",
                x=left,
                y=y + 4,
                width=max(1.5, row.value * scale) if row.value else 0,
                height=15,
                rx=2,
                class_=row.kind,
            )
        )
        parts.append(label(left + row.value * scale + 7, y + 15, row.text, kind="muted"))
    height = top + 24 * len(rows) + 4
    if mark:
        x = left + mark[0] * scale
        parts.append(tag("line", x1=x, x2=x, y1=16, y2=height - 4, class_="mark"))
        parts.append(label(x, 11, mark[1], "middle", "muted"))
    return svg(width, height, title, *parts)


class Part(NamedTuple):
    """One part of a whole."""

    name: str
    value: int
    kind: str


def stack(title: str, parts: Sequence[Part], width: float = WIDTH) -> Html:
    """Shares of a whole as one bar, with a legend that has the figures."""
    parts = [part for part in parts if part.value]
    whole = sum(part.value for part in parts)
    if not whole:
        return Html("")
    drawn, x = [], 0.0
    gap = 2.0
    room = width - gap * (len(parts) - 1)
    least = 2.0
    wide = [max(least, room * part.value / whole) for part in parts]
    wide = [one * room / sum(wide) for one in wide]
    for part, one in zip(parts, wide):
        what = f"{part.name}: {part.value:,} ({share(part.value, whole)})"
        drawn.append(tag("rect", tag("title", what), x=x, y=0, width=one, height=22, rx=2, class_=part.kind))
        x += one + gap
    return tag(
        "div",
        svg(width, 22, title, *drawn),
        legend([(part.name, part.kind, f"{part.value:,} · {share(part.value, whole)}") for part in parts]),
        class_="stack",
    )


def legend(entries: Sequence[tuple[str, str, str]]) -> Html:
    """(name, colour, figure) each."""
    return tag(
        "ul",
        [
            tag(
                "li",
                tag(
                    "svg", tag("rect", width=11, height=11, rx=2, class_=kind), width=11, height=11, aria_hidden="true"
                ),
                tag("span", name),
                tag("span", figure, class_="muted"),
            )
            for name, kind, figure in entries
        ],
        class_="legend",
    )
