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
from megatron_native.corpus.earlier_corpora import EarlierCorpus, manifest_entries, parts_of, store_signatures
from megatron_native.corpus.earlier_forms import EarlierForms
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
_EQUAL = 2.0
_STORED_RANK = np.iinfo(np.int64).max
_STAYS, _EXACT, _NEAR, _EMPTY, _EXACT_EARLIER, _NEAR_EARLIER = range(6)
_REASONS = {
    _EXACT: "exact copy", _NEAR: "near copy", _EMPTY: "empty", _EXACT_EARLIER: "exact copy of an earlier corpus",
    _NEAR_EARLIER: "near copy of an earlier corpus",
}  # fmt: skip


class Clustering:
    """The phases between signing and writing, for one run of the dedup stage."""

    def __init__(
        self,
        run: StageRun,
        settings: MinHashSettings,
        parts: int,
        memory_bytes: int,
        earlier: Sequence[EarlierCorpus] = (),
    ) -> None:
        self._run, self._settings, self._memory, self._earlier = run, settings, memory_bytes, list(earlier)
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
            threshold=self._settings.threshold, memory_bytes=self._memory, earlier=self._earlier,
        )  # fmt: skip
        self._run.do("pairs", columns, task, unit="bands")
        with self._run.alone("clusters") as folder:
            if not (folder / "done.json").exists():
                self._decide(folder, repeated_lines)

    def _decide(self, folder: Path, repeated_lines: int) -> None:
        parts, stored = parts_of(self._earlier, self.signatures, self._part_names)
        firsts = first_numbers(parts)
        documents = int(firsts[-1])
        files = [_pair_file(self._pairs, column) for column in (_DIGESTS, *range(self._settings.bands))]
        ranks, empty = np.full(documents, _STORED_RANK, dtype=np.int64), np.zeros(documents, dtype=bool)
        for part, first, end in zip(parts, firsts[:-1], firsts[1:]):
            if first >= stored:
                ranks[first:end], empty[first:end] = part.ranks(), part.empty()
        forms = EarlierForms(parts, self._ids(), stored) if stored else None
        if forms is not None:
            forms.lower_ranks(files, ranks, self._memory)
        exact = components(files[:1], documents, self._memory)
        keepers, originals, similarity = _keepers(
            parts, files, exact, ranks, self._settings.threshold, self._memory, forms
        )
        verdicts = np.full(documents, _STAYS, dtype=np.uint8)
        leaving = keepers != np.arange(documents, dtype=np.uint32)
        same = exact[originals] == exact
        verdicts[leaving] = np.where(same[leaving], _EXACT, _NEAR)
        of_earlier = leaving & (originals < stored)
        verdicts[of_earlier] = np.where(same[of_earlier], _EXACT_EARLIER, _NEAR_EARLIER)
        verdicts[empty] = _EMPTY
        copies = np.bincount(keepers[leaving & ~empty], minlength=documents).astype(np.uint32)
        sizes = copies[copies > 0] + 1
        for name, array in (
            ("keepers", keepers),
            ("originals", originals),
            ("similarity", similarity),
            ("verdicts", verdicts),
            ("copies", copies),
        ):
            np.save(folder / f"{name}.npy", array)
        np.save(folder / "firsts.npy", firsts)
        repeated = np.empty(0, dtype=np.uint64)
        if repeated_lines:
            own = firsts[len(parts) - len(self._part_names) :]
            lines = [self.signatures / f"{name}.lines" for name in self._part_names]
            repeated = repeated_keys(
                lines, lambda place: verdicts[own[place] : own[place + 1]] == _STAYS, repeated_lines, self._memory
            )
        np.save(folder / "repeated.npy", repeated)
        write_json(folder / "done.json", {
            "clusters": len(sizes), "largest": int(sizes.max()) if len(sizes) else 0,
            "sizes": {str(size): int(count) for size, count in zip(*np.unique(sizes, return_counts=True))},
            "repeated_lines": len(repeated), **({} if forms is None else {"in_a_new_form": forms.documents}),
        })  # fmt: skip

    def _ids(self) -> list[Path]:
        own = [self.signatures / f"{name}.ids" for name in self._part_names]
        return [*(path for corpus in self._earlier for path in corpus.ids()), *own]

    def places(self) -> Places:
        """Where the writing tasks find the verdicts."""
        folders = [entry["path"] for entry in manifest_entries(self._earlier, self._run.output)]
        return Places(
            self._clusters, self._ids(), [folder for folder, e in zip(folders, self._earlier) for _ in e.names]
        )

    def store(self) -> None:
        """Leave the signatures for later dedups, once all parts are written."""
        store_signatures(self.signatures, self._part_names, self._settings, self._run.output)

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
    forms: EarlierForms | None,
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float32]]:
    """Of every document the one that stays for it, the form of that one that it is a copy of, and how similar the two are.

    A document that only a chain of copies joins to its keeper, and that is too far from it, forms clusters anew with the
    others of its kind; after a few rounds what is left of them stays. Stored documents stay, and whatever is a copy of one
    leaves for that one.
    """
    documents = len(ranks)
    itself = np.arange(documents, dtype=np.uint32)
    keepers = itself.copy()
    originals = keepers if forms is None else itself.copy()
    similarity = np.ones(documents, dtype=np.float32)
    sketches = Sketches(parts)
    may_leave = itself >= (0 if forms is None else forms.stored)
    left = None
    for _ in range(_ROUNDS):
        roots = components(files, documents, memory_bytes, left, None if forms is None else forms.meaning)
        chosen = choose_keepers(roots, ranks)
        if forms is not None and left is None:
            stored_copies = forms.stored_copies(files, documents, memory_bytes)
            chosen = np.where(stored_copies != itself, stored_copies, chosen)
        moved = np.flatnonzero((chosen != itself) & (may_leave if left is None else left))
        pairs = np.empty(len(moved), dtype=PAIR)
        pairs["one"], pairs["other"] = chosen[moved], moved
        compared, estimates = pairs["one"].copy(), _estimates(pairs, sketches, exact)
        for places, earlier in forms.of(pairs) if forms is not None else ():
            of_earlier = _estimates(earlier, sketches, exact)
            better = of_earlier > estimates[places]
            compared[places[better]] = earlier["one"][better]
            estimates[places[better]] = of_earlier[better]
        near = estimates >= threshold - _FAR
        keepers[moved[near]] = chosen[moved[near]]
        originals[moved[near]] = compared[near]
        similarity[moved[near]] = np.minimum(estimates[near], 1.0)
        left = np.zeros(documents, dtype=bool)
        left[moved[~near]] = True
        if not left.any():
            break
    return keepers, originals, similarity


