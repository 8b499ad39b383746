"""The check of a dataset before a run: seconds and memory for 20 million documents and 100 GB, with planted faults.

    python benchmarks/startup_check.py [--documents 20] [--folder DIR]

The `.idx` is whole and real (lengths drawn around 1,250 ids). `.bin` has its full size and is a sparse file: the blocks that
the check samples are written (zeros), so that reading them goes to the disk; the rest takes no space. Faults are planted in
copies: `.bin` cut short by 4 bytes; one pointer in the last twentieth of `.idx` moved by 4 bytes; one boundary moved by one
document, which the manifest's checksum alone shows; ids past the vocabulary in one piece as long as the distance of the
sampled blocks, at a random place. Each check is a process of its own after the files were dropped from the page cache
(POSIX_FADV_DONTNEED); imports are not counted; the peak is the process's own (VmHWM). whole2 is whole by another
name (hard links), so of the two together each byte comes from the disk once. About 3 GB of disk.
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
from types import SimpleNamespace
from typing import Any

import numpy as np
from results import machine, save

from megatron_native.config.run import RunConfig
from megatron_native.data.dataset_files import DatasetFiles, IndexRegions
from megatron_native.data.indexed import BLOCK, HEADER_BYTES, SAMPLED_IDS, bin_path, idx_path
from megatron_native.data.startup_check import SAMPLED_BLOCKS, check_datasets
from megatron_native.errors import UserError
from megatron_native.manifest import build_manifest, file_entry, write_json

VOCABULARY = 128_256
MEAN_TOKENS = 1250


def main() -> None:
    """Make the datasets, check each, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=float, default=20, help="millions (20)")
    parser.add_argument("--folder", help="where the files lie meanwhile (the system's folder for temporary files)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        documents = int(arguments.documents * 1e6)
        tokens = make(folder / "whole", documents)
        distance = (tokens - SAMPLED_IDS) // (SAMPLED_BLOCKS - 1) + 1
        plant(folder, documents, tokens, distance)
        rows = []
        for name in ("whole", "cut", "pointer", "boundary", "ids"):
            rows.append(measure(folder, [name]))
            print(rows[-1], flush=True)
        rows.append(measure(folder, ["whole", "whole2"]))
        rows.append({**measure(folder, ["whole", "whole2"], again=True)})
    finally:
        shutil.rmtree(folder)
    save(
        "startup_check", f"Check of datasets at start: {documents:,} documents, {tokens * 4 / 1e9:.0f} GB of ids", rows,
        machine(), sampled=f"{SAMPLED_BLOCKS:,} blocks of {SAMPLED_IDS:,} ids; the planted piece of wrong ids has "
        f"{distance * 4 / 1e6:.1f} MB, the distance of two blocks. A shorter piece of b bytes is found with the probability "
        f"(b + {SAMPLED_IDS * 4}) / {distance * 4}",
    )  # fmt: skip


def make(prefix: Path, documents: int) -> int:
    """A whole dataset with its manifest; how many tokens it has."""
    generator, token = np.random.default_rng(1), 0
    with IndexRegions(idx_path(prefix), np.dtype("<i4"), documents, documents) as index:
        for first in range(0, documents, BLOCK):
            lengths = generator.integers(1, 2 * MEAN_TOKENS, min(BLOCK, documents - first), dtype=np.int32)
            token = index.write_sequences(first, lengths, token)
            index.write_ends(first, np.arange(first + 1, first + len(lengths) + 1))
    write_sparse(bin_path(prefix), token)
    counts: dict[str, Any] = {"read": documents, "kept": documents, "dropped": {}, "quarantined": {}}
    outputs = [
        {"path": bin_path(prefix).name, "bytes": token * 4, "xxh3_128": "0" * 32},  # not read by a sampled check
        file_entry(idx_path(prefix), prefix.parent),
    ]
    manifest = build_manifest("tokenize", {}, [], outputs, counts, dtype="int32", documents=documents, tokens=token)
    write_json(DatasetFiles(prefix).manifest_path, manifest)
    return token


def write_sparse(path: Path, tokens: int) -> None:
    """A file of zeros of which only the sampled blocks lie on the disk."""
    with open(path, "wb") as file:
        file.truncate(tokens * 4)
        for start in np.linspace(0, tokens - SAMPLED_IDS, num=SAMPLED_BLOCKS, dtype=np.int64).tolist():
            os.pwrite(file.fileno(), bytes(SAMPLED_IDS * 4), start * 4)
        os.fsync(file.fileno())


def plant(folder: Path, documents: int, tokens: int, distance: int) -> None:
    """The faulty copies, and a second whole one; what a fault does not touch is a hard link."""
    for name in ("cut", "pointer", "boundary", "ids", "whole2"):
        for path in (bin_path, idx_path, lambda prefix: DatasetFiles(prefix).manifest_path):
            os.link(path(folder / "whole"), path(folder / name))
    boundary = HEADER_BYTES + 12 * documents + 8 * (documents // 2)
    pointer = HEADER_BYTES + 4 * documents + 8 * (documents - documents // 21)
    for name, offset, change in (("pointer", pointer, 4), ("boundary", boundary, 1)):
        idx_path(folder / name).unlink()
        shutil.copyfile(idx_path(folder / "whole"), idx_path(folder / name))
        with open(idx_path(folder / name), "r+b") as file:
            value = int.from_bytes(os.pread(file.fileno(), 8, offset), "little")
            os.pwrite(file.fileno(), (value + change).to_bytes(8, "little"), offset)
            os.fsync(file.fileno())
    for name in ("cut", "ids"):
        bin_path(folder / name).unlink()
        write_sparse(bin_path(folder / name), tokens)
    os.truncate(bin_path(folder / "cut"), tokens * 4 - 4)
    place = int(np.random.default_rng(2).integers(0, tokens - distance))
    with open(bin_path(folder / "ids"), "r+b") as file:
        os.pwrite(file.fileno(), np.full(distance, VOCABULARY, dtype="<i4").tobytes(), place * 4)
        os.fsync(file.fileno())


def measure(folder: Path, names: list[str], again: bool = False) -> dict[str, Any]:
    """One check in a fresh process, of files that are not in the page cache."""
    os.sync()
    for name in names:
        for path in (bin_path(folder / name), idx_path(folder / name)):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(check, folder, names, again).result()


def check(folder: Path, names: list[str], again: bool) -> dict[str, Any]:
    """What the check finds and takes."""
    run = RunConfig.model_validate({
        "run_dir": folder / "run" / "-".join(names), "model": {"hf_config": folder},
        "training": {"steps": 1, "global_batch_size": 1},
        "data": {"blend": [{"prefix": folder / name} for name in names]},
    })  # fmt: skip
    model: Any = SimpleNamespace(vocab_size=VOCABULARY)  # all that the check asks of a model
    started, said = time.perf_counter(), "passes"
    try:
        check_datasets(run, model, lambda line: None, anew=not again)
    except UserError as error:
        said = str(error).replace(f"{folder}/", "").split(". ")[0]
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024
    dataset = " and ".join(names) + (", a second start" if again else "")
    return {"dataset": dataset, "seconds": round(seconds, 3 if again else 2), "peak_mb": round(peak / 1e6), "found": said}


if __name__ == "__main__":
    main()
