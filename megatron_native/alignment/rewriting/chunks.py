"""Chunks: the passages of a part that the worker has to see, 64 in a frame, and what was answered, one file a chunk.

`chunks/part-00000.zst` holds one zstd frame of JSON lines a chunk; where each begins stands in the part's account.
`answers/part-00000/00012.jsonl` holds the outcomes of chunk 12, written beside and renamed: a chunk is done or not begun.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

if TYPE_CHECKING:
    from megatron_native.alignment.passages import Passage

CHUNKS = "chunks"
ANSWERS = "answers"
REWRITTEN = "rewritten"
UNCHANGED = "unchanged"
REFUSED = "refused"
QUARANTINED = "quarantined"
CLEAN = "clean"
FROZEN = "frozen"
STATES = (REWRITTEN, UNCHANGED, REFUSED, QUARANTINED, CLEAN, FROZEN)
"""What can become of a passage; see docs/rewriting.md."""
ACCEPTED = (REWRITTEN, UNCHANGED, CLEAN)
"""States whose tokens count as accepted."""


class WaitingPassage(msgspec.Struct, array_like=True):
    """A passage that waits for the worker.

    Attributes:
        document, number: place of its document in the part, and its own in the document.
        id: `<document id>#<number>`.
        tokens: as LLaMA-3 counts.
        digest: of the text.
    """

    document: int
    number: int
    id: str
    text: str
    before: str
    after: str
    tokens: int
    digest: str

    @classmethod
    def of(cls, passage: Passage, document: int, number: int) -> WaitingPassage:
        """A passage of a document."""
        return cls(
            document, number, passage.id, passage.text, passage.before, passage.after, passage.tokens, passage.digest
        )


class PassageOutcome(msgspec.Struct, omit_defaults=True):
    """What became of a passage that the worker was asked about.

    Attributes:
        document, number: place of its document in the part, and its own in the document.
        digest: of the passage's text.
        state: one of `STATES`.
        tokens: of the passage, as LLaMA-3 counts.
        text: what takes the passage's place; None keeps it.
        reason: why it was refused or quarantined.
        refused: names of the gates that refused it.
        answer: what the worker wrote, where that isn't `text`.
        gates: gate → [score, passed]; every one that judged.
        prompt_tokens, cached_tokens, output_tokens: as the engine counted them.
        tries: how often it was asked.
    """

    document: int
    number: int
    digest: str
    state: str
    tokens: int = 0
    text: str | None = None
    reason: str = ""
    refused: list[str] = msgspec.field(default_factory=list)
    answer: str | None = None
    gates: dict[str, tuple[float, bool]] = msgspec.field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    tries: int = 1

    def decision(self, identifier: str, origin: str, tokens: int, output_tokens: int | None) -> dict[str, Any]:
        """What goes on record of it, with the passage's id and text; what says nothing is left out."""
        record: dict[str, Any] = {
            "id": identifier, "origin": origin, "rewritten": self.text, "state": self.state, "tokens": tokens,
            "output_tokens": output_tokens,
        }  # fmt: skip
        for key in ("reason", "refused", "answer", "gates"):
            if value := getattr(self, key):
                record[key] = value
        if self.tries > 1:
            record["tries"] = self.tries
        return record


class ChunkHeader(msgspec.Struct):
    """The first line of a chunk's answers.

    Attributes:
        accelerator_seconds: what the chunk cost: seconds since the engine's last chunk times its accelerators.
        attempt: how many engines had begun the chunk before.
        engine: what answered.
    """

    accelerator_seconds: float
    attempt: int
    engine: dict[str, Any]


def write_chunks(folder: Path, name: str, passages: Sequence[WaitingPassage], size: int) -> list[list[int]]:
    """Write the chunks of a part, longest passages first, so that those of a chunk are alike.

    Returns:
        [offset, bytes, passages] of every chunk in the file.
    """
    import zstandard

    if not passages:
        return []
    encoder, compressor = msgspec.json.Encoder(), zstandard.ZstdCompressor(level=3, write_checksum=True)
    ordered = sorted(passages, key=lambda passage: (-passage.tokens, passage.document, passage.number))
    path = folder / CHUNKS / f"{name}.zst"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    index: list[list[int]] = []
    with open(partial, "wb") as file:
        for first in range(0, len(ordered), size):
            chunk = ordered[first : first + size]
            frame = compressor.compress(b"\n".join(map(encoder.encode, chunk)))
            index.append([file.tell(), len(frame), len(chunk)])
            file.write(frame)
    partial.replace(path)
    return index


def read_chunk(folder: Path, name: str, entry: Sequence[int]) -> list[WaitingPassage]:
    """The passages of one chunk; `entry` as `write_chunks` gave it."""
    import zstandard

    offset, size, _ = entry
    with open(folder / CHUNKS / f"{name}.zst", "rb") as file:
        file.seek(offset)
        lines = zstandard.ZstdDecompressor().decompress(file.read(size)).split(b"\n")
    decoder = msgspec.json.Decoder(WaitingPassage)
    return [decoder.decode(line) for line in lines]


def answers_path(folder: Path, name: str, chunk: int) -> Path:
    """Where the answers of a chunk are."""
    return folder / ANSWERS / name / f"{chunk:05d}.jsonl"


def write_answers(path: Path, header: ChunkHeader, outcomes: Iterable[PassageOutcome]) -> None:
    """Write a chunk's outcomes beside their place and rename them there; on disk before they are seen."""
    encoder = msgspec.json.Encoder()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    with open(partial, "wb") as file:
        file.write(b"\n".join(map(encoder.encode, [header, *outcomes])) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_answers(path: Path) -> tuple[ChunkHeader, list[PassageOutcome]]:
    """The header and the outcomes of a chunk."""
    first, *lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    decoder = msgspec.json.Decoder(PassageOutcome)
    return msgspec.convert(orjson.loads(first), ChunkHeader), [decoder.decode(line) for line in lines]


def answered(folder: Path, name: str) -> set[int]:
    """The chunks of a part that have answers."""
    place = folder / ANSWERS / name
    if not place.is_dir():
        return set()
    return {int(entry.name.partition(".")[0]) for entry in os.scandir(place) if entry.name.endswith(".jsonl")}
