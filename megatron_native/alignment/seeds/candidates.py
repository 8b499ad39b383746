"""The first pass over the corpus: each part's passages that may be chosen, by a keyed hash of their text.

A passage's key is xxh3_128 of the seed, its stratum and its text: a number drawn uniformly, the same wherever the passage
stands. The sample is the passages with the smallest keys, so it does not depend on files, their order or processes, and
equal texts are one passage. A part keeps only keys below `limit`, which a whole sample will hardly exceed, and the smallest
`LEAST_KEPT` of every stratum; `choosing.py` sees whether that was enough.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from megatron_native.alignment.rewriting.preparing import WAITING, Tidier, read_into
from megatron_native.alignment.seeds.settings import AnnotateSettings, SelectionSettings
from megatron_native.corpus.account import Account
from megatron_native.corpus.stage import QUARANTINE
from megatron_native.documents.inputs import TEXT_SUFFIXES, is_json
from megatron_native.documents.parts import Part
from megatron_native.documents.writers import ShardWriter, written
from megatron_native.engine.tasks import OnRead

LEAST_KEPT = 64
"""The smallest keys of each stratum that a part keeps whatever the limit."""
WHOLE = 1 << 128
"""A limit that no key exceeds."""
_MOST_BYTES_A_TOKEN = 8
"""LLaMA-3's tokens of Arabic have some 4 to 6 bytes of UTF-8."""
_SPARE = 4
_COMPRESSION = 4
_PRUNED_AT = 8192


class Candidate(msgspec.Struct, array_like=True):
    """A passage that may be chosen.

    Attributes:
        key: 32 hexadecimal letters.
        stratum: what it counts for; "" where there is one stratum.
        id: `<document id>#<number>`.
        document: the document's id.
        number: of the passage in its document, from 0.
        text, before, after: the passage, and what stands around it.
        tokens: as LLaMA-3 counts.
        file, offset: where the document stands.
        origin: the document's `metadata.source`; "" where it has none.
    """

    key: str
    stratum: str
    id: str
    document: str
    number: int
    text: str
    before: str
    after: str
    tokens: int
    file: str
    offset: int
    origin: str

    @property
    def place(self) -> tuple[str, int, str, int]:
        """Which of equal texts is meant: the first by this."""
        return self.document, self.number, self.file, self.offset


def key_of(seed: int, stratum: str, text: str) -> str:
    """32 hexadecimal letters, as of a number drawn uniformly from 0 to 2¹²⁸ − 1."""
    return xxhash.xxh3_128_hexdigest(f"{seed}\0{stratum}\0{text}".encode("utf-8", "surrogatepass"))


def limit_for(parts: Sequence[Part], passage_tokens: int, drawn: int) -> int:
    """A key below which there will be several times as many passages as are drawn."""
    size = sum(part.bytes * (1 if _is_plain(part) else _COMPRESSION) for part in parts)
    fewest = size / (passage_tokens * _MOST_BYTES_A_TOKEN)
    share = _SPARE * drawn / fewest if fewest else 1.0
    return WHOLE if share >= 1 else int(share * WHOLE)


def _is_plain(part: Part) -> bool:
    return all(
        (is_json(name := piece.path.lower()) or name.endswith(TEXT_SUFFIXES))
        and not name.endswith((".gz", ".zst", ".bz2"))
        for piece in part.pieces
    )


@dataclass
class Keeper:
    """The candidates of one part, as few as may be."""

    limit: int
    kept: dict[str, dict[str, Candidate]] = field(default_factory=dict)
    """Stratum → key → candidate."""

    def add(self, candidate: Candidate) -> None:
        """Keep a candidate for now; of equal texts the first by place."""
        of_stratum = self.kept.setdefault(candidate.stratum, {})
        there = of_stratum.get(candidate.key)
        if there is None or candidate.place < there.place:
            of_stratum[candidate.key] = candidate
        if len(of_stratum) >= _PRUNED_AT and self.limit < WHOLE and len(of_stratum) % _PRUNED_AT == 0:
            self._prune(candidate.stratum)

    def candidates(self) -> list[Candidate]:
        """What is kept in the end, by key."""
        for stratum in self.kept:
            self._prune(stratum)
        found = [candidate for of_stratum in self.kept.values() for candidate in of_stratum.values()]
        return sorted(found, key=lambda candidate: (candidate.key, candidate.stratum))

    def _prune(self, stratum: str) -> None:
        if self.limit >= WHOLE:
            return
        of_stratum = self.kept[stratum]
        least = set(nsmallest(LEAST_KEPT, of_stratum))
        bound = f"{self.limit:032x}"
        self.kept[stratum] = {
            key: candidate for key, candidate in of_stratum.items() if key < bound or key in least
        }  # fmt: skip


def gather(
    part: Part, on_read: OnRead, output: Path, folder: Path, settings: AnnotateSettings, limit: int
) -> dict[str, Any]:
    """The candidates of one part.

    Args:
        part: what to read.
        on_read: hears of bytes read.
        output: the stage folder, for what can't be read.
        folder: where the candidates go.
        settings: of the annotation.
        limit: see above.

    Returns:
        `account` of the part's documents, `outputs` (its quarantine), `candidates` that were kept, `eligible`
        passages by stratum (equal texts counted as often as they stand there), and `passed_over` passages by reason.
    """
    account, keeper = Account(), Keeper(limit)
    eligible, passed_over = Counter[str](), Counter[str]()
    quarantine = ShardWriter(output / QUARANTINE / f"{part.name}.jsonl.zst")
    candidates = ShardWriter(candidates_path(folder, part.name))
    tidier = Tidier(settings.asking)
    with ExitStack() as stack:
        stack.enter_context(quarantine)
        stack.enter_context(candidates)
        for document in read_into(part, settings.asking, on_read, account, quarantine):
            account.kept += 1
            for candidate in passages_of(tidier, document, settings.selection, passed_over):
                eligible[candidate.stratum] += 1
                keeper.add(candidate)
        for candidate in keeper.candidates():
            candidates.write(candidate)
    return {
        "name": part.name, "account": account.as_counts(), "outputs": written(output, [quarantine]),
        "candidates": candidates.records, "eligible": dict(eligible), "passed_over": dict(passed_over),
    }  # fmt: skip


def passages_of(
    tidier: Tidier, document: Any, selection: SelectionSettings, passed_over: Counter[str]
) -> Iterator[Candidate]:
    """The passages of a document that may be chosen; the others are counted."""
    text, _ = tidier.tidy(document.text)
    origin = document.metadata.get("source")
    origin = origin if isinstance(origin, str) else ""
    for number, (passage, state) in enumerate(tidier.cut(text, document.id)):
        if state != WAITING:
            passed_over[state] += 1
        elif passage.tokens < selection.least_tokens:
            passed_over["too short"] += 1
        else:
            stratum = ""
            if selection.rule == "stratified":
                stratum = f"{origin or '?'} · {selection.band(passage.tokens)}"
            yield Candidate(
                key_of(selection.seed, stratum, passage.text), stratum, passage.id, document.id, number, passage.text,
                passage.before, passage.after, passage.tokens, document.source, document.offset, origin,
            )  # fmt: skip


def candidates_path(folder: Path, name: str) -> Path:
    """Where a part's candidates are."""
    return folder / f"{name}.jsonl.zst"


def read_lines(path: Path, kind: Any) -> Iterator[Any]:
    """The records of a file that a `ShardWriter` wrote; one that has none is never made."""
    import zstandard

    decoder = msgspec.json.Decoder(kind)
    with open(path, "rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        for line in io.BufferedReader(reader, 1 << 20):
            yield decoder.decode(line)
