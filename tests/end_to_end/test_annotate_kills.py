"""Annotation killed at random moments and run again: nothing lost, nothing that was recorded paid twice, the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.commands.test_annotate_command import FAULTS, files, manifest_of, seeds_of, words, write
from tests.faulty_server import FaultyServer, edited

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("MEGATRON_NATIVE_KILLS", "4"))
CONCURRENCY = 4


def command(folder: Path, server: FaultyServer, output: str) -> list[str]:
    return [
        sys.executable, "-m", "megatron_native",
        *words(folder, server, "--sample", "80", "--structured", "auto", output=output),
    ]  # fmt: skip


@pytest.mark.timeout(600)
def test_killed_annotations_end_as_an_undisturbed_one(tmp_path: Path) -> None:
    texts = write(tmp_path / "in", 100)
    with FaultyServer(faults=FAULTS, seed=11, latency=0.05, structured="kept") as server:
        subprocess.run(command(tmp_path, server, "whole"), cwd=ROOT, check=True, capture_output=True)
        undisturbed, server.ledger.paid = server.ledger.paid, Counter()
        assert set(undisturbed.values()) == {1}
        generator = random.Random(2)
        output = tmp_path / "killed"
        answers = sorted(generator.sample(range(1, len(undisturbed) - 2 * CONCURRENCY), KILLS))
        for at in [0, *answers]:  # the first before anything is asked
            process = subprocess.Popen(
                command(tmp_path, server, "killed"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            while len(server.ledger.paid) < at:
                assert process.poll() is None, "it ended before it was killed"
                time.sleep(0.005)
            time.sleep(generator.uniform(0.0, 0.1) if at else 0.7)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        last = subprocess.run(
            command(tmp_path, server, "killed"), cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert last.returncode == 0, last.stderr
        paid = server.ledger.paid
    assert set(paid) == set(undisturbed)
    assert sum(paid.values()) - len(paid) <= CONCURRENCY * KILLS, "more was paid again than was in flight at the kills"
    assert files(output) == files(tmp_path / "whole")
    seeds = seeds_of(output)
    assert len({seed["id"] for seed in seeds}) == len(seeds)
    assert all(seed["rewritten"] == edited(texts[seed["id"]]) for seed in seeds)
    here, there = manifest_of(output), manifest_of(tmp_path / "whole")
    assert here["counts"] == there["counts"]
    assert here["annotation"]["served_by"] == there["annotation"]["served_by"]


@pytest.mark.timeout(120)
def test_a_signal_keeps_what_was_answered(tmp_path: Path) -> None:
    write(tmp_path / "in", 100)
    with FaultyServer(latency=0.1) as server:
        process = subprocess.Popen(
            command(tmp_path, server, "seeds"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while len(server.ledger.paid) < 10:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=60)
        assert process.returncode == 75, errors
        assert "run the same command again" in said
        some = Counter(server.ledger.paid)
        assert len(some) < 80
        done = subprocess.run(command(tmp_path, server, "seeds"), cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert set(server.ledger.paid.values()) == {1}
        assert len(server.ledger.paid) == 81  # and the question about schemas
