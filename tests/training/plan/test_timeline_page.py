"""The timeline as a page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from megatron_native.training.plan.schedule import ChunkTimes, simulate
from megatron_native.training.plan.timeline_page import TimelineTexts, timeline_page


def page_of(ranks: int, chunks: int, micro_batches: int) -> str:
    timeline = simulate(ChunkTimes([[0.1] * chunks] * ranks, [[0.2] * chunks] * ranks), micro_batches)
    texts = TimelineTexts(
        "A <step>", [("bubble", f"{timeline.bubble:.1%}")], [(f"stage {n}", "") for n in range(ranks)], ["note"]
    )
    return timeline_page(timeline, texts)


def figures(page: str) -> list[ElementTree.Element]:
    quoted = re.findall(r"<svg.*?</svg>", page, re.S)
    return [ElementTree.fromstring(re.sub(r"(\s[\w-]+)=([^'\"\s>]+)", r"\1='\2'", svg)) for svg in quoted]


def test_a_short_step_has_a_box_and_a_number_for_every_pass() -> None:
    (figure,) = figures(page_of(3, 1, 4))
    boxes = sum(path.get("d", "").count("M") for path in figure.iter("path") if path.get("class") in ("f0", "b0"))
    assert boxes == 3 * 2 * 4
    group = figure.find("g")
    assert group is not None
    numbers = [text.text for text in group.iter("text")]
    assert sorted(numbers) == sorted(str(n) for n in (1, 2, 3, 4) for _ in range(6))


def test_boxes_stand_where_the_times_say() -> None:
    """Two stages, two micro-batches: 1F1B takes 0.9 s, and the first backward pass of stage 0 begins at 0.4 s."""
    (figure,) = figures(page_of(2, 1, 2))
    (backward,) = [path for path in figure.iter("path") if path.get("class") == "b0"]
    places = [(float(x), int(y)) for x, y in re.findall(r"M([\d.]+) (\d+)", backward.get("d", ""))]
    first = min(x for x, y in places if y == 0)
    assert abs(first - (150 + (1240 - 150 - 24) * 0.4 / 0.9)) < 1


def test_a_long_step_shows_its_beginning_and_end_again() -> None:
    page = page_of(8, 5, 64)
    assert len(figures(page)) == 3
    assert len(page) < 400_000


def test_it_needs_nothing_else_and_escapes() -> None:
    page = page_of(2, 2, 4)
    assert "<script" not in page and "http://" not in page and "https://" not in page
    assert "A &lt;step&gt;" in page and "default-src 'none'" in page
    for chunk in (1, 2):
        assert f"class=f{chunk - 1}" in page and f"class=b{chunk - 1}" in page