def _estimates(pairs: NDArray[Any], sketches: Sketches, exact: NDArray[np.uint32]) -> NDArray[np.float32]:
    """float32 [pairs]: their similarities, and more than 1 where the texts are equal."""
    order = np.argsort(pairs["one"], kind="stable")
    estimates = np.empty(len(pairs), dtype=np.float32)
    estimates[order] = sketches.similarities(pairs[order])
    return np.where(exact[pairs["one"]] == exact[pairs["other"]], np.float32(_EQUAL), estimates)


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
    earlier: Sequence[EarlierCorpus],
) -> dict[str, Any]:
    parts, stored = parts_of(earlier, signatures, names)
    return {"pairs": verified_pairs(parts, column, threshold, memory_bytes, _pair_file(folder, column), stored)}


class Earlier(NamedTuple):
    """Where an earlier corpus has the text that a document is a copy of.

    Attributes:
        earlier_corpus: its folder, seen from the output.
        new_form_stays: whether the document of that text comes again, and it is its new form that stays.
    """

    earlier_corpus: str
    new_form_stays: bool


class Verdict(NamedTuple):
    """What becomes of a document: `reason` None when it stays, with `copies` that leave for it."""

    reason: str | None
    kept_id: str
    similarity: float
    copies: int
    earlier: Earlier | None = None


@dataclass
class Verdicts:
    """The verdicts on one part's documents."""

    codes: NDArray[np.uint8]
    keepers: NDArray[np.uint32]
    originals: NDArray[np.uint32]
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
        keeper, original = int(self.keepers[number]), int(self.originals[number])
        folder = self.places.earlier_folder(original)
        earlier = None if folder is None else Earlier(folder, keeper != original)
        similarity = round(float(self.similarity[number]), 4)
        return Verdict(_REASONS[code], self.places.id_of(keeper), similarity, 0, earlier)


class Places:
    """Where verdicts, ids and repeated lines lie; picklable, opened where it is used.

    Args:
        clusters: folder with the arrays over all documents.
        ids: files of ids of all parts, those of earlier corpora first.
        earlier: the folders of the latter, one for each of their parts.
    """

    def __init__(self, clusters: Path, ids: Sequence[Path], earlier: Sequence[str]) -> None:
        self._clusters, self._ids, self._earlier = clusters, list(ids), list(earlier)
        self._repeated: NDArray[np.uint64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_repeated": None}

    def verdicts(self, part: int) -> Verdicts:
        """The verdicts on the documents of a part (that is read, not of an earlier corpus)."""
        firsts = np.load(self._clusters / "firsts.npy")
        part += len(self._earlier)
        here = slice(int(firsts[part]), int(firsts[part + 1]))

        def column(name: str) -> NDArray[Any]:
            return np.array(np.load(self._clusters / f"{name}.npy", mmap_mode="r")[here])

        return Verdicts(
            column("verdicts"), column("keepers"), column("originals"), column("similarity"), column("copies"), self
        )

    def id_of(self, number: int) -> str:
        """The id of a document by its number over all parts."""
        part, place = self._part_of(number)
        return id_at(self._ids[part], place)

    def earlier_folder(self, number: int) -> str | None:
        """The folder of the earlier corpus that a document is of, seen from the output; None for those that are read."""
        part, _ = self._part_of(number)
        return self._earlier[part] if part < len(self._earlier) else None

    def _part_of(self, number: int) -> tuple[int, int]:
        firsts = np.load(self._clusters / "firsts.npy")
        part = int(np.searchsorted(firsts, number, side="right")) - 1
        return part, number - int(firsts[part])

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
