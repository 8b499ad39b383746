"""The account of every record as a flow: stages from left to right, what each one takes out below them.

Heights are in proportion to records, all on one scale; what would be too thin to be seen is drawn a pixel high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from megatron_native.corpus.report.charts import label, svg
from megatron_native.corpus.report.elements import Html, amount, number, share, tag
from megatron_native.corpus.report.figures import Link, Stage
from megatron_native.corpus.report.stages import COPIES

WIDTH = 1040.0
_TALL = 150.0
_BAR, _LABEL, _GAP, _ROW = 12.0, 38.0, 22.0, 20.0
_LEAST = 1.2
_SHOWN_REASONS = {"copy": 2, "dropped": 6, "quarantined": 3}
"""How many reasons of each kind are named, one below the other."""
_END = 170.0
_CHARACTER = 6.3


class Exit(NamedTuple):
    """A way out of a stage."""

    name: str
    records: int
    kind: str


@dataclass
class _Node:
    stage: Stage
    number: int
    x: float
    y: float = 0.0
    out: float = 0.0
    """Where the next ribbon begins, from the top of the bar."""
    into: float = 0.0
    exits: list[Exit] = field(default_factory=list)


def exits_of(stage: Stage) -> list[Exit]:
    """How records leave a stage, by kind and most frequent first; the rare reasons of a kind as one."""
    ways: dict[str, list[Exit]] = {kind: [] for kind in _SHOWN_REASONS}
    for reason, count in stage.dropped.items():
        kind = "copy" if reason in COPIES else "dropped"
        ways[kind].append(Exit(reason, count, kind))
    ways["quarantined"] = [Exit(reason, count, "quarantined") for reason, count in stage.quarantined.items()]
    exits = []
    for kind, most in _SHOWN_REASONS.items():
        found = sorted((way for way in ways[kind] if way.records), key=lambda way: (-way.records, way.name))
        rare = found[most:] if len(found) > most + 1 else []
        exits += found[: len(found) - len(rare)]
        if rare:
            exits.append(Exit(f"{len(rare)} more reasons", sum(way.records for way in rare), kind))
    if stage.unread:
        exits.append(Exit("in no later stage given", stage.unread, "rest"))
    return exits


def flow(stages: Sequence[Stage], links: Sequence[Link], names: Mapping[str, str]) -> Html:
    """The drawing; `names` are short names of stages. Empty where nothing was recorded."""
    drawn = [(n, stage) for n, stage in enumerate(stages) if stage.read is not None and stage.kept is not None]
    if not drawn or not max(stage.read or 0 for _, stage in drawn):
        return Html("")
    columns = max(stage.column for _, stage in drawn) + 1
    step = (WIDTH - _END) / columns
    nodes = {n: _Node(stage, n, stage.column * step, exits=exits_of(stage)) for n, stage in drawn}
    in_columns = [[node for node in nodes.values() if node.stage.column == column] for column in range(columns)]
    scale = _TALL / max(sum(node.stage.read or 0 for node in column) for column in in_columns)
    main = 0.0
    for column in in_columns:
        y = 0.0
        for node in column:
            node.y = y + _LABEL
            y = node.y + max(_LEAST, (node.stage.read or 0) * scale) + _GAP
        main = max(main, y)
    behind: list[Html] = []
    before: list[Html] = []
    for one in sorted(links, key=lambda one: (one.giver, nodes[one.taker].y if one.taker in nodes else 0)):
        if one.giver in nodes and one.taker in nodes:
            giver, taker = nodes[one.giver], nodes[one.taker]
            high = one.records * scale
            what = f"{one.records:,} records from {names[giver.stage.name]} to {names[taker.stage.name]}"
            behind.append(
                _ribbon(giver.x + _BAR, giver.y + giver.out, taker.x, taker.y + taker.into, high, "kept", what)
            )
            giver.out += high
            taker.into += high
    bottom = main
    for column in in_columns:
        y = main
        for node in column:
            behind += _end(node, scale, step)
            y = _draw_exits(node, y, scale, step, len(column) > 1, names, behind, before)
            before += _draw_bar(node, scale, names)
        bottom = max(bottom, y)
    title = "Records through the stages: " + "; ".join(
        f"{names[stage.name]} read {stage.read:,} and kept {stage.kept:,}" for _, stage in drawn
    )
    return tag(
        "div",
        svg(WIDTH, bottom + 6, title, *behind, *before),
        class_="scroll flow",
        tabindex="0",
        role="region",
        aria_label="flow of records",
    )


def _end(node: _Node, scale: float, step: float) -> list[Html]:
    """What is kept by a stage that no other one follows goes out to the right."""
    stage = node.stage
    if stage.unread is not None or not stage.kept:
        return []
    x = WIDTH - _END
    high = stage.kept * scale
    parts = [_ribbon(node.x + _BAR, node.y + node.out, x, node.y + node.out, high, "kept", f"{stage.kept:,} kept")]
    parts.append(tag("rect", x=x, y=node.y + node.out, width=_BAR / 2, height=max(_LEAST, high), class_="kept solid"))
    middle = node.y + node.out + high / 2
    lines = [(f"{stage.kept:,}", "strong"), ("documents kept", "muted")]
    if stage.tokens is not None:
        lines = [(f"{amount(stage.tokens)} tokens", "strong"), (f"in {stage.kept:,} documents", "muted")]
    y = middle - 8 * (len(lines) - 1) + 4
    parts += [label(x + 14, y + 16 * n, text, kind=kind) for n, (text, kind) in enumerate(lines)]
    node.out += high
    return parts


def _draw_bar(node: _Node, scale: float, names: Mapping[str, str]) -> list[Html]:
    stage = node.stage
    name = names[stage.name]
    kind = stage.kind if stage.kind not in name else ""
    return [
        tag(
            "rect",
            tag("title", stage.name),
            x=node.x,
            y=node.y,
            width=_BAR,
            height=max(_LEAST, (stage.read or 0) * scale),
            class_="bar",
        ),
        tag(
            "text",
            tag("tspan", name, class_="strong"),
            tag("tspan", f"  {kind}", class_="muted") if kind else None,
            x=node.x,
            y=node.y - 22,
        ),
        label(node.x, node.y - 7, f"{number(stage.read)} read", kind="muted"),
    ]


def _draw_exits(
    node: _Node,
    y: float,
    scale: float,
    step: float,
    named: bool,
    names: Mapping[str, str],
    behind: list[Html],
    before: list[Html],
) -> float:
    """Ribbons down to what left, each with its name; where the next one may be drawn."""
    if not node.exits:
        return y
    x = node.x + _BAR + 44
    if named:
        before.append(label(x, y + 12, f"from {names[node.stage.name]}", kind="muted"))
        y += _ROW
    room = int((step - (x - node.x) - 14) / _CHARACTER)
    for way in node.exits:
        high = way.records * scale
        row = max(_ROW, high + 5)
        top = y + (row - max(_LEAST, high)) / 2
        what = f"{way.name}: {way.records:,} ({share(way.records, node.stage.read)})"
        behind.append(_ribbon(node.x + _BAR, node.y + node.out, x, top, high, way.kind, what))
        before.append(tag("rect", x=x, y=top, width=4, height=max(_LEAST, high), class_=f"{way.kind} solid"))
        figure = f"{way.records:,}"
        name = way.name if len(way.name) + len(figure) + 1 <= room else way.name[: room - len(figure) - 2] + "…"
        text = tag("tspan", f"  {figure}", class_="muted")
        before.append(tag("text", tag("title", what), name, text, x=x + 10, y=y + row / 2 + 4))
        node.out += high
        y += row
    return y + 6


def _ribbon(x1: float, y1: float, x2: float, y2: float, high: float, kind: str, what: str) -> Html:
    high = max(_LEAST, high)
    middle = (x1 + x2) / 2
    path = (
        f"M{x1:.1f} {y1:.2f}C{middle:.1f} {y1:.2f} {middle:.1f} {y2:.2f} {x2:.1f} {y2:.2f}"
        f"V{y2 + high:.2f}C{middle:.1f} {y2 + high:.2f} {middle:.1f} {y1 + high:.2f} {x1:.1f} {y1 + high:.2f}Z"
    )
    return tag("path", tag("title", what), d=path, class_=f"{kind} ribbon")
