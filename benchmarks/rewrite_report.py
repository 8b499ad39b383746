"""How large a report of many rewrites is, and how fast it opens and filters in headless Chromium.

    python benchmarks/rewrite_report.py --pairs 20000 --folder /tmp/report --results rewrite_report

Passages are combined from written sentences (`rewrite_report_texts.py`), rewritten through `rewrite --engine openai` by a
server on this machine, and checked by the gates: so states, reasons and scores are those of a rewriting. `--screenshot`
writes a picture of the page.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from gate_damage import DAMAGE  # noqa: E402 (found by the path set above)
from gate_mends import GOOD  # noqa: E402 (found by the path set above)
from gate_news import load  # noqa: E402 (found by the path set above)
from headless_chromium import Chromium  # noqa: E402 (found by the path set above)
from results import machine, save  # noqa: E402 (found by the path set above)
from rewrite_report_texts import SOURCES, passages  # noqa: E402 (found by the path set above)

from megatron_native.alignment.analyses.pairs import read_pairs  # noqa: E402 (found by the path set above)
from megatron_native.alignment.gates.pairs import PairSettings  # noqa: E402 (found by the path set above)
from megatron_native.alignment.prompts import parse_full  # noqa: E402 (found by the path set above)
from megatron_native.cli import run_command  # noqa: E402 (found by the path set above)

_VIEWS = {
    "first page": "all=1",
    "state refused": "state=refused",
    "reason numbers": "reason=numbers",
    "longest first": "sort=length",
    "search, frequent word": f"q={quote('المدينة')}",
    "search, folded, rare": f"q={quote('اهداه مرصدا')}",
    "search, nowhere": f"q={quote('زرافة بنفسجية')}",
    "page 1500": "page=1500",
}


def rewritten(folder: Path, count: int) -> Path:
    """A finished rewriting of so many passages."""
    from tests.faulty_server import FaultyServer

    output = folder / "rewritten"
    if (output / "manifest.json").exists():
        return output
    made = passages(count)
    answers = {passage.origin: passage.answer for passage in made}
    (folder / "in").mkdir(parents=True, exist_ok=True)
    with open(folder / "in" / "documents.jsonl", "w", encoding="utf-8") as file:
        for number, passage in enumerate(made):
            source = SOURCES[number * number % len(SOURCES)]
            record = {"id": f"doc-{number:06d}", "text": passage.origin, "metadata": {"source": source, "lang": "ar"}}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def answer(messages: list[dict[str, str]]) -> str:
        content = messages[-1]["content"]
        passage = parse_full(content[content.index("<passage") :])
        return answers.get(passage, passage)

    with FaultyServer(answer=answer) as server:
        code = run_command("rewrite", [
            "--input", str(folder / "in"), "--output", str(output), "--engine", "openai", "--endpoint", server.url,
            "--model", "editor", "--no-rules", "--no-first-look", "--passage-tokens", "900",
        ])  # fmt: skip
    if code:
        raise SystemExit(code)
    return output


def news(folder: Path, count: int, data: Path) -> Path:
    """A file of pairs: passages of real news with good edits, every fifth with damage, from a seed (`gate_damage.py`)."""
    output = folder / "news.jsonl"
    if output.exists():
        return output
    banks = list(load(data, 6).values())
    makers, damage = list(GOOD.values()), list(DAMAGE.values())
    draw, written = random.Random(6), 0
    folder.mkdir(parents=True, exist_ok=True)
    with open(output, "w", encoding="utf-8") as file:
        while written < count:
            bank = draw.choice(banks)
            made = draw.choice(damage if written % 5 == 4 else makers)(draw, draw.choice(bank.passages), bank)
            if made is None or made[1] == made[2]:
                continue
            file.write(json.dumps({"id": written, "origin": made[1], "rewritten": made[2]}, ensure_ascii=False) + "\n")
            written += 1
    return output


def _shown(browser: Chromium, fragment: str) -> tuple[float, float, str]:
    """(s since the page was opened, s of the last update, what it says it found), once the view stands there."""
    browser.wait(f"document.getElementById('found').dataset.view === '#{fragment}'")
    since, own, said = browser.run(
        "var found = document.getElementById('found');"
        "return [found.dataset.since, found.dataset.milliseconds, found.textContent];"
    )
    return float(since) / 1000, float(own) / 1000, said


def measured(page: Path) -> list[dict[str, str]]:
    """Rows of the table: opening, then each view in a page that is open, and the memory of a page that was searched."""
    rows = []
    for name, fragment in _VIEWS.items():
        with Chromium(1400, 2000) as browser:
            browser.open(f"file://{page.resolve()}#all=1")
            opened, _, said = _shown(browser, "all=1")
            if fragment == "all=1":
                rows.append({"what": name, "value": f"{opened:.2f} s after opening", "found": said})
                continue
            times = []
            for _ in range(2):
                browser.run(f"location.hash = '#{fragment}';")
                _, own, said = _shown(browser, fragment)
                times.append(own)
                browser.run("location.hash = '#all=1';")
                _shown(browser, "all=1")
            rows.append({"what": name, "value": f"{times[0]:.2f} s, again {times[1]:.2f} s", "found": said})
            memory = browser.run("return performance.memory.usedJSHeapSize;")
            if name == "search, nowhere":
                rows.append({"what": "heap with all texts unpacked", "value": f"{memory / 1e6:,.0f} MB"})
    return rows


def picture(page: Path, fragment: str, target: Path, size: str, dark: bool) -> None:
    """A screenshot, from the top of the pairs where the fragment names filters."""
    width, height = map(int, size.split(","))
    with Chromium(width, height, dark) as browser:
        browser.open(f"file://{page.resolve()}#{fragment}")
        browser.wait("document.getElementById('found').dataset.view !== undefined")
        if "=" not in fragment:
            browser.run("window.scrollTo(0, 0);")
        time.sleep(1.0)
        browser.screenshot(target)


def main() -> None:
    """Make, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--results", metavar="NAME", help="measure and write benchmarks/results/NAME.md")
    parser.add_argument(
        "--news", type=Path, metavar="FOLDER", help="pairs from SaudiNewsNet's zips in place of a rewriting"
    )
    parser.add_argument("--screenshot", type=Path)
    parser.add_argument("--fragment", default="reason=numbers", help="of the screenshot's address")
    parser.add_argument("--window", default="1400,2000")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    stage = (
        news(arguments.folder, arguments.pairs, arguments.news)
        if arguments.news
        else rewritten(arguments.folder, arguments.pairs)
    )
    report, figures = arguments.folder / "report.html", arguments.folder / "figures.json"
    started = time.monotonic()
    command = [
        "--input",
        str(stage),
        "--output",
        str(report),
        "--json",
        str(figures),
        "--max-pairs",
        str(arguments.pairs),
    ]
    if run_command("rewrite-report", command):
        raise SystemExit(1)
    seconds = time.monotonic() - started
    shown = read_pairs([str(stage)], PairSettings())
    texts = sum(len(text.encode()) for pair in shown for text in (pair.origin, pair.rewritten or ""))
    if arguments.screenshot:
        picture(report, arguments.fragment, arguments.screenshot, arguments.window, arguments.dark)
    if not arguments.results:
        return
    version = subprocess.run(["chromium", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    rows = [
        {"what": "texts of the pairs", "value": f"{texts / 1e6:,.1f} MB"},
        {"what": "the page", "value": f"{report.stat().st_size / 1e6:,.1f} MB"},
        {"what": "making it", "value": f"{seconds:,.1f} s"},
        *measured(report),
    ]
    kind = "pairs of news" if arguments.news else "rewrites"
    title = f"A report of {arguments.pairs:,} {kind}: size, and how fast it opens and filters"
    notes = {
        "browser": f"{version}, headless",
        "times": "the page's own clock, each view in a newly opened page, and once more in it: from the change of the filter "
        "until the pairs stand there; a first search unpacks all texts",
        "command": f"benchmarks/rewrite_report.py --pairs {arguments.pairs} --folder FOLDER --results NAME"
        + (" --news saudinewsnet" if arguments.news else ""),
    }
    save(arguments.results, title, rows, machine(), **notes)


if __name__ == "__main__":
    main()
