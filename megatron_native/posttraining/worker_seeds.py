"""Seed pairs as conversations: the prompt that `rewrite` will send, and the expert's rewrite as its answer.

In go files of `{"origin", "rewritten", …}`; out come two files of conversations, to learn from and held out. The share
that is held out is chosen by the hash of the passage that is asked about (the origin after the rules): no question is
on both sides, and the share stays the same when seeds are added.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from megatron_native.alignment.conduct import Conduct, Language
from megatron_native.alignment.gates.pairs import PairSettings, pair_of
from megatron_native.alignment.prompts import Detail, Form, Messages, edits_between, render_edits, render_rewriting
from megatron_native.documents.inputs import common_root, expand_inputs
from megatron_native.documents.parts import plan_parts
from megatron_native.documents.records import Refusal
from megatron_native.errors import UserError

TRAIN_FILE, HELDOUT_FILE = "train.jsonl", "heldout.jsonl"
_HASH_BYTES = 8


@dataclass(frozen=True)
class SeedSettings:
    """What decides the conversations.

    Attributes:
        conduct: the code of conduct that the seeds were rewritten by.
        form: `full` (the answer is the rewritten passage) or `edits` (the spans to replace).
        language: of the prompt's own words.
        detail: `brief` (a few words before the passage: the worker learns the code from the pairs) or `whole` (the code).
        rules: whether origins are tidied by the rules first, as a rewriting does before it asks the worker.
        heldout_share: share of the passages that is held out.
        origin_key, rewritten_key: where the texts are in a record.
    """

    conduct: Conduct
    form: Form = "full"
    language: Language = "ar"
    detail: Detail = "brief"
    rules: bool = True
    heldout_share: float = 0.05
    origin_key: str = "origin"
    rewritten_key: str = "rewritten"

    def check(self) -> None:
        """Raise a `UserError` for values that can't be meant."""
        for name, value, choices in (
            ("--form", self.form, get_args(Form)),
            ("--detail", self.detail, get_args(Detail)),
        ):
            if value not in choices:
                raise UserError(f"{name} {value}: choose one of {', '.join(choices)}.")
        if not 0 <= self.heldout_share < 1:
            raise UserError(f"--heldout-share {self.heldout_share}: give a share from 0 to below 1, such as 0.05.")

    def messages(self, passage: str) -> Messages:
        """What the worker is asked about a passage."""
        return render_rewriting(self.conduct, passage, form=self.form, language=self.language, detail=self.detail)

    def answer(self, passage: str, rewritten: str) -> str:
        """What the worker is to answer."""
        return rewritten if self.form == "full" else render_edits(edits_between(passage, rewritten))


@dataclass(frozen=True)
class SeedFiles:
    """The conversations on disk, and the account of the pairs: read = learned + held out + dropped + quarantined."""

    train: Path
    heldout: Path | None
    read: int
    learned: int
    held_out: int
    dropped: dict[str, int]
    quarantined: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """As plain values, without the files."""
        return {key: value for key, value in vars(self).items() if key not in ("train", "heldout")}


