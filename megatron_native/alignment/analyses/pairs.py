"""Pairs of original and rewrite, from a rewriting, a folder of `gate`, or files of pairs; and samples of them.

A rewriting gives every decision: what the worker (or the rules) made of a passage, what the gates said, what became of it.
Files of pairs have texts alone, so the gates may be asked about them here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash

from megatron_native.alignment.gates.pairs import REFUSED as REFUSED_FOLDER
from megatron_native.alignment.gates.pairs import PairSettings, pair_of
from megatron_native.alignment.rewriting.chunks import QUARANTINED, REFUSED, REWRITTEN, UNCHANGED
from megatron_native.alignment.rewriting.export import decisions_of
from megatron_native.alignment.rewriting.joining import DECISIONS
from megatron_native.corpus.report.reading import documents_in
from megatron_native.corpus.report.sources import NOT_RECORDED, name_of
from megatron_native.documents.inputs import common_root, expand_inputs
from megatron_native.documents.parts import plan_parts
from megatron_native.documents.readers import read_part
from megatron_native.documents.records import Refusal
from megatron_native.errors import UserError
from megatron_native.manifest import read_manifest

WITH_DECISIONS = ("rewrite", "annotate")
"""Stages that keep a decision of every passage."""
ACCEPTED = (REWRITTEN, UNCHANGED)
"""States of pairs whose rewrite is in the output."""


@dataclass(frozen=True, slots=True)
class RewritePair:
    """One passage and what was made of it.

    Attributes:
        id: of the passage, or its file and number.
        origin: what the worker was given.
        rewritten: what it made of that, also where it was refused; None where there is no rewrite.
        state: `rewritten`, `unchanged`, `refused` or `quarantined` (docs/rewriting.md).
        source: the site or file of its document.
        reasons: why it was refused, `gate: what it saw` each; `cut off` and the like name no gate.
        gates: gate → (score, passed), of every gate that judged.
    """

    id: str
    origin: str
    rewritten: str | None
    state: str
    source: str = NOT_RECORDED
    reasons: tuple[str, ...] = ()
    gates: Mapping[str, tuple[float, bool]] = field(default_factory=dict)

    @property
    def refused_by(self) -> list[str]:
        """The gates that refused it."""
        return [name for name, (_, passed) in self.gates.items() if not passed]

    @property
    def reason_kinds(self) -> list[str]:
        """What its reasons begin with, each once: gates, or another reason's words before its colon."""
        return list(dict.fromkeys(reason.partition(":")[0].strip() for reason in self.reasons))


class Sample:
    """At most `size` pairs of a stream, those with the least hashes of seed, place and id: always the same ones."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.seen = size, seed, 0
        self._kept: list[tuple[int, int, RewritePair]] = []

    def offer(self, pair: RewritePair, place: int) -> None:
        """Take the pair if it is among the least; `place` is its own in the stream. Equal seeds choose alike."""
        rank = xxhash.xxh3_64_intdigest(f"{self.seed}\0{place}\0{pair.id}".encode("utf-8", "surrogatepass"))
        entry = (-rank, -place, pair)
        self.seen += 1
        if len(self._kept) < self.size:
            heapq.heappush(self._kept, entry)
        elif self.size and entry[:2] > self._kept[0][:2]:
            heapq.heapreplace(self._kept, entry)

    def pairs(self) -> list[RewritePair]:
        """What was kept, in the order of the stream."""
        return [pair for _, _, pair in sorted(self._kept, key=lambda entry: -entry[1])]

    def places(self) -> list[int]:
        """Where `pairs` stood in the stream."""
        return sorted(-place for _, place, _ in self._kept)


def read_pairs(
    inputs: Sequence[str], settings: PairSettings, on_refused: Callable[[str], None] = lambda reason: None
) -> Iterator[RewritePair]:
    """All pairs of the inputs, in order.

    Args:
        inputs: folders of `rewrite`, `annotate` or `gate`, and files, folders or globs of pairs.
        settings: the keys of origin and rewrite in files of pairs.
        on_refused: hears why, of each record that is no pair.

    Raises:
        UserError: an input can't be read, or a rewriting is unfinished or kept no decisions.
    """
    for given in inputs:
        folder = Path(given)
        manifest = read_manifest(folder / "manifest.json") if folder.is_dir() else None
        kind = None if manifest is None else manifest["stage"]
        if kind in WITH_DECISIONS:
            if not (folder / DECISIONS).is_dir():
                raise UserError(
                    f"{folder} has no decisions to report on: nothing was rewritten, or rules ran without gates (--no-gates)."
                )
            yield from map(_of_decision, decisions_of(folder))
            continue
        if kind in ("clean", "dedup", "tokenize"):
            raise UserError(f"{folder} is the output of {kind} and holds no pairs; give the folder that rewrite wrote.")
        yield from _of_files([given], settings, on_refused)
        if kind == "gate" and (folder / REFUSED_FOLDER).is_dir():
            yield from _of_files([str(folder / REFUSED_FOLDER)], settings, on_refused)


def _of_decision(decision: dict[str, Any]) -> RewritePair:
    state, gates = decision["state"], {name: (score, ok) for name, (score, ok) in decision.get("gates", {}).items()}
    text = decision.get("answer") if state in (REFUSED, QUARANTINED) else decision["rewritten"]
    if text is None and state == UNCHANGED:
        text = decision["origin"]
    reason = decision.get("reason", "")
    reasons = tuple(reason.split("; ")) if reason else ()
    source = _source(decision.get("metadata") or {})
    return RewritePair(decision["id"], decision["origin"], text, state, source, _whole(reasons, gates), gates)


def _source(fields: Mapping[str, Any]) -> str:
    """The site or file of a record; a seed has it under `document`."""
    document = fields.get("document")
    if isinstance(document, dict):
        file = document.get("file")
        return name_of({"source": document.get("source"), "from": {"file": file if isinstance(file, str) else ""}})
    return name_of(dict(fields))


def _whole(reasons: tuple[str, ...], gates: Mapping[str, Any]) -> tuple[str, ...]:
    """Reasons that a semicolon inside one has parted, put together again: each but the first begins with a gate's name."""
    found: list[str] = []
    for reason in reasons:
        if found and reason.partition(":")[0] not in gates:
            found[-1] += f"; {reason}"
        else:
            found.append(reason)
    return tuple(found)


