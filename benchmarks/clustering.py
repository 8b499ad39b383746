"""Bands sorted, verified and joined: seconds and memory for millions of synthetic signatures with planted clusters.

    python benchmarks/clustering.py [--documents 5 10 50] [--memory-bytes 4294967296] [--folder DIR]

A tenth of the documents lie in clusters of 2 to 6 that share each band with the probability of a pair of similarity 0.9;
the others share none. Two processes take the bands; the memory shown is the largest process's. The signatures are
written to --folder (about 250 bytes a document), which is removed afterwards.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from results import machine, save

from megatron_native.corpus.clusters import choose_keepers, components, verified_pairs
from megatron_native.corpus.signatures import SignaturePart, write_signatures

BANDS, ROWS, THRESHOLD = 14, 8, 0.8
PART = 1_000_000
SHARED = 0.9**ROWS


def main() -> None:
    """Measure every size, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=float, nargs="+", default=[5, 10, 50], help="millions (5 10 50)")
    parser.add_argument("--memory-bytes", type=int, default=4 << 30, help="for all processes together (4 GiB)")
    parser.add_argument("--folder", help="where the signatures lie meanwhile (the system's folder for temporary files)")
    arguments = parser.parse_args()
    rows = []
    for millions in arguments.documents:
        folder = Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            rows.append(measure(folder, int(millions * 1e6), arguments.memory_bytes))
            print(rows[-1], flush=True)
        finally:
            shutil.rmtree(folder)
    save("clustering", "LSH and components over synthetic signatures, 14 bands of 8 rows", rows, machine())


def make(folder: Path, documents: int) -> tuple[list[Path], int]:
    """Signature files of `PART` documents each; and how many documents should leave."""
    paths, leave = [], 0
    for number, start in enumerate(range(0, documents, PART)):
        generator = np.random.default_rng(number)
        count = min(PART, documents - start)
        cluster_of = np.arange(count)
        position = 0
        while position < count // 10:  # clusters lie together; sorting by random keys takes no profit from it
            size = int(generator.integers(2, 7))
            cluster_of[position : position + size] = position
            position += size
        leave += int(count - len(np.unique(cluster_of)))
        keys = generator.integers(0, 1 << 63, (BANDS, count), dtype=np.uint64) * np.uint64(2)
        own = generator.random((BANDS, count), dtype=np.float32) >= SHARED
        keys = np.where(own, keys + np.uint64(1), keys[:, cluster_of])
        sketches = generator.integers(0, 256, (count, BANDS * ROWS), dtype=np.uint8)
        inside = cluster_of != np.arange(count)
        sketches[inside] = sketches[cluster_of[inside]]
        digests = generator.integers(0, 256, (count, 16), dtype=np.uint8)
        paths.append(folder / f"{number}.signatures")
        write_signatures(paths[-1], digests, keys, sketches, np.zeros(count, dtype=np.int64))
    return paths, leave


def one_band(task: tuple[list[Path], int, int, Path]) -> int:
    """The pairs of a band, in a process of its own; its peak memory in bytes."""
    paths, band, memory_bytes, output = task
    verified_pairs([SignaturePart(path) for path in paths], band, THRESHOLD, memory_bytes, output)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(folder: Path, documents: int, memory_bytes: int) -> dict[str, Any]:
    """Seconds of the pairs and of the components, largest process, and how many of the planted copies leave."""
    paths, planted = make(folder, documents)
    tasks = [(paths, band, memory_bytes // 4, folder / f"{band}.pairs") for band in range(BANDS)]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(
            pool.map(one_band, [(paths[:1], 0, 1 << 28, folder / f"warm{n}.pairs") for n in range(2)])
        )  # compiled code loaded
        start = time.perf_counter()
        peak = max(pool.map(one_band, tasks))
        pairs_seconds = time.perf_counter() - start
    start = time.perf_counter()
    roots = components([task[3] for task in tasks], documents, memory_bytes)
    keepers = choose_keepers(roots, np.zeros(documents, dtype=np.int64))
    components_seconds = time.perf_counter() - start
    leave = int((keepers != np.arange(documents, dtype=np.uint32)).sum())
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "documents": f"{documents:,}", "seconds_pairs": round(pairs_seconds, 1),
        "seconds_components": round(components_seconds, 1),
        "seconds_a_million": round((pairs_seconds + components_seconds) / documents * 1e6, 2),
        "peak_of_a_band_task_mb": round(peak / 1e6), "main_process_mb": round(own / 1e6),
        "planted_copies_found": f"{leave:,} of {planted:,}", "memory_setting_mb": round(memory_bytes / 1e6),
    }  # fmt: skip


if __name__ == "__main__":
    main()
