"""The experiment's texts: clean documents cut into passages, dealt to seeds, corpus and held-out text, and corrupted.

Everything follows from the documents and a seed. A document's passages all go to one of the three, by the hash of its
beginning, so that copies of it do too.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from corrupt import corrupt

from megatron_native.alignment.passages import split
from megatron_native.documents.inputs import expand_inputs
from megatron_native.documents.readers import read_documents
from megatron_native.documents.records import Refusal

_UNCLEAN = re.compile(r"[<>&|_{}\[\]\\@#~^]|http|www|\.\.|…|\u0640|[A-Za-z]")
"""Signs by which a passage of a crawl is not taken for clean."""
_ARABIC_END = re.compile("[.؟!»]$")


@dataclass(frozen=True)
class Sizes:
    """How much of what."""

    passage_tokens: int = 48
    """LLaMA-3 tokens of a passage at most."""
    seeds: int = 1200
    corpus: int = 900
    heldout: int = 120
    """Passages."""


def write_texts(inputs: list[str], folder: Path, sizes: Sizes, seed: int) -> dict[str, int]:
    """Write `{seeds,corpus}/{clean,corrupted}.jsonl` and `heldout/clean.jsonl` below `folder`.

    Returns:
        passages written, by name.

    Raises:
        ValueError: the documents are too few for the sizes asked for.
    """
    wanted = {"seeds": sizes.seeds, "corpus": sizes.corpus, "heldout": sizes.heldout}
    found: dict[str, list[str]] = {name: [] for name in wanted}
    seen: set[str] = set()
    for text in _documents(inputs):
        share = hashlib.sha256(f"{seed}\n{text[:80]}".encode()).digest()[0] / 256
        name = "heldout" if share < 0.1 else "corpus" if share < 0.5 else "seeds"
        for passage in _clean_passages(text, sizes.passage_tokens):
            if passage not in seen:
                seen.add(passage)
                found[name].append(passage)
    for name, number in wanted.items():
        if len(found[name]) < number:
            raise ValueError(
                f"the documents have {len(found[name])} clean passages for {name}, and {number} are asked for"
            )
        chosen = random.Random(f"{seed}/{name}").sample(found[name], number)
        _write(folder / name / "clean.jsonl", name, chosen)
        if name != "heldout":
            rng = random.Random(f"{seed}/{name}/corrupt")
            _write(folder / name / "corrupted.jsonl", name, [corrupt(passage, rng) for passage in chosen])
    return {name: len(passages) for name, passages in found.items()} | {f"{name} used": n for name, n in wanted.items()}


def by_id(path: Path) -> dict[str, str]:
    """The texts of a JSONL file of documents, by id."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {record["id"]: record["text"] for record in records}


def stage_texts(folder: Path) -> dict[str, str]:
    """The texts of a stage folder, by id."""
    return {record.id: record.text for path in expand_inputs([str(folder)]) for record in _read(path)}


def _documents(inputs: list[str]) -> Iterator[str]:
    seen: set[bytes] = set()
    for path in expand_inputs(inputs):
        for record in _read(path):
            digest = hashlib.sha256(record.text[:200].encode()).digest()
            if digest not in seen:
                seen.add(digest)
                yield record.text.strip()


def _read(path: Path) -> Iterable:
    return (record for record in read_documents(path) if not isinstance(record, Refusal))


def _clean_passages(text: str, tokens: int) -> Iterator[str]:
    for passage in split(" ".join(text.split()), tokens):
        candidate = passage.text.strip()
        if len(candidate) >= 60 and _ARABIC_END.search(candidate) and not _UNCLEAN.search(candidate):
            yield candidate


def _write(path: Path, name: str, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": f"{name}-{n:05d}", "text": text}, ensure_ascii=False) for n, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