def _of_files(
    inputs: Sequence[str], settings: PairSettings, on_refused: Callable[[str], None]
) -> Iterator[RewritePair]:
    files = expand_inputs(inputs)
    count = 0
    for part in plan_parts(files, common_root(inputs, files), "file", settings.part_bytes):
        for record in read_part(part, settings.reading):
            found = pair_of(record, settings)
            if isinstance(found, Refusal):
                on_refused(found.reason)
                continue
            origin, rewritten, fields = found
            verdict = _verdict(fields.get("gates"))
            if verdict is None:
                on_refused("gates without scores")
                continue
            count += 1
            name, file = fields.get("id"), Path(record.source).name
            yield _of_fields(
                str(name) if isinstance(name, str | int) else f"{file} {count}", origin, rewritten, *verdict,
                _source(fields | {"from": fields.get("from") or {"file": file}}),
            )  # fmt: skip


def _verdict(verdict: Any) -> tuple[dict[str, tuple[float, bool]], tuple[str, ...]] | None:
    """Scores and reasons of a record's field `gates`; None where scores are no numbers."""
    try:
        return _scores_and_reasons(verdict)
    except (AttributeError, TypeError, ValueError):
        return None


def _scores_and_reasons(verdict: Any) -> tuple[dict[str, tuple[float, bool]], tuple[str, ...]]:
    gates: dict[str, tuple[float, bool]] = {}
    reasons: tuple[str, ...] = ()
    if isinstance(verdict, dict) and isinstance(verdict.get("scores"), dict):  # as `gate` writes it
        refused = verdict.get("refused") or {}
        gates = {gate: (float(score), gate not in refused) for gate, score in verdict["scores"].items()}
        reasons = tuple(f"{gate}: {reason}" for gate, reason in refused.items())
    elif isinstance(verdict, dict):
        with_both = {gate: value for gate, value in verdict.items() if isinstance(value, list) and len(value) == 2}
        gates = {gate: (float(score), bool(passed)) for gate, (score, passed) in with_both.items()}
        reasons = tuple(f"{gate}: refused" for gate, (_, passed) in gates.items() if not passed)
    return gates, reasons


def _of_fields(
    name: str, origin: str, rewritten: str, gates: dict[str, tuple[float, bool]], reasons: tuple[str, ...], source: str
) -> RewritePair:
    state = REFUSED if reasons else UNCHANGED if origin == rewritten else REWRITTEN
    return RewritePair(name, origin, rewritten, state, source, reasons, gates)


def with_sources(pairs: Iterable[RewritePair], inputs: Sequence[str], bar: Any = None) -> list[RewritePair]:
    """The pairs with their documents' sources, which decisions don't hold: a stage's documents or seeds are read for them."""
    pairs = list(pairs)
    lacking = [pair for pair in pairs if pair.source == NOT_RECORDED]
    wanted = {document_of(pair) for pair in lacking} | {pair.id for pair in lacking}
    found: dict[str, str] = {}
    for given in inputs if wanted else ():
        manifest = read_manifest(Path(given) / "manifest.json") if Path(given).is_dir() else None
        if manifest is not None and manifest["stage"] == "annotate":
            seeds = _of_files([given], PairSettings(), lambda reason: None)
            found |= {seed.id: seed.source for seed in seeds if seed.id in wanted}
        elif manifest is not None and manifest["stage"] == "rewrite":
            for path in expand_inputs([given]):
                for record in documents_in(path, bar.advance if bar else lambda count: None):
                    if not isinstance(record, Refusal) and record.id in wanted:
                        found[record.id] = name_of(record.metadata)
    named = []
    for pair in pairs:
        source = found.get(pair.id) or found.get(document_of(pair)) if pair.source == NOT_RECORDED else None
        named.append(replace(pair, source=source) if source else pair)
    return named


def document_of(pair: RewritePair) -> str:
    """The id of the document that a passage of a rewriting is from."""
    head, sign, number = pair.id.rpartition("#")
    return head if sign and number.isdigit() else pair.id
