"""The middle of dedup: from the signatures of all parts to a verdict on every document, phase by phase.

`pairs` are found by tasks, one a band; `clusters` and `lines` by one task for all. What they find lies in arrays over all
documents, which the writing tasks map: whose copy a document is, how similar, how many copies the keeper has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_native.corpus.clusters import (
    PAIR,
    Sketches,
    choose_keepers,
    components,
    first_numbers,
    verified_pairs,
)
from megatron_native.corpus.document_ids import id_at
from megatron_native.corpus.folding import WordFolder, code_points
from megatron_native.corpus.minhash import MinHashSettings
from megatron_native.corpus.repeated_lines import line_keys, repeated_keys, site_of, without_lines
from megatron_native.corpus.signatures import SignaturePart
from megatron_native.corpus.stage import PROGRESS, StageRun
from megatron_native.documents.records import Document
from megatron_native.engine.tasks import OnRead
from megatron_native.manifest import write_json

_DIGESTS = -1
_FAR = 0.1
"""A document joined to its keeper by a chain of copies leaves if it is at most this far below the threshold itself."""
_ROUNDS = 4
_STAYS, _EXACT, _NEAR, _EMPTY = range(4)
_REASONS = {_EXACT: "exact copy", _NEAR: "near copy", _EMPTY: "empty"}


class Clustering:
    """The phases between signing and writing, for one run of the dedup stage."""

    def __init__(self, run: StageRun, settings: MinHashSettings, parts: int, memory_bytes: int) -> None:
        self._run, self._settings, self._memory = run, settings, memory_bytes
        self._part_names = [f"part-{number:05d}" for number in range(parts)]
        self.signatures = run.output / PROGRESS / "signature_files"
        self.signatures.mkdir(exist_ok=True)
        self._pairs = run.output / PROGRESS / "pair_files"
        self._pairs.mkdir(exist_ok=True)
        self._clusters = run.output / PROGRESS / "clusters"

    def find(self, documents: Sequence[int], repeated_lines: int) -> None:
        """Do the phases pairs, clusters and lines."""
        columns = [_DIGESTS, *range(self._settings.bands)]
        task = partial(
            _find_pairs, signatures=self.signatures, names=self._part_names, folder=self._pairs,
            threshold=self._settings.threshold, memory_bytes=self._memory,
        )  # fmt: skip
        self._run.do("pairs", columns, task, unit="bands")
        with self._run.alone("clusters") as folder:
            if not (folder / "done.json").exists():
                self._decide(folder, int(sum(documents)), repeated_lines)

    def _parts(self) -> list[SignaturePart]:
        return [SignaturePart(self.signatures / f"{name}.signatures") for name in self._part_names]

    def _decide(self, folder: Path, documents: int, repeated_lines: int) -> None:
        parts = self._parts()
        files = [_pair_file(self._pairs, column) for column in (_DIGESTS, *range(self._settings.bands))]
        ranks = np.concatenate([part.ranks() for part in parts]) if parts else np.empty(0, dtype=np.int64)
        empty = np.concatenate([part.empty() for part in parts]) if parts else np.empty(0, dtype=bool)
        exact = components(files[:1], documents, self._memory)
        keepers, similarity = _keepers(parts, files, exact, ranks, self._settings.threshold, self._memory)
        verdicts = np.full(documents, _STAYS, dtype=np.uint8)
        leaving = keepers != np.arange(documents, dtype=np.uint32)
        verdicts[leaving] = _NEAR
        verdicts[leaving & (exact[keepers] == exact)] = _EXACT
        verdicts[empty] = _EMPTY
        copies = np.bincount(keepers[leaving & ~empty], minlength=documents).astype(np.uint32)
        sizes = copies[copies > 0] + 1
        for name, array in (
            ("keepers", keepers),
            ("similarity", similarity),
            ("verdicts", verdicts),
            ("copies", copies),
        ):
            np.save(folder / f"{name}.npy", array)
        np.save(folder / "firsts.npy", first_numbers(parts))
        repeated = np.empty(0, dtype=np.uint64)
        if repeated_lines:
            firsts = first_numbers(parts)
            lines = [self.signatures / f"{name}.lines" for name in self._part_names]
            repeated = repeated_keys(
                lines, lambda place: verdicts[firsts[place] : firsts[place + 1]] == _STAYS, repeated_lines, self._memory
            )
        np.save(folder / "repeated.npy", repeated)
        write_json(folder / "done.json", {
            "clusters": len(sizes), "largest": int(sizes.max()) if len(sizes) else 0,
            "sizes": {str(size): int(count) for size, count in zip(*np.unique(sizes, return_counts=True))},
            "repeated_lines": len(repeated),
        })  # fmt: skip

    def places(self) -> Places:
        """Where the writing tasks find the verdicts."""
        return Places(self._clusters, self.signatures)

    def summary(self) -> dict[str, Any]:
        """How the clusters are, for the manifest."""
        import json

        summary: dict[str, Any] = json.loads((self._clusters / "done.json").read_text(encoding="utf-8"))
        return summary


def _keepers(
    parts: Sequence[SignaturePart],
    files: Sequence[Path],
    exact: NDArray[np.uint32],
    ranks: NDArray[np.int64],
    threshold: float,
    memory_bytes: int,
) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Of every document the one that stays for it, and how similar the two are.

    A document that only a chain of copies joins to its keeper, and that is too far from it, forms clusters anew with the
    others of its kind; after a few rounds what is left of them stays.
    """
    documents = len(ranks)
    keepers = np.arange(documents, dtype=np.uint32)
    similarity = np.ones(documents, dtype=np.float32)
    sketches = Sketches(parts)
    left = None
    for _ in range(_ROUNDS):
        roots = components(files, documents, memory_bytes, left)
        chosen = choose_keepers(roots, ranks)
        moved = np.flatnonzero((chosen != np.arange(documents, dtype=np.uint32)) & (True if left is None else left))
        pairs = np.empty(len(moved), dtype=PAIR)
        pairs["one"], pairs["other"] = chosen[moved], moved
        order = np.argsort(pairs["one"], kind="stable")
        estimates = np.empty(len(moved), dtype=np.float32)
        estimates[order] = sketches.similarities(pairs[order])
        same = exact[chosen[moved]] == exact[moved]
        near = same | (estimates >= threshold - _FAR)
        keepers[moved[near]] = chosen[moved[near]]
        similarity[moved[near]] = np.where(same[near], 1.0, estimates[near])
        left = np.zeros(documents, dtype=bool)
        left[moved[~near]] = True
        if not left.any():
            break
    return keepers, similarity


