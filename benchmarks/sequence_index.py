"""Building the sequence index of a hundred million documents: seconds, and the peak memory of the process that builds.

    python benchmarks/sequence_index.py [--documents 100000000] [--folder DIR]

An `.idx` of documents of real lengths (log-normal, 500 tokens in the middle) is made beside a sparse `.bin` that takes no
space. A process of its own then opens the dataset, builds the first epoch of its sequence index into the cache and reads a
thousand random samples; another opens what was built. Targets: under 60 s and 2 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import machine, save
from megatron_native.data.indexed import HEADER_BYTES, MAGIC

CHUNK = 1 << 22


def make_dataset(prefix: Path, documents: int) -> int:
    """A dataset whose `.idx` is real and whose `.bin` is a hole; its tokens."""
    import struct

    generator = np.random.default_rng(7)
    lengths = prefix.with_suffix(".lengths")
    total = 0
    with open(lengths, "wb") as file:
        for first in range(0, documents, CHUNK):
            count = min(CHUNK, documents - first)
            some = np.clip(generator.lognormal(np.log(500), 1.0, count), 10, 200_000).astype("<i4")
            total += int(some.sum(dtype=np.int64))
            file.write(some.tobytes())
    with open(f"{prefix}.idx", "wb") as out:
        out.write(MAGIC + struct.pack("<QBQQ", 1, 4, documents, documents + 1))
        assert out.tell() == HEADER_BYTES
        with open(lengths, "rb") as file:
            while chunk := file.read(4 * CHUNK):
                out.write(chunk)
        pointer = 0
        with open(lengths, "rb") as file:
            while chunk := file.read(4 * CHUNK):
                sizes = np.frombuffer(chunk, "<i4").astype(np.int64) * 4
                ends = np.cumsum(sizes) + pointer
                out.write((ends - sizes).astype("<i8").tobytes())
                pointer = int(ends[-1])
        for first in range(0, documents + 1, CHUNK):
            out.write(np.arange(first, min(first + CHUNK, documents + 1), dtype="<i8").tobytes())
    lengths.unlink()
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(total * 4)
    return total


MEASURED = """
import sys, time, json
import numpy as np
from megatron_native.data.index_cache import IndexCache
from megatron_native.data.indexed import IndexedTokens
from megatron_native.data.sequence_index import SequenceIndex
prefix, cache, packing = sys.argv[1:]
import threading
highest = [0]
def watch():
    while True:
        highest[0] = max(highest[0], int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]))
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
began, spent = time.monotonic(), time.process_time()
index = SequenceIndex(IndexedTokens(prefix), 8192, 1234, "web", packing, cache=IndexCache(__import__("pathlib").Path(cache)))
index.spans(0)
count = index.sequences_in(0)
built, worked = time.monotonic() - began, time.process_time() - spent
began = time.monotonic()
for n in np.random.default_rng(0).integers(0, count, 1000):
    index.sample(int(n))
read = (time.monotonic() - began) / 1000
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0]) / 1e6
anonymous = highest[0] / 1e6
print(json.dumps({"built": built, "cpu": worked, "sequences": count, "ms": read * 1e3, "peak": peak, "anonymous": anonymous}))
"""


def measured(prefix: Path, cache: Path, packing: str) -> dict[str, float]:
    """What a fresh process needs."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(prefix), str(cache), packing], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="where 2.4 GB of index and 2 GB of cache fit")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        prefix, cache = Path(folder) / "web", Path(folder) / "cache"
        began = time.monotonic()
        tokens = make_dataset(prefix, arguments.documents)
        print(f"made {arguments.documents:,} documents, {tokens:,} tokens in {time.monotonic() - began:.0f} s", flush=True)
        for packing in ("concatenate", "best_fit"):
            for attempt in ("built", "opened again"):
                found = measured(prefix, cache, packing)
                rows.append({
                    "packing": packing, "index": attempt, "seconds": round(found["built"], 1),
                    "processor_seconds": round(found["cpu"], 1), "peak_GB": round(found["peak"], 2),
                    "without_file_pages_GB": round(found["anonymous"], 2), "ms_a_sample": round(found["ms"], 2),
                    "sequences": int(found["sequences"]),
                })  # fmt: skip
                print(packing, attempt, found, flush=True)
    save(
        "sequence_index", f"Sequence index of {arguments.documents:,} documents, {tokens:,} tokens, sequences of 8,192", rows,
        machine(), targets="under 60 s and 2 GB to build",
        command="python benchmarks/sequence_index.py",
    )  # fmt: skip


if __name__ == "__main__":
    main()
