"""The pipeline's timeline as one HTML file: pipeline ranks down, time across, a box for every pass. No scripts, no other files.

The whole step first; where its boxes are too small to read, its beginning and its end once more, with the numbers of the
micro-batches in the boxes.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_native.training.plan.schedule import Direction, Span, Timeline

_LEFT, _RIGHT, _WIDTH, _ROW, _GAP, _AXIS = 150, 24, 1240, 24, 4, 26
_BOXES_TO_READ = 44
"""Passes of a rank in a part that is drawn to be read."""


@dataclass(frozen=True)
class TimelineTexts:
    """What stands around the drawing."""

    title: str
    facts: Sequence[tuple[str, str]]
    """Name and value of the tiles above it."""
    row_labels: Sequence[tuple[str, str]]
    """By pipeline rank: a name, and a smaller line below it."""
    notes: Sequence[str]


def timeline_page(timeline: Timeline, texts: TimelineTexts) -> str:
    """The page as HTML."""
    chunks = 1 + max(span.chunk for spans in timeline.spans for span in spans)
    window = _window(timeline)
    parts = [_figure(timeline, texts, chunks, 0.0, timeline.seconds, "The whole step")]
    if window < timeline.seconds * 0.7:
        parts.append(_figure(timeline, texts, chunks, 0.0, window, "The beginning: the pipeline fills"))
        begin = timeline.seconds - window
        parts.append(_figure(timeline, texts, chunks, begin, timeline.seconds, "The end: the pipeline runs empty"))
    tiles = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in texts.facts
    )
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in texts.notes)
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<meta name=viewport content='width=device-width'><title>{html.escape(texts.title)}</title>"
        f"<style>{_style(chunks)}</style></head><body><main><h1>{html.escape(texts.title)}</h1>"
        f"<dl class=facts>{tiles}</dl>{_legend(chunks)}{''.join(parts)}<div class=notes>{notes}</div></main></body></html>\n"
    )


def _window(timeline: Timeline) -> float:
    """Seconds in which a rank has as many passes as can be read."""
    passes = max(len(spans) for spans in timeline.spans)
    return timeline.seconds * min(1.0, _BOXES_TO_READ / passes)


def _figure(timeline: Timeline, texts: TimelineTexts, chunks: int, begin: float, end: float, caption: str) -> str:
    scale = (_WIDTH - _LEFT - _RIGHT) / (end - begin)
    boxes: dict[tuple[Direction, int], list[str]] = defaultdict(list)
    numbers: list[str] = []
    height = timeline.ranks * (_ROW + _GAP)
    for rank, spans in enumerate(timeline.spans):
        top = rank * (_ROW + _GAP)
        for span in spans:
            if span.end <= begin or span.start >= end:
                continue
            _draw(span, begin, end, scale, top, boxes, numbers)
    labels = "".join(
        f"<text class=label x={_LEFT - 10} y={rank * (_ROW + _GAP) + 11}>{html.escape(name)}</text>"
        f"<text class='label small' x={_LEFT - 10} y={rank * (_ROW + _GAP) + 22}>{html.escape(more)}</text>"
        f"<rect class=lane x={_LEFT} y={rank * (_ROW + _GAP)} width={_WIDTH - _LEFT - _RIGHT} height={_ROW} />"
        for rank, (name, more) in enumerate(texts.row_labels)
    )
    paths = "".join(
        f"<path class={_class(direction, chunk)} d='{''.join(one)}'><title>{direction}, chunk {chunk}</title></path>"
        for (direction, chunk), one in sorted(boxes.items())
    )
    return (
        f"<figure><figcaption>{html.escape(caption)}</figcaption><div class=scroll>"
        f"<svg viewBox='0 0 {_WIDTH} {height + _AXIS}' width={_WIDTH} role=img aria-label='{html.escape(caption)}'>"
        f"{labels}{paths}<g class=numbers>{''.join(numbers)}</g>{_axis(begin, end, scale, height)}</svg></div></figure>"
    )


def _draw(
    span: Span, begin: float, end: float, scale: float, top: int, boxes: dict[tuple[Direction, int], list[str]],
    numbers: list[str],
) -> None:  # fmt: skip
    left = _LEFT + (max(span.start, begin) - begin) * scale
    width = (min(span.end, end) - max(span.start, begin)) * scale
    shown = max(width - (0.6 if width > 4 else 0.0), 0.3)
    boxes[span.direction, span.chunk].append(f"M{left:.1f} {top}h{shown:.1f}v{_ROW}h-{shown:.1f}z")
    number = str(span.micro_batch + 1)
    if width > 3 + 5.6 * len(number):
        numbers.append(f"<text x={left + width / 2:.1f} y={top + 16}>{number}</text>")


def _axis(begin: float, end: float, scale: float, height: int) -> str:
    step = _round_step((end - begin) / 8)
    marks, index = [], 0
    while (at := (int(begin / step) + index) * step) <= end:
        index += 1
        if at < begin:
            continue
        x = _LEFT + (at - begin) * scale
        marks.append(
            f"<path class=tick d='M{x:.1f} {height - 2}v5'/><text class=time x={x:.1f} y={height + 17}>{_time(at, step)}</text>"
        )
    return "".join(marks)


def _round_step(seconds: float) -> float:
    power = 1e-9
    while True:
        for factor in (1, 2, 5):
            if power * factor >= seconds:
                return power * factor
        power *= 10


def _time(seconds: float, step: float) -> str:
    if step >= 0.1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if step >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _class(direction: Direction, chunk: int) -> str:
    return f"{direction[0]}{chunk}"


def _legend(chunks: int) -> str:
    entries = []
    for direction in ("forward", "backward"):
        swatches = "".join(f"<i class={direction[0]}{chunk}></i>" for chunk in range(chunks))
        of = f", model chunks 1 to {chunks}" if chunks > 1 else ""
        entries.append(f"<li>{swatches} {direction}{of}</li>")
    return f"<ul class=legend>{''.join(entries)}<li><i class=idle></i> waiting: the bubble</li></ul>"


def _style(chunks: int) -> str:
    colours = []
    for chunk in range(chunks):
        light = 66 - 34 * (chunk / (chunks - 1) if chunks > 1 else 0.6)
        for name, hue, saturation in (("f", 205, 62), ("b", 22, 68)):
            colours.append(
                f".{name}{chunk}{{fill:hsl({hue} {saturation}% {light:.0f}%);background:hsl({hue} {saturation}% {light:.0f}%)}}"
            )
    return _STYLE + "".join(colours)


_STYLE = """
:root{color-scheme:light dark;--paper:#faf9f5;--ink:#20262a;--soft:#5c666c;--line:#e2dfd6;--lane:#e9e6dc}
@media (prefers-color-scheme:dark){:root{--paper:#14181b;--ink:#e6e4de;--soft:#9aa5ab;--line:#323a3f;--lane:#262d32}}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1290px;margin:0 auto;padding:26px 20px}
h1{font-size:1.5rem;margin:0 0 14px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:10px;margin:0 0 16px}
.facts div{border:1px solid var(--line);border-radius:6px;padding:8px 12px}
dt{font-size:.8rem;color:var(--soft)}dd{margin:0;font-size:1.1rem;font-weight:600;font-variant-numeric:tabular-nums}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 26px;padding:0;margin:0 0 12px;font-size:.88rem}
.legend i{display:inline-block;width:15px;height:15px;vertical-align:-2px;margin-right:1px}.idle{background:var(--lane)}
figure{margin:0 0 22px}figcaption{font-weight:600;font-size:.95rem;margin-bottom:6px}
.scroll{overflow-x:auto}svg{display:block;font-size:10.5px;font-variant-numeric:tabular-nums}
.lane{fill:var(--lane)}.label{fill:var(--ink);text-anchor:end}.small{fill:var(--soft);font-size:9px}
.time{fill:var(--soft);text-anchor:middle}.tick{stroke:var(--soft)}
.numbers text{fill:#fff;text-anchor:middle;font-size:9.5px;paint-order:stroke;stroke:#0006;stroke-width:1.6px}
.notes p{color:var(--soft);font-size:.88rem;max-width:100ch;margin:.4em 0}
"""