def _pair_file(folder: Path, column: int) -> Path:
    return folder / ("digests.pairs" if column == _DIGESTS else f"band-{column:03d}.pairs")


def _find_pairs(
    column: int,
    on_read: OnRead,
    signatures: Path,
    names: Sequence[str],
    folder: Path,
    threshold: float,
    memory_bytes: int,
) -> dict[str, Any]:
    parts = [SignaturePart(signatures / f"{name}.signatures") for name in names]
    return {"pairs": verified_pairs(parts, column, threshold, memory_bytes, _pair_file(folder, column))}


class Verdict(NamedTuple):
    """What becomes of a document: `reason` None when it stays, with `copies` that leave for it."""

    reason: str | None
    kept_id: str
    similarity: float
    copies: int


@dataclass
class Verdicts:
    """The verdicts on one part's documents."""

    codes: NDArray[np.uint8]
    keepers: NDArray[np.uint32]
    similarity: NDArray[np.float32]
    copies: NDArray[np.uint32]
    places: Places

    def of(self, number: int) -> Verdict:
        """The verdict on the part's document `number`."""
        code = int(self.codes[number])
        if code == _STAYS:
            return Verdict(None, "", 1.0, int(self.copies[number]))
        if code == _EMPTY:
            return Verdict(_REASONS[code], "", 0.0, 0)
        kept = self.places.id_of(int(self.keepers[number]))
        return Verdict(_REASONS[code], kept, round(float(self.similarity[number]), 4), 0)


class Places:
    """Where verdicts, ids and repeated lines lie; picklable, opened where it is used."""

    def __init__(self, clusters: Path, signatures: Path) -> None:
        self._clusters, self._signatures = clusters, signatures
        self._repeated: NDArray[np.uint64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_clusters": self._clusters, "_signatures": self._signatures, "_repeated": None}

    def verdicts(self, part: int) -> Verdicts:
        """The verdicts on the documents of a part."""
        firsts = np.load(self._clusters / "firsts.npy")
        here = slice(int(firsts[part]), int(firsts[part + 1]))

        def column(name: str) -> NDArray[Any]:
            return np.array(np.load(self._clusters / f"{name}.npy", mmap_mode="r")[here])

        return Verdicts(column("verdicts"), column("keepers"), column("similarity"), column("copies"), self)

    def id_of(self, number: int) -> str:
        """The id of a document by its number over all parts."""
        firsts = np.load(self._clusters / "firsts.npy")
        part = int(np.searchsorted(firsts, number, side="right")) - 1
        return id_at(self._signatures / f"part-{part:05d}.ids", number - int(firsts[part]))

    def without_repeated_lines(self, document: Document, folder: str, words: WordFolder) -> tuple[str, int]:
        """The document's text without the lines its site repeats, and how many these are; scripture stays."""
        if self._repeated is None:
            self._repeated = np.load(self._clusters / "repeated.npy")
        if not len(self._repeated):
            return document.text, 0
        codes = code_points(document.text)
        keys, starts, stops = line_keys(codes, words.words_of_codes(codes), site_of(document.metadata, folder))
        places = np.searchsorted(self._repeated, keys)
        places[places == len(self._repeated)] = 0
        found = self._repeated[places] == keys
        if not found.any():
            return document.text, 0
        from megatron_native.corpus.scripture import ScriptureFinder

        spans = ScriptureFinder().spans(codes)
        taken = [
            (int(start), int(stop)) for start, stop in zip(starts[found], stops[found])
            if not any(begin < stop and start < end for begin, end in spans)
        ]  # fmt: skip
        if not taken:
            return document.text, 0
        return without_lines(document.text, *map(list, zip(*taken))), len(taken)
