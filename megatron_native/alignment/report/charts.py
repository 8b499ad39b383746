"""Two distributions over each other, as outlines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from megatron_native.corpus.report.charts import Series, label, legend, svg
from megatron_native.corpus.report.elements import Html, share, tag

WIDTH, HEIGHT = 500.0, 210.0


def outlines(title: str, series: Sequence[Series], name: Callable[[float], str], mark: float | None = None) -> Html:
    """Shares of each series by bin, as steps over one axis; `name` writes a value of the axis, `mark` is a line at one."""
    series = [one for one in series if one.bins]
    if not series:
        return Html("")
    low, high = series[0].bins[0][0], series[0].bins[-1][1]
    shares = [[count / max(1, sum(c for _, _, c in one.bins)) for _, _, count in one.bins] for one in series]
    most = max(max(one) for one in shares) or 1.0
    step = _step(most)
    top_value = step * math.ceil(most / step - 1e-9)
    left, right, top, bottom = 46.0, 10.0, 10.0, 26.0
    tall, wide = HEIGHT - top - bottom, WIDTH - left - right

    def x(value: float) -> float:
        return left + (value - low) / max(1e-12, high - low) * wide

    def y(value: float) -> float:
        return top + tall * (1 - value / top_value)

    parts = []
    for line in range(round(top_value / step) + 1):
        height = y(line * step)
        parts.append(tag("line", x1=left, x2=WIDTH - right, y1=height, y2=height, class_="grid" if line else "axis"))
        parts.append(label(left - 6, height + 4, f"{100 * line * step:g} %", "end", "muted"))
    for place in range(5):
        value = low + (high - low) * place / 4
        anchor = "end" if place == 4 else "start" if place == 0 else "middle"
        parts.append(tag("line", x1=x(value), x2=x(value), y1=top + tall, y2=top + tall + 4, class_="axis"))
        parts.append(label(x(value), HEIGHT - 8, name(value), anchor, "muted"))
    if mark is not None and low < mark < high:
        parts.append(tag("line", x1=x(mark), x2=x(mark), y1=top, y2=top + tall, class_="mark"))
    for one, values in zip(series, shares):
        points = [f"M{left:.1f} {y(0):.1f}"]
        for (begin, end, _), value in zip(one.bins, values):
            points += [f"L{x(begin):.1f} {y(value):.1f}", f"L{x(end):.1f} {y(value):.1f}"]
        points.append(f"L{x(high):.1f} {y(0):.1f}")
        total = sum(count for _, _, count in one.bins)
        parts.append(tag("path", tag("title", f"{one.name}: {total:,}"), d=" ".join(points), class_=f"line {one.kind}"))
    drawing = svg(WIDTH, HEIGHT, title, *parts)
    if len(series) < 2:
        return drawing
    return tag("div", drawing, legend([(one.name, one.kind, "") for one in series]))


def _step(most: float) -> float:
    raw = max(1e-4, most / 4)
    unit = 10 ** math.floor(math.log10(raw))
    return float(next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw - 1e-12))


def shares_of(part: int, whole: int) -> str:
    """A count with its share."""
    return f"{part:,} · {share(part, whole)}"
