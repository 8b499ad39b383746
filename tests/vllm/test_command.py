"""`rewrite --engine vllm` as a user runs it: killed once, run again, nothing lost and nothing twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from megatron_native.alignment.backends.worker import Worker
from megatron_native.alignment.rewriting.export import decisions_of
from tests.alignment.rewriting.jobs import rewritten_texts, write_documents
from tests.alignment.rewriting.workers import write_conduct

ROOT = Path(__file__).resolve().parents[2]


def command(folder: Path, output: Path, worker: Path) -> list[str]:
    return [
        sys.executable, "-m", "megatron_native", "rewrite", "--input", str(folder / "in"), "--output", str(output),
        "--engine", "vllm", "--worker", str(worker), "--conduct", str(write_conduct(folder / "short.yaml")),
        "--language", "en", "--no-first-look", "--passage-tokens", "64", "--context-tokens", "0", "--answer-ratio", "1",
        "--chunk-passages", "4", "--workers", "1",
        "--option", "max_model_len=2048", "max_num_seqs=4", "compile=false", "dtype=bfloat16",
    ]  # fmt: skip


def outcomes(output: Path) -> dict[str, str]:
    return {one["id"]: one["rewritten"] or one.get("answer") or "" for one in decisions_of(output)}


@pytest.mark.timeout(900)
def test_killed_and_run_again_no_passage_is_lost_or_twice(tmp_path: Path, worker: Worker) -> None:
    texts = write_documents(tmp_path / "in" / "a.jsonl", 3)
    whole = subprocess.run(
        command(tmp_path, tmp_path / "whole", worker.folder), cwd=ROOT, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    words = command(tmp_path, tmp_path / "killed", worker.folder)
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    answers = tmp_path / "killed" / "_progress" / "answers"
    while not list(answers.glob("*/*.jsonl")):
        assert process.poll() is None, "ended before it was killed"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids = Counter(one["id"] for one in decisions_of(tmp_path / "killed"))
    assert ids == Counter(one["id"] for one in decisions_of(tmp_path / "whole"))
    assert set(ids.values()) == {1}
    assert rewritten_texts(tmp_path / "killed").keys() == rewritten_texts(tmp_path / "whole").keys()
    assert len(texts) == len(rewritten_texts(tmp_path / "killed"))
    one, other = outcomes(tmp_path / "whole"), outcomes(tmp_path / "killed")
    differing = sum(one[key] != other[key] for key in one)
    print(f"answers that differ after a kill, in BF16: {differing} of {len(one)}")
    manifest = json.loads((tmp_path / "killed" / "manifest.json").read_text(encoding="utf-8"))
    (engine,) = manifest["rewriting"]["engines"]
    assert engine["backend"] == "vllm"
    assert manifest["rewriting"]["accelerator_hours"] > 0
