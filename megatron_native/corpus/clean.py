"""The clean stage: raw dumps in, normalised documents out, one folder per language, an account of every record.

A document passes, in this order: HTML remnants out, characters normalised, boilerplate lines out, language decided (a
page of mixed languages keeps the paragraphs of its main one), quality filters of that language.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_native.corpus import arabic, markup
from megatron_native.corpus.filters import QualityFilters, load_preset
from megatron_native.corpus.readers import Document, Refusal, expand_inputs, read_documents
from megatron_native.corpus.stage import (
    QUARANTINE,
    Account,
    PartResult,
    ShardWriter,
    StageResult,
    run_stage,
    settings_of,
)
from megatron_native.errors import UserError

_MAIN_SHARE = 0.85
"""Share of the letters from which a text counts as being in one script."""


@dataclass(frozen=True)
class CleanSettings:
    """What decides the output of clean, and so belongs into its manifest."""

    preset: str = "msa"
    languages: tuple[str, ...] = ("ar", "en")
    """Languages to keep, of those the preset knows."""
    text_key: str = "text"
    id_key: str = "id"
    text_unit: str = "file"
    tatweel: str = "remove"
    max_line_bytes: int = 64 << 20


def clean(inputs: Sequence[str], output: Path, settings: CleanSettings, workers: int = 1) -> StageResult:
    """Clean the files that `inputs` name into the stage folder `output` (`ar/part-*.jsonl.zst`, `en/…`).

    Raises:
        UserError: an input, the preset, a language or the output folder can't be used.
    """
    preset = load_preset(settings.preset)
    unknown = sorted(set(settings.languages) - set(preset["languages"]))
    if unknown or not settings.languages:
        known = ", ".join(preset["languages"])
        raise UserError(f"--languages {','.join(settings.languages)}: preset {settings.preset} knows {known}.")
    paths = expand_inputs(inputs)
    thresholds = {language: preset["languages"][language] for language in settings.languages}
    parameters = {**settings_of(settings), "thresholds": thresholds}
    work = partial(_clean_part, settings=settings, thresholds=thresholds)
    return run_stage(
        "clean", paths, output, parameters, work, workers, ("orjson", "msgspec", "regex", "zstandard", "isal", "pyarrow")
    )


def _clean_part(
    number: int, path: Path, output: Path, settings: CleanSettings, thresholds: dict[str, Any]
) -> PartResult:
    account = Account()
    cleaner = Cleaner(settings, thresholds)
    name = f"part-{number:05d}.jsonl.zst"
    writers = {language: ShardWriter(output / language / name) for language in settings.languages}
    quarantine = ShardWriter(output / QUARANTINE / name)
    records = read_documents(
        path, settings.text_key, settings.id_key, settings.max_line_bytes, settings.text_unit
    )
    with ExitStack() as stack:
        for writer in (*writers.values(), quarantine):
            stack.enter_context(writer)
        for record in records:
            account.read += 1
            if isinstance(record, Refusal):
                account.quarantined[record.reason] += 1
                quarantine.write(record)
                continue
            account.bytes_read += len(record.text.encode())
            text, language, reason = cleaner.clean(record.text, account)
            if reason is not None:
                account.dropped[reason] += 1
                continue
            account.kept += 1
            account.kept_by_language[language] += 1
            account.bytes_kept += len(text.encode())
            writers[language].write(_output_record(record, text, language))
    outputs = [
        (str(writer.path.relative_to(output)), writer.records)
        for writer in (*writers.values(), quarantine)
        if writer.records
    ]
    return PartResult(account, outputs)


def _output_record(document: Document, text: str, language: str) -> dict[str, Any]:
    metadata = {**document.metadata, "lang": language, "from": {"file": Path(document.source).name, "line": document.line}}
    return {"text": text, "id": document.id, "metadata": metadata}


class Cleaner:
    """Cleans one text after another under fixed settings."""

    def __init__(self, settings: CleanSettings, thresholds: dict[str, Any]) -> None:
        self._settings = settings
        self._filters = {
            language: QualityFilters(thresholds[language] or {}, settings.preset) for language in settings.languages
        }

    def clean(self, text: str, account: Account) -> tuple[str, str, str | None]:
        """The text to train on, its language and None; or "", "" and the reason why the document leaves."""
        if not text.strip():
            return "", "", "empty"
        text = arabic.normalise(markup.strip_html(text), self._settings.tatweel)
        text, removed = markup.remove_boilerplate_lines(text)
        if removed:
            text = arabic.normalise(text, self._settings.tatweel)
        if not text:
            return "", "", "empty after cleaning"
        language, text, foreign = main_language(text)
        if language is None:
            return "", "", "language not told"
        if language not in self._filters:
            return "", "", f"language {language} not kept"
        reason = self._filters[language].refuse(text)
        if reason is not None:
            return "", "", reason
        if removed:
            account.edits["boilerplate lines removed"] += removed
        if foreign:
            account.edits["paragraphs in another language removed"] += foreign
        return text, language, None


def main_language(text: str) -> tuple[str | None, str, int]:
    """The language of a text by its script (`ar`, `en`), the text in that language, paragraphs taken out.

    A text whose letters are to 85 % of one script is that language's, whole. A mixed one keeps the paragraphs that are
    mainly in the script that has more letters overall. None where there are no letters.
    """
    arabic_letters, latin_letters = arabic.letter_counts(text)
    letters = arabic_letters + latin_letters
    if letters == 0:
        return None, "", 0
    language = "ar" if arabic_letters >= latin_letters else "en"
    if max(arabic_letters, latin_letters) / letters >= _MAIN_SHARE:
        return language, text, 0
    paragraphs = text.split("\n")
    kept = []
    for paragraph in paragraphs:
        ours, others = arabic.letter_counts(paragraph)
        if language == "en":
            ours, others = others, ours
        if ours >= others:
            kept.append(paragraph)
    return language, arabic.normalise("\n".join(kept), tatweel="keep"), len(paragraphs) - len(kept)
