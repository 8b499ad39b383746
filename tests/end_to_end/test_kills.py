"""Killed at random moments and run again, every stage of the corpus gives the bytes of a run that nothing disturbed.

`make test-faults` kills each stage 20 times (MEGATRON_NATIVE_KILLS) and keeps what it did in benchmarks/results/faults.md.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.corpus.corpus_files import arabic_text, write_jsonl
from tests.data.small_tokenizers import write_llama3

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("MEGATRON_NATIVE_KILLS", "3"))
RESULT = os.environ.get("MEGATRON_NATIVE_FAULTS_RESULT")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    (folder / "dump").mkdir()
    for number in range(4):
        with open(folder / "dump" / f"{number}.jsonl", "w", encoding="utf-8") as file:
            for seed in range(700):
                text = arabic_text(seed % 600 + 600 * number, 150)
                file.write(json.dumps({"id": f"{number}-{seed}", "text": text}, ensure_ascii=False) + "\n")
            file.write('{"title": "no text"}\n')
    write_llama3(folder / "tokenizer")
    earlier = [{"id": f"earlier-{seed}", "text": arabic_text(seed, 150)} for seed in range(0, 2400, 7)]
    write_jsonl(folder / "earlier.jsonl", earlier)
    words = ["--input", str(folder / "earlier.jsonl"), "--output", str(folder / "earlier"), "--keep-signatures"]
    assert run([sys.executable, "-m", "megatron_native", "dedup", *words]).returncode == 0
    return folder


def command(stage, folder, output):
    common = ["--input", str(folder / "dump"), "--workers", "2", "--part-bytes", "200000"]
    own = {
        "clean": ["--preset", "none", "--output", str(output / "out")],
        "dedup": ["--output", str(output / "out")],
        "dedup against": ["--output", str(output / "out"), "--against", str(folder / "earlier"), "--keep-signatures"],
        "tokenize": [
            "--output-prefix",
            str(output / "out"),
            "--tokenizer-model",
            str(folder / "tokenizer"),
            "--append-eod",
        ],
    }[stage]
    return [sys.executable, "-m", "megatron_native", stage.split()[0], *common, *own]


def run(words):
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith("manifest.json")
    }  # fmt: skip


def finished(output, stage):
    return (output / ("out_text_document.manifest.json" if stage == "tokenize" else "out/manifest.json")).exists()


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("stage", ["clean", "dedup", "dedup against", "tokenize"])
def test_killed_and_run_again_gives_the_same_bytes(stage, inputs, tmp_path):
    generator, whole, killed = random.Random(stage), tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    begin = time.monotonic()
    done = run(command(stage, inputs, whole))
    assert done.returncode == 0, done.stderr
    seconds = usual = time.monotonic() - begin
    kills, rounds, moments = 0, 0, []
    while kills < KILLS:
        rounds += 1
        assert rounds < 20 * KILLS, "the stage is always done before it is killed"
        anew = not any(killed.iterdir())
        process = subprocess.Popen(
            command(stage, inputs, killed),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        moment, started = generator.uniform(0.2, 1.0) * usual, time.monotonic()
        try:
            process.wait(moment)
            if anew:
                usual = min(usual, time.monotonic() - started)  # the machine may be quicker by now
        except subprocess.TimeoutExpired:
            if kills % 2:  # now the main process alone, now everything at once
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
            if not finished(killed, stage):
                kills += 1
                moments.append(round(moment, 2))
        if finished(killed, stage):  # the kill came too late: begin anew, so that there is something left to kill
            if process.returncode:  # in the middle of tidying up, perhaps
                assert run(command(stage, inputs, killed)).returncode == 0
            assert files(killed) == files(whole)
            shutil.rmtree(killed)
            killed.mkdir()
    time.sleep(0.5)
    done = run(command(stage, inputs, killed))
    assert done.returncode == 0, done.stderr
    assert files(killed) == files(whole)
    assert not list(killed.rglob("*.partial"))
    if RESULT:
        with open(RESULT, "a", encoding="utf-8") as file:
            file.write(
                f"| {stage} | {kills} | {rounds} | {seconds:.1f} | {', '.join(map(str, moments))} | identical |\n"
            )
