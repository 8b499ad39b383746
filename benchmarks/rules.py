"""The rules of the conduct on real news: MB/s of `apply` alone and of reading, applying and writing, and peak memory.

    python benchmarks/rules.py [--data FOLDER] [--megabytes 1000]

The news is repeated to the size asked for, every copy with small changes (numbers, and every fiftieth word), written as zstd
JSONL in a temporary folder, read with the project's reader, put through all rules and written with its writer, in one process.
Rates are MB of UTF-8 text a second of processor time on one core; compiled code is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from results import machine, save


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data) / "saudinewsnet", help="folder of the news archives")
    parser.add_argument("--megabytes", type=int, default=1000, help="MB of text to make (1000)")
    parser.add_argument("--look-megabytes", type=int, default=50, help="MB of passages for the first look (50)")
    parser.add_argument("--worker", nargs=3, metavar=("WHAT", "INPUT", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(*arguments.worker, arguments.look_megabytes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "news.jsonl.zst"
        make(path, arguments.data, arguments.megabytes)
        rows = []
        for what in ("apply alone", "read, apply and write", "first look, signs alone"):
            # A process each, so that the peak of memory is its own.
            command = [sys.executable, __file__, "--look-megabytes", str(arguments.look_megabytes)]
            done = subprocess.run(
                [*command, "--worker", what, str(path), str(Path(folder) / "out.jsonl.zst")],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            rows.append(json.loads(done.stdout))
    edits = rows[1].pop("edits")
    rows[0].pop("edits")
    shown = ", ".join(f"{name} {count:,}" for name, count in edits.items())
    save("rules", f"rules and first look: {rows[1]['mb']:,} MB of news", rows, machine(), Edits=shown)


def make(path: Path, data: Path, megabytes: int) -> None:
    """Write so much news, copies differing a little."""
    from megatron_native.documents.writers import ShardWriter

    archives = [zipfile.ZipFile(each) for each in sorted(data.glob("*.zip"))]
    texts = [article["content"] for archive in archives for article in json.loads(archive.read(archive.namelist()[0]))]
    chance = random.Random(7)
    words = texts[0].split()
    size, number = 0, 0
    with ShardWriter(path) as writer:
        while size < megabytes * 1_000_000:
            text = texts[number % len(texts)]
            if number >= len(texts):
                text = re.sub(r"\d+", lambda found: str(int(found[0]) + chance.randrange(9)), text)
                parts = text.split(" ")
                for place in range(chance.randrange(50), len(parts), 50):
                    parts[place] = chance.choice(words)
                text = " ".join(parts)
            writer.write({"id": str(number), "text": text, "metadata": {}})
            size += len(text.encode())
            number += 1


def work(what: str, source: str, target: str, look_megabytes: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    from megatron_native.alignment.first_look import FirstLook
    from megatron_native.alignment.passages import split
    from megatron_native.alignment.rules import build_rules
    from megatron_native.documents.readers import read_documents
    from megatron_native.documents.writers import ShardWriter

    rules, look = build_rules(), FirstLook()
    warm = rules.apply("أكد الوزير ,  أن <b>العمل</b> سيبدأ غدا . اضغط هنا")
    look.look(warm.text, warm.edits)
    edits: Counter[str] = Counter()
    size = 0

    def documents() -> Iterator[Any]:
        yield from read_documents(Path(source))

    wall = time.perf_counter()
    seconds = 0.0
    more: dict[str, Any] = {}
    if what == "read, apply and write":
        start = time.process_time()
        with ShardWriter(Path(target)) as writer:
            for document in documents():
                result = rules.apply(document.text)
                edits.update(result.edits)
                size += len(document.text.encode())
                writer.write({"text": result.text, "id": document.id, "metadata": document.metadata})
        seconds = time.process_time() - start
    elif what == "apply alone":
        for document in documents():
            start = time.process_time()
            result = rules.apply(document.text)
            seconds += time.process_time() - start
            edits.update(result.edits)
            size += len(document.text.encode())
    else:
        passages = clean = 0
        for document in documents():
            for passage in split(document.text, 256):
                text, done = rules.apply(passage.text)
                start = time.process_time()
                found = look.look(text, done)
                seconds += time.process_time() - start
                size += len(text.encode())
                passages, clean = passages + 1, clean + found.clean
            if size > look_megabytes * 1_000_000:
                break
        more = {"clean_passages": f"{clean / passages:.1%} of {passages:,}"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {
        "name": what, "mb": round(size / 1e6), "cpu_seconds": round(seconds, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1), "mb_per_s": round(size / 1e6 / seconds, 1),
        "peak_mib": round(peak), **more,
    }  # fmt: skip
    return row if more else {**row, "edits": dict(edits)}


if __name__ == "__main__":
    main()
