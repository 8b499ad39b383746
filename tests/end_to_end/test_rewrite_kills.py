"""Rewriting killed at random moments and run again: no passage twice, none lost, the same bytes where that can be.

`make test-rewrite-faults` kills each engine ten times (MEGATRON_NATIVE_KILLS) and keeps what happened in
benchmarks/results/rewrite_faults.md.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_native.alignment.rewriting.export import decisions_of
from tests.alignment.rewriting.jobs import rewritten_texts, text_of
from tests.alignment.rewriting.workers import write_conduct, write_worker
from tests.faulty_server import FaultyServer, edited

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("MEGATRON_NATIVE_KILLS", "3"))
RESULT = os.environ.get("MEGATRON_NATIVE_REWRITE_FAULTS_RESULT")


def noisy(number: int) -> str:
    """A text with things that rules and the server of the tests change."""
    return text_of(number).replace("الجانبين.", "الجانبين ,كما قيل  .").replace("المجاورة.", "المجاورة !!!!")


def write_noisy(path: Path, count: int) -> list[str]:
    texts = [noisy(number) for number in range(count)]
    lines = [json.dumps({"id": f"d{number}", "text": text}, ensure_ascii=False) for number, text in enumerate(texts)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return texts


def command(folder: Path, output: Path, *others: str) -> list[str]:
    words = ["--input", str(folder / "dump"), "--output", str(output), "--workers", "1", *others]
    return [sys.executable, "-m", "megatron_native", "rewrite", *words]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"
    }  # fmt: skip


def kill_again_and_again(
    words: list[str],
    output: Path,
    seconds: float,
    seed: str,
    check: Callable[[int], None],
    moments_of: tuple[float, float] = (0.15, 0.9),
) -> list[float]:
    """Run `words` again and again, killing `KILLS` of the runs at `moments_of` an undisturbed run's time; the moments.

    Whenever a rewriting is finished, `check(kills it had)` looks at it; then it is begun anew, so that there is something
    to kill. A whole run that ends before its kill is the measure from then on: the machine may be quicker by now. Where
    all kills came before the work began, one more (at most three) comes as soon as it has.
    """

    def has_begun() -> bool:
        return any((output / "_progress" / phase).is_dir() for phase in ("parts", "answers", "paid"))

    generator = random.Random(seed)
    moments: list[float] = []
    since = begun = 0
    while len(moments) < KILLS or since or (not begun and len(moments) < KILLS + 3):
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started = time.monotonic()
        moment: float | None = generator.uniform(*moments_of) * seconds
        if len(moments) >= KILLS:
            moment = None
            while not begun and not has_begun() and process.poll() is None:
                time.sleep(0.002)
            if not begun and process.poll() is None:
                moment = 0.0
        try:
            _, said = process.communicate(timeout=moment)
            assert process.returncode == 0, said
            if not since:
                seconds = min(seconds, time.monotonic() - started)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            moments.append(round(time.monotonic() - started, 2))
            since += 1
            begun += has_begun()
        if (output / "manifest.json").exists():
            if process.returncode:  # killed in the middle of tidying up, perhaps
                assert run(words).returncode == 0
            check(since)
            shutil.rmtree(output)
            since = 0
    assert begun, "every kill came before the work began"
    return moments


def keep(engine: str, moments: list[float], seconds: float, passages: int, said: str) -> None:
    if RESULT:
        with open(RESULT, "a", encoding="utf-8") as file:
            shown = " ".join(map(str, moments))
            file.write(f"| {engine} | {len(moments)} | {seconds:.1f} | {shown} | {passages} | {said} |\n")


@pytest.mark.timeout(1800)
def test_rules_give_the_same_bytes(tmp_path: Path) -> None:
    write_noisy(tmp_path / "dump" / "a.jsonl", 1500)
    options = ("--part-bytes", "150000")
    begun = time.monotonic()
    assert run(command(tmp_path, tmp_path / "whole", *options)).returncode == 0
    seconds = time.monotonic() - begun
    killed = tmp_path / "killed"

    def check(kills: int) -> None:
        assert files(killed) == files(tmp_path / "whole")
        assert all("!!!!" not in text for text in rewritten_texts(killed).values())

    moments = kill_again_and_again(command(tmp_path, killed, *options), killed, seconds, "rules", check)
    keep("rules", moments, seconds, 1500, "the same bytes (documents)")


@pytest.mark.timeout(1800)
def test_transformers_one_at_a_time_give_the_same_bytes(tmp_path: Path) -> None:
    write_noisy(tmp_path / "dump" / "a.jsonl", 2)
    worker = write_worker(tmp_path / "worker")
    options = (
        "--engine", "transformers", "--worker", str(worker), "--option", "batch_size=1", "--no-first-look",
        "--conduct", str(write_conduct(tmp_path / "short.yaml")), "--passage-tokens", "48", "--chunk-passages", "4",
        "--answer-ratio", "1",
    )  # fmt: skip
    begun = time.monotonic()
    whole = run(command(tmp_path, tmp_path / "whole", *options))
    assert whole.returncode == 0, whole.stderr
    seconds = time.monotonic() - begun
    killed = tmp_path / "killed"
    passages = Counter(decision["id"] for decision in decisions_of(tmp_path / "whole"))
    assert set(passages.values()) == {1}

    def check(kills: int) -> None:
        assert files(killed) == files(tmp_path / "whole")

    moments = kill_again_and_again(
        command(tmp_path, killed, *options), killed, seconds, "transformers", check, (0.4, 1.0)
    )
    keep("transformers, batch 1", moments, seconds, len(passages), "the same bytes")


@pytest.mark.timeout(1800)
def test_what_a_server_was_paid_for_is_not_asked_again(tmp_path: Path) -> None:
    concurrency = 4
    write_noisy(tmp_path / "dump" / "a.jsonl", 60)
    faults = {"429": 0.06, "500": 0.06, "garbage": 0.06, "half": 0.06, "empty": 0.06, "closed": 0.06}
    with FaultyServer(faults=faults, seed=7, latency=0.02) as server:
        options = (
            "--engine", "openai", "--endpoint", server.url, "--model", server.model, "--no-first-look", "--no-rules",
            "--passage-tokens", "64", "--option", f"concurrency={concurrency}", "backoff_seconds=0.02",
        )  # fmt: skip
        begun = time.monotonic()
        assert run(command(tmp_path, tmp_path / "whole", *options)).returncode == 0
        seconds = time.monotonic() - begun
        undisturbed = server.ledger.paid
        assert set(undisturbed.values()) == {1}, "paid twice with nothing but faults"
        server.ledger.paid = Counter()
        killed = tmp_path / "killed"
        again = 0

        def check(kills: int) -> None:
            nonlocal again
            paid, server.ledger.paid = server.ledger.paid, Counter()
            assert set(paid) == set(undisturbed)
            twice = sum(paid.values()) - len(paid)
            assert twice <= concurrency * kills, "more was paid again than was in flight at the kills"
            assert files(killed) == files(tmp_path / "whole")
            again += twice

        moments = kill_again_and_again(command(tmp_path, killed, *options), killed, seconds, "openai", check)
    decisions = list(decisions_of(tmp_path / "whole"))
    assert set(Counter(decision["id"] for decision in decisions).values()) == {1}
    for decision in decisions:
        expected = edited(decision["origin"])
        assert (decision["rewritten"] or decision.get("answer") or decision["origin"]) == expected
    keep("openai, faulty server", moments, seconds, len(decisions), f"the same bytes; {again} in flight paid again")
