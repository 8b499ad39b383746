"""Bands sorted, verified and joined: seconds and memory for millions of synthetic signatures with planted clusters.

    python benchmarks/clustering.py [--documents 5 10 50] [--memory-bytes 4294967296] [--folder DIR]

A tenth of the documents lie in clusters of 2 to 6, strewn over all parts, so that a copy is nowhere near the other on
the disk. A member has each minimum of its cluster with the probability √0.9 and one of its own otherwise, so two members
are a pair of similarity 0.9, in their bands as in their sketches; the other documents share nothing. Two processes take the
bands, each with a quarter of the memory; the peaks are those of the processes themselves (VmHWM), file pages that are
mapped included. The signatures are written to --folder (about 250 bytes a document) and brought to the disk before the
clock starts; the folder is removed afterwards.
"""

from __future__ import annotations

import argparse
import os
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
SHARED = 0.9**0.5
"""Probability that a member has its cluster's minimum; two of them both do with 0.9."""
CLUSTERED = 10
STRIDE = 982_451_653
"""A prime larger than any number of members."""


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
    members = documents // CLUSTERED
    sizes = np.random.default_rng(1).integers(2, 7, members // 2)
    ends = np.cumsum(sizes)
    ends = np.append(ends[ends < members], members)
    paths = []
    for number, start in enumerate(range(0, documents, PART)):
        paths.append(folder / f"{number}.signatures")
        write_signatures(paths[-1], *signatures(number, np.arange(start, min(start + PART, documents)), members, ends))
    return paths, members - len(ends)


def signatures(seed: int, numbers: Any, members: int, ends: Any) -> tuple[Any, Any, Any, Any]:
    """Digests, bands, sketches and ranks of documents; every `CLUSTERED`th is a member of a cluster."""
    generator = np.random.default_rng(seed)
    count = len(numbers)
    digests = generator.integers(0, 256, (count, 16), dtype=np.uint8)
    keys = generator.integers(0, 1 << 64, (BANDS, count), dtype=np.uint64)
    sketches = generator.integers(0, 256, (count, BANDS * ROWS), dtype=np.uint8)
    inside = np.flatnonzero((numbers % CLUSTERED == 0) & (numbers // CLUSTERED < members))
    place = (numbers[inside] // CLUSTERED) * STRIDE % members  # neighbours on the disk are in clusters far apart
    cluster = np.searchsorted(ends, place, side="right").astype(np.uint64)
    shared = generator.random((len(inside), BANDS * ROWS)) < SHARED
    positions = np.arange(BANDS * ROWS, dtype=np.uint64)
    of_cluster = (scrambled(cluster[:, None] * np.uint64(BANDS * ROWS) + positions) & np.uint64(255)).astype(np.uint8)
    sketches[inside] = np.where(shared, of_cluster, sketches[inside])
    whole = shared.reshape(-1, BANDS, ROWS).all(axis=2)
    bands = scrambled((cluster[:, None] + np.uint64(1 << 40)) * np.uint64(BANDS) + np.arange(BANDS, dtype=np.uint64))
    keys[:, inside] = np.where(whole, bands, keys[:, inside].T).T
    return digests, keys, sketches, np.zeros(count, dtype=np.int64)


def scrambled(values: Any) -> Any:
    """Numbers that look random and depend on `values` alone (splitmix64)."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def peak() -> int:
    """The most memory this process had, in bytes; `ru_maxrss` would begin with that of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def one_band(task: tuple[list[Path], int, int, Path]) -> tuple[int, float, int]:
    """The pairs of a band, in a process of its own: its number, seconds, and its peak memory in bytes."""
    paths, band, memory_bytes, output = task
    start = time.perf_counter()
    verified_pairs([SignaturePart(path) for path in paths], band, THRESHOLD, memory_bytes, output)
    return os.getpid(), time.perf_counter() - start, peak()


def join(task: tuple[list[Path], int, int]) -> tuple[int, float, int]:
    """Components and keepers, in a process of their own: documents that leave, seconds, peak memory in bytes."""
    files, documents, memory_bytes = task
    components([], 1, memory_bytes)  # compiled code loaded
    choose_keepers(np.zeros(1, dtype=np.uint32), np.zeros(1, dtype=np.int64))
    start = time.perf_counter()
    roots = components(files, documents, memory_bytes)
    keepers = choose_keepers(roots, np.zeros(documents, dtype=np.int64))
    leave = int((keepers != np.arange(documents, dtype=np.uint32)).sum())
    return leave, time.perf_counter() - start, peak()


def measure(folder: Path, documents: int, memory_bytes: int) -> dict[str, Any]:
    """Seconds of the pairs and of the components, largest processes, and how many of the planted copies leave."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        paths, planted = pool.submit(make, folder, documents).result()
    os.sync()
    tasks = [(paths, band, memory_bytes // 4, folder / f"{band}.pairs") for band in range(BANDS)]
    (folder / "warm").mkdir()
    small = [folder / "warm" / "small"]
    write_signatures(small[0], *signatures(0, np.arange(3000), 300, np.arange(3, 301, 3)))
    with ProcessPoolExecutor(2, context) as pool:
        list(pool.map(one_band, [(small, 0, n, folder / "warm" / str(n)) for n in (1, 2, 1 << 28, 1 << 29)]))
        start = time.perf_counter()
        bands = list(pool.map(one_band, tasks))
        pairs_seconds = time.perf_counter() - start
    workers = {process: 0 for process, _, _ in bands}
    for process, _, memory in bands:
        workers[process] = max(workers[process], memory)
    with ProcessPoolExecutor(1, context) as pool:
        leave, join_seconds, join_peak = pool.submit(
            join, ([task[3] for task in tasks], documents, memory_bytes)
        ).result()
    return {
        "documents": f"{documents:,}", "seconds_pairs": round(pairs_seconds, 1), "seconds_components": round(join_seconds, 1),
        "seconds_a_million": round((pairs_seconds + join_seconds) / documents * 1e6, 2),
        "peak_of_both_band_processes_mb": round(sum(workers.values()) / 1e6),
        "peak_of_components_mb": round(join_peak / 1e6), "memory_setting_mb": round(memory_bytes / 1e6),
        "planted_copies_that_leave": f"{leave:,} of {planted:,}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
