"""What the gates catch and what they refuse wrongly, on seeded damage to real news and on the cases written by hand.

    python benchmarks/gates.py [--data FOLDER] [--count 800] [--seed 1] [--choose] [--show-misses KIND]

Thresholds are chosen on the tuning half of the news (`--choose` prints and keeps the choice); the table reports the other
half, and both halves of tests/alignment/gate_cases. A damaged pair is caught when any gate refuses it; `intended` is the
share that a gate made for its kind refuses. Intervals are Wilson's, 95 %. `--show-misses` shows pairs of tuning halves only.
Rates are MB of the origin's UTF-8 text a second of processor time on one core, all gates that need no model switched on.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from gate_damage import DAMAGE, cases  # noqa: E402 (found by the path set above)
from gate_mends import GOOD  # noqa: E402 (found by the path set above)
from gate_news import Case, load  # noqa: E402 (found by the path set above)
from results import machine, save  # noqa: E402 (found by the path set above)

from megatron_native.alignment.gates.judging import Gates, build_gates  # noqa: E402 (found by the path set above)
from megatron_native.alignment.gates.settings import default_settings  # noqa: E402 (found by the path set above)
from tests.alignment.gate_halves import cases_of  # noqa: E402 (found by the path set above)

INTENDED = {
    "number_changed": ("numbers",), "name_changed": ("names", "spelling"), "invented": ("invented",),
    "url_or_quotation_changed": ("addresses", "quotations"), "summarised": ("summarised", "length"), "cut_off": ("cut_off",),
    "translated": ("language", "script"), "dialect_changed": ("dialect",), "looped": ("repetition",),
    "scaffold": ("scaffold",), "refused": ("refusal",), "verse_altered": ("scripture",),
    "injection_obeyed": ("instructions", "summarised", "length"), "misspelled": ("spelling",),
}  # fmt: skip
GRID: list[tuple[str, str, tuple[float, ...], tuple[str, ...]]] = [  # strictest first
    ("dialect", "most_gained", (0, 1, 2, 3, 5), ("dialect_changed",)),
    ("script", "most_new", (0, 1, 2, 4), ("translated",)),
    ("length", "least", (0.9, 0.8, 0.7, 0.6, 0.5), ("summarised", "cut_off")),
    ("length", "most", (1.1, 1.25, 1.5, 2.0), ("looped", "invented")),
    ("repetition", "most", (0, 1, 2, 3, 5), ("looped",)),
    ("numbers", "most_new", (0, 1), ("number_changed",)),
    ("numbers", "most_lost", (0, 1), ("number_changed",)),
    ("names", "most_new", (0, 1), ("name_changed",)),
    ("spelling", "most_new", (0, 1, 2), ("misspelled",)),
    ("invented", "most_unknown", (0, 1, 2), ("invented",)),
    ("invented", "most_surplus", (1, 2, 3, 4, 6), ("invented",)),
    ("invented", "most_share", (0.05, 0.1, 0.2, 0.3), ("invented",)),
    ("summarised", "most_lost_run", (1, 2, 3, 4, 6), ("summarised",)),
    ("summarised", "most_lost_share", (0.04, 0.08, 0.16, 0.3), ("summarised",)),
    ("cut_off", "most_lost", (0, 1, 2, 4), ("cut_off",)),
    ("instructions", "most_words", (0, 1, 2), ("injection_obeyed",)),
]
MOST_FALSE = 0.001
"""False alarms that one gate may give on good edits of the tuning half."""


def wilson(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if not total:
        return 0.0, 1.0
    share = hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def row(where: str, kind: str, pairs: list[Case], gates: Gates, misses: list[str] | None = None) -> dict[str, Any]:
    """One line of the table."""
    refused, intended = 0, 0
    by: Counter[str] = Counter()
    for case in pairs:
        verdict = gates.judge(case.origin, case.rewritten)
        refused += not verdict.passed
        intended += bool(set(verdict.refused_by) & set(INTENDED.get(kind, ())))
        by.update(verdict.refused_by)
        if misses is not None and verdict.passed == (kind != "good"):
            misses.append(f"[{kind}: {case.how}] {'; '.join(verdict.reasons)}\n  {case.origin}\n  → {case.rewritten}")
    low, high = wilson(refused, len(pairs))
    return {
        "pairs": where, "kind": kind, "n": len(pairs), "refused": refused,
        "share": f"{refused / max(1, len(pairs)):.1%}", "95 %": f"{low:.1%} to {high:.1%}",
        "intended gate": f"{intended / max(1, len(pairs)):.1%}" if kind != "good" else None,
        "gates": ", ".join(f"{gate} {count}" for gate, count in by.most_common(5)),
    }  # fmt: skip


def choose(tuning: dict[str, list[Case]], written: list[Case]) -> list[dict[str, Any]]:
    """For every threshold, the false alarms and the catch of its gate alone, and the strictest value that may be.

    It may refuse `MOST_FALSE` of the news' good edits at most, and none of the good rewrites of the tuning half that were
    written by hand: these are reworded more freely.
    """
    defaults = default_settings()
    rows = []
    for gate, key, values, kinds in GRID:
        best: float | None = None
        told = []
        for value in values:
            settings: dict[str, dict[str, Any]] = {name: {"enabled": name == gate} for name in defaults}
            settings[gate] |= {key: value}
            gates = build_gates(settings)
            good = tuning["good"]
            false = sum(not gates.judge(case.origin, case.rewritten).passed for case in good) / len(good)
            strict = sum(not gates.judge(case.origin, case.rewritten).passed for case in written)
            bad = [case for kind in kinds for case in tuning[kind]]
            caught = sum(not gates.judge(case.origin, case.rewritten).passed for case in bad) / len(bad)
            told.append(f"{value:g}: {false:.2%}, {strict}, {caught:.1%}")
            if best is None and false <= MOST_FALSE and not strict:
                best = value
        rows.append({
            "threshold": f"{gate}.{key}", "value: false alarms in the news, by hand, caught (this gate alone)": "; ".join(told),
            "strictest within the bound": best if best is not None else values[-1], "shipped": defaults[gate][key],
        })  # fmt: skip
    return rows


def speed(gates: Gates, pairs: list[Case]) -> float:
    """MB of origin a second of processor time; the best of three, since others use the machine."""
    size = sum(len(case.origin.encode()) for case in pairs) / 1e6
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        for case in pairs:
            gates.judge(case.origin, case.rewritten)
        best = max(best, size / (time.process_time() - start))
    return round(best, 2)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data) / "saudinewsnet", help="folder of the news archives")
    parser.add_argument("--count", type=int, default=800, help="damaged pairs a kind, both halves together (800)")
    parser.add_argument("--good", type=int, default=8000, help="good pairs, both halves together (8000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--choose", action="store_true", help="try thresholds on the tuning half")
    parser.add_argument("--show-misses", metavar="KIND", help="pairs of the tuning halves that are judged wrongly")
    arguments = parser.parse_args()
    banks = load(arguments.data, arguments.seed)
    halves = {
        half: {
            kind: cases(bank, kind, (arguments.good if kind == "good" else arguments.count) // 2, arguments.seed)
            for kind in ("good", *DAMAGE)
        }
        for half, bank in banks.items()
    }
    gates = build_gates()
    if arguments.show_misses:
        shown: list[str] = []
        kind = arguments.show_misses
        row("", kind, halves["tuning"][kind], gates, shown)
        written = [Case(kind, c["note"], c["origin"], c["rewritten"]) for c in cases_of("tuning")[kind]]
        row("", kind, written, gates, shown)
        print("\n".join(shown))
        return
    rows = [row("news, reporting half", kind, pairs, gates) for kind, pairs in halves["report"].items()]
    rows += [
        row("news, reporting half", "good", [c for c in halves["report"]["good"] if c.how == how], gates)
        | {"kind": f"good: {how}"}
        for how in GOOD
    ]
    rows += [row("news, tuning half", kind, pairs, gates) for kind, pairs in halves["tuning"].items()]
    for half in ("test", "tuning"):
        for kind, found in cases_of(half).items():  # type: ignore[arg-type]  # one of the two
            pairs = [Case(kind, "", case["origin"], case["rewritten"]) for case in found]
            rows.append(row(f"by hand, {half} half", kind, pairs, gates))
    report = halves["report"]
    rates = {
        "good edits": speed(gates, report["good"][:1500]),
        "unchanged": speed(gates, [c for c in report["good"] if c.origin == c.rewritten]),
    }
    rates |= {
        f"good: {how}": speed(gates, [c for c in report["good"] if c.how == how][:200])
        for how in GOOD
        if how != "unchanged"
    }
    rates |= {"damaged": speed(gates, [case for kind in DAMAGE for case in report[kind][:40]])}
    more: dict[str, Any] = {
        "Seed": arguments.seed,
        "Command": f"python benchmarks/gates.py --count {arguments.count} --good {arguments.good} --seed {arguments.seed}",
        "MB a second of one core": ", ".join(f"{name} {value}" for name, value in rates.items()),
    }
    if arguments.choose:
        written = [Case("good", "", case["origin"], case["rewritten"]) for case in cases_of("tuning")["good"]]
        tuning = {kind: pairs[: 2000 if kind == "good" else 200] for kind, pairs in halves["tuning"].items()}
        chosen = choose(tuning, written)
        save("gate_thresholds", "gates: thresholds tried on the tuning half", chosen, machine(), Bound=MOST_FALSE)
    save("gates", "gates: what they refuse of damaged and of good rewrites", rows, machine(), **more)


if __name__ == "__main__":
    main()