def write_conversations(seeds: list[str], folder: Path, settings: SeedSettings) -> SeedFiles:
    """Turn seed pairs into conversations in `folder`; the files are written whole, the same for the same seeds.

    Raises:
        UserError: no file, or no pair in them that a worker could learn from.
    """
    from megatron_native.alignment.rules import build_rules

    settings.check()
    rules = build_rules() if settings.rules else None

    def passage_of(origin: str) -> str:
        return origin if rules is None else rules.apply(origin).text

    held = _held_out(seeds, settings, passage_of)
    dropped, quarantined, counts = Counter[str](), Counter[str](), Counter[str]()
    seen: set[bytes] = set()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in (TRAIN_FILE, HELDOUT_FILE)}
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(open(f"{path}.partial", "w", encoding="utf-8")) for name, path in paths.items()
        }
        for found in _pairs(seeds, settings):
            counts["read"] += 1
            if isinstance(found, Refusal):
                quarantined[found.reason] += 1
                continue
            origin, rewritten = found
            passage = passage_of(origin)
            reason = _unfit(passage, rewritten)
            key = hashlib.sha256(f"{passage}\0{rewritten}".encode("utf-8", "surrogatepass")).digest()
            if reason is None and key in seen:
                reason = "the same pair again"
            if reason is not None:
                dropped[reason] += 1
                continue
            seen.add(key)
            name = HELDOUT_FILE if _hash(passage) in held else TRAIN_FILE
            counts[name] += 1
            answer = {"role": "assistant", "content": settings.answer(passage, rewritten)}
            record = {"id": f"pair-{key.hex()[:16]}", "messages": [*settings.messages(passage), answer]}
            files[name].write(json.dumps(record, ensure_ascii=False) + "\n")
    if not counts[TRAIN_FILE]:
        raise UserError(
            f"{' '.join(seeds)}: no pair to learn from among {counts['read']} records ({_reasons(dropped + quarantined)}): "
            f"give records with texts under '{settings.origin_key}' and '{settings.rewritten_key}'."
        )
    for path in paths.values():
        Path(f"{path}.partial").replace(path)
    return SeedFiles(
        paths[TRAIN_FILE], paths[HELDOUT_FILE] if counts[HELDOUT_FILE] else None, counts["read"], counts[TRAIN_FILE],
        counts[HELDOUT_FILE], dict(dropped), dict(quarantined),
    )  # fmt: skip


def _pairs(seeds: list[str], settings: SeedSettings) -> Iterator[tuple[str, str] | Refusal]:
    from megatron_native.documents.readers import read_part

    keys = PairSettings(origin_key=settings.origin_key, rewritten_key=settings.rewritten_key)
    files = expand_inputs(seeds)
    for part in plan_parts(files, common_root(seeds, files), "file", keys.part_bytes):
        for record in read_part(part, keys.reading):
            found = pair_of(record, keys)
            if isinstance(found, Refusal):
                yield found
                continue
            _require_conduct(found[2], settings.conduct)
            yield found[0], found[1]


def _require_conduct(record: dict[str, Any], conduct: Conduct) -> None:
    """Refuse pairs that were made by another code than the one that the worker is to stand for."""
    annotation = record.get("annotation")  # of a record's `metadata`, whose keys reading brings up
    if not isinstance(annotation, dict) or annotation.get("conduct_hash") in (None, conduct.hash):
        return
    raise UserError(
        f"--conduct {conduct.name} (hash {conduct.hash[:12]}): the seeds were annotated by the code "
        f"'{annotation.get('conduct')}' (hash {str(annotation['conduct_hash'])[:12]}); name that one, "
        "in the version that it had."
    )


def _held_out(seeds: list[str], settings: SeedSettings, passage_of: Callable[[str], str]) -> set[bytes]:
    """Hashes of the passages, as they are asked, that are held out: those below the share, and of ten or more at least one."""
    if not settings.heldout_share:
        return set()
    hashes = {_hash(passage_of(found[0])) for found in _pairs(seeds, settings) if not isinstance(found, Refusal)}
    limit = int(settings.heldout_share * 2 ** (8 * _HASH_BYTES))
    held = {value for value in hashes if int.from_bytes(value, "big") < limit}
    if not held and len(hashes) >= 10:
        held = {min(hashes)}
    return held


def _hash(passage: str) -> bytes:
    return hashlib.sha256(passage.encode("utf-8", "surrogatepass")).digest()[:_HASH_BYTES]


def _unfit(passage: str, rewritten: str) -> str | None:
    """Why a pair is nothing to learn from, or None."""
    if not passage.strip():
        return "no origin left after the rules"
    return "the rewrite is empty" if not rewritten.strip() else None


def _reasons(counted: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in counted.most_common()) or "there are none"
