"""Make megatron_native/corpus/verses.npy: hashes of the Qur'an's verses, by which a text's quotations are recognised.

    python docs/make_verses.py

The text is that of the package `quran-text` (CC-BY-4.0), which the result keeps no letter of. A test compares the
committed file with this script's output.
"""

from __future__ import annotations

import itertools
import json
import sys
from importlib import resources
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone that is not installed

import numpy as np
from numpy.typing import NDArray

from megatron_native.corpus.folding import code_points
from megatron_native.corpus.scripture import HASH_BYTES, LEAST_VERSE, RUN, VERSES, WordSplitter, hash_of_run

MOST_SPELLINGS = 64
"""Of one run; only runs of many words that are spelled in two ways have more."""


def packed() -> NDArray[np.uint8]:
    """Sorted hashes of all runs, uint8 [runs, HASH_BYTES], the lowest byte first."""
    raw = json.loads(resources.files("quran_text_data").joinpath("hafs.json").read_bytes())
    splitter = WordSplitter()
    spelled = [
        sorted({tuple(splitter.split(code_points(word))[0].hashes.tolist()) for word in spellings if word})
        for spellings in zip(raw["words"], raw["rasm_imlai"])
    ]
    runs: set[tuple[int, ...]] = set()
    for start, stop in itertools.pairwise([*raw["surah_starts"], len(spelled)]):
        for place in range(start, stop):
            add_runs(runs, spelled[place : min(stop, place + RUN)])
    for start, stop in itertools.pairwise([*raw["ayah_starts"], len(spelled)]):
        if stop - start <= RUN:
            runs |= {run for run in spellings_of(spelled[start:stop]) if LEAST_VERSE <= len(run) <= RUN}
    hashes = np.array(sorted({int(hash_of_run(np.array(run, dtype=np.uint64))) for run in runs}), dtype="<u8")
    return hashes.view(np.uint8).reshape(-1, 8)[:, :HASH_BYTES]


def add_runs(runs: set[tuple[int, ...]], words: list[list[tuple[int, ...]]]) -> None:
    """Add the runs of `RUN` words that begin with the first one, whatever its spelling makes of the words after it."""
    runs.update(run[:RUN] for run in spellings_of(words) if len(run) >= RUN)


def spellings_of(words: list[list[tuple[int, ...]]]) -> list[tuple[int, ...]]:
    """The words in all their spellings, as hashes; a word of the print can be two in the modern spelling."""
    choices = itertools.islice(itertools.product(*words), MOST_SPELLINGS)
    return [tuple(itertools.chain.from_iterable(choice)) for choice in choices]


if __name__ == "__main__":
    np.save(VERSES, packed())
