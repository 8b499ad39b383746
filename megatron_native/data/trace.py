"""From a step of a run to the documents it read, and from a document to every step and checkpoint that saw it.

In go the ledger and the indexed datasets; nothing was logged a step, everything is worked out. The manifests beside the
datasets lead further: to the files a document came from and what was done to them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_native.data.dataset_files import DatasetFiles, document_id_lines
from megatron_native.data.indexed import IndexedTokens
from megatron_native.data.ledger import Ledger, read_ledger
from megatron_native.data.run_data import RunData
from megatron_native.errors import UserError
from megatron_native.manifest import read_manifest, stage_manifest_of
from megatron_native.training.restarts import last_step
from megatron_native.training.retention import checkpoints_of, step_of


@dataclass(frozen=True)
class Piece:
    """A piece of a document in a step."""

    step: int
    sample: int
    dataset: str
    document: int
    start: int
    stop: int
    """Its tokens [start, stop)."""
    epoch: int
    """Which reading of the dataset, 0 for the first."""
    id: str | None = None
    """The document's id, where the dataset keeps a table of them."""


@dataclass(frozen=True)
class Sighting:
    """A step that read some of a document."""

    step: int
    epoch: int
    learned: bool
    """Whether the step's update was made."""


class Trace:
    """Answers about one run.

    Args:
        run_dir: its folder, or a checkpoint.
        prefixes: dataset name → prefix, for datasets that have been moved.

    Raises:
        UserError: there is no ledger, or a dataset is gone or is another one now.
    """

    def __init__(self, run_dir: Path, prefixes: dict[str, Path] | None = None) -> None:
        self.run_dir = run_dir
        self.ledger: Ledger = read_ledger(run_dir)
        self.prefixes = {name: Path(record.prefix) for name, record in self.ledger.datasets.items()} | (prefixes or {})
        for name, record in self.ledger.datasets.items():
            digest = IndexedTokens(self.prefixes[name]).digest()
            if digest != record.digest:
                raise UserError(
                    f"{self.prefixes[name]}.idx is not what the run read as '{name}': its digest is {digest[:12]}…, the "
                    f"ledger has {record.digest[:12]}…. Say where that dataset is now with --moved {name}=PREFIX."
                )
        self.data = RunData(self.ledger, self.prefixes)
        self.last_step = last_step(run_dir)

    def step(self, step: int) -> list[Piece]:
        """Every piece of every document of a step, in the order of its samples.

        Raises:
            UserError: the run has not come so far.
        """
        if step > self.last_step:
            raise UserError(f"step {step}: {self.run_dir} has done {self.last_step} steps.")
        return [
            Piece(step, sample, name, *span)
            for sample in self.ledger.samples_of(step)
            for name, spans in [self.data.spans(sample)]
            for span in spans
        ]

    def with_ids(self, pieces: list[Piece]) -> list[Piece]:
        """The same pieces with their documents' ids, where the datasets keep them."""
        wanted: dict[str, set[int]] = {}
        for piece in pieces:
            wanted.setdefault(piece.dataset, set()).add(piece.document)
        ids = {name: document_ids(self.prefixes[name], documents) for name, documents in wanted.items()}
        return [
            Piece(**{**vars(piece), "id": ids[piece.dataset].get(piece.document)})
            for piece in pieces
        ]  # fmt: skip

    def document(self, dataset: str, document: int) -> list[Sighting]:
        """Every step so far that read some of a document, in order.

        Raises:
            UserError: the run has no such dataset, or the dataset no such document.
        """
        record = self.ledger.datasets.get(dataset)
        if record is None:
            raise UserError(f"the run has read no dataset '{dataset}'; it has read {', '.join(self.ledger.datasets)}.")
        if not 0 <= document < record.documents:
            raise UserError(f"dataset '{dataset}' has the documents 0 to {record.documents - 1:,}, not {document:,}.")
        last = self.ledger.samples_of(self.last_step).stop if self.last_step else 0
        seen: set[tuple[int, int]] = set()
        for number, segment in enumerate(self.ledger.segments):
            if not segment.weights.get(dataset) or segment.first_sample >= last:
                continue
            end = self.ledger.segments[number + 1].first_sample if number + 1 < len(self.ledger.segments) else last
            seen |= self._in_segment(number, dataset, document, min(end, last))
        return [Sighting(step, epoch, step not in self.ledger.not_learned) for step, epoch in sorted(seen)]

    def _in_segment(self, number: int, dataset: str, document: int, end: int) -> set[tuple[int, int]]:
        """(step, epoch) of the samples of a segment, up to sample `end`, that a document is in."""
        segment = self.ledger.segments[number]
        place = list(segment.weights).index(dataset)
        index = self.data.index(number, dataset)
        drawn = segment.shares.counts(end - segment.first_sample)[place]
        if not drawn:
            return set()
        taken = self.data.read_before(number, dataset)
        way, seen = len(index.readings) - 1, set()
        for epoch in index.epochs(taken, taken + drawn):
            for _, n in index.visits(document, epoch, way):
                if taken <= n < taken + drawn:
                    step = self.ledger.step_of(segment.first_sample + segment.shares.when(place, n - taken))
                    if step is not None and step <= self.last_step:
                        seen.add((step, epoch))
        return seen

    def checkpoints_after(self, step: int) -> list[str]:
        """The checkpoints in the run folder that have learned from a step."""
        return [folder.name for folder in checkpoints_of(self.run_dir) if step_of(folder) >= step]

    def consumption(self) -> dict[str, dict[str, float]]:
        """What has been read of each dataset so far: sequences, tokens of context, epochs, documents."""
        end = self.ledger.samples_of(self.last_step).stop if self.last_step else 0
        found = {}
        for name, kinds in (self.ledger.taken_at(end) if self.ledger.segments else {}).items():
            tokens = sum(kind.sequences * kind.seq_length for kind in kinds)
            record = self.ledger.datasets[name]
            found[name] = {
                "sequences": sum(kind.sequences for kind in kinds), "tokens": tokens, "epochs": tokens / record.tokens,
                "documents": min(1.0, tokens / record.tokens) * record.documents,
            }  # fmt: skip
        return found


def document_ids(prefix: Path, documents: set[int]) -> dict[int, str]:
    """The ids of some documents, from the table beside a dataset; none where there is no table."""
    files = DatasetFiles(prefix)
    if not files.ids.is_file():
        return {}
    found: dict[int, str] = {}
    for number, line in enumerate(document_id_lines(files.ids)):
        if number in documents:
            found[number] = json.loads(line)
            if len(found) == len(documents):
                break
    return found


def find_document(prefix: Path, document_id: str) -> int:
    """The number of the document with an id.

    Raises:
        UserError: there is no table of ids, or the id is not in it.
    """
    files = DatasetFiles(prefix)
    if not files.ids.is_file():
        raise UserError(f"{files.ids} is not there, so documents are found by number only.")
    for number, line in enumerate(document_id_lines(files.ids)):
        if json.loads(line) == document_id:
            return number
    raise UserError(f"{files.ids} has no document with the id {document_id!r}.")


def lineage(prefix: Path) -> list[dict[str, Any]]:
    """The manifests behind a dataset, the nearest first: stage, parameters that tell, inputs, licence where one is known.

    A manifest's inputs are files of the stage before, whose manifest lies in their folder or, where that stage splits its
    output, in the one above; of a merged dataset, they are datasets with a manifest beside each.
    """
    chain: list[dict[str, Any]] = []
    waiting = [DatasetFiles(prefix).manifest_path]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop(0).resolve()
        if path in seen:
            continue
        seen.add(path)
        try:
            manifest = read_manifest(path)
        except UserError:  # a stranger's, beside the files of a dump
            continue
        if manifest is None:
            continue
        inputs = [entry["path"] for entry in manifest.get("inputs", [])]
        entry = {"manifest": str(path), "stage": manifest.get("stage"), "created": manifest.get("created"), "inputs": inputs}
        for name in ("parameters_hash", "prompt_hash", "worker", "licence", "licences", "tokenizer"):
            if name in manifest:
                entry[name] = manifest[name]
        chain.append(entry)
        waiting += [before for name in inputs if (before := _manifest_of(path.parent / name)) is not None]
    return chain


def _manifest_of(path: Path) -> Path | None:
    """The manifest of what a file belongs to: a dataset or a stage folder."""
    return DatasetFiles(path.with_suffix("")).manifest_path if path.suffix in (".bin", ".idx") else stage_manifest_of(path)
