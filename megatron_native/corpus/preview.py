"""A preview of clean: what would be kept, what each filter refuses and what that looks like, with nothing written."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from megatron_native.corpus.clean import CleanSettings
from megatron_native.documents.inputs import check_line_limit, common_root, expand_inputs
from megatron_native.documents.parts import plan_parts
from megatron_native.documents.records import Refusal
from megatron_native.errors import UserError
from megatron_native.progress import progress

_PLACES = 16
"""Parts, spread evenly over the inputs, from whose beginnings the preview takes documents."""
_SAMPLES = 3
_SAMPLE_CHARACTERS = 160


@dataclass
class Preview:
    """What clean would do to a sample.

    Attributes:
        read: records looked at.
        kept, refused: documents by bucket; refused ones by bucket and reason.
        quarantined: records that can't be read, by reason.
        samples: (bucket, reason) → (id, beginning of the text) of the first few.
        edits: what would be done to the kept ones.
    """

    read: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    refused: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    quarantined: Counter[str] = field(default_factory=Counter)
    samples: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    edits: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "read": self.read, "kept": dict(self.kept), "quarantined": dict(self.quarantined), "edits": dict(self.edits),
            "refused": {bucket: dict(reasons) for bucket, reasons in self.refused.items()},
            "samples": [
                {"bucket": bucket, "reason": reason, "id": identifier, "text": text}
                for (bucket, reason), found in self.samples.items() for identifier, text in found
            ],
        }  # fmt: skip


def preview(inputs: Sequence[str], settings: CleanSettings, documents: int = 2000) -> Preview:
    """Clean about `documents` documents, from places spread evenly over the inputs, and write nothing.

    Raises:
        UserError: an input, the preset or a language can't be used.
    """
    from megatron_native.corpus.cleaner import Cleaner, CleanerSettings
    from megatron_native.documents.readers import read_part

    if documents < 1:
        raise UserError(f"--preview-documents {documents}: it must be 1 or more.")
    check_line_limit(settings.reading.max_line_bytes)
    thresholds = settings.thresholds()
    files = expand_inputs(inputs)
    parts = plan_parts(files, common_root(inputs, files), settings.reading.text_unit, settings.part_bytes)
    chosen = parts[:: max(1, len(parts) // _PLACES)][:_PLACES]
    cleaner = Cleaner(CleanerSettings(settings.preset, thresholds, settings.tatweel, settings.mask_pii))
    result = Preview()
    with progress("preview", documents) as bar:
        for index, part in enumerate(chosen):
            wanted = (documents - result.read) // (len(chosen) - index)
            for record in islice(read_part(part, settings.reading), max(1, wanted)):
                result.read += 1
                bar.advance()
                if isinstance(record, Refusal):
                    result.quarantined[record.reason] += 1
                    _keep_sample(result, "quarantine", record.reason, f"{record.source}:{record.offset}", record.raw)
                    continue
                cleaned = cleaner.clean(record.text, result.edits)
                bucket = cleaned.language or "?"
                if cleaned.reason is None:
                    result.kept[bucket] += 1
                else:
                    result.refused[bucket][cleaned.reason] += 1
                    _keep_sample(result, bucket, cleaned.reason, record.id, cleaned.text or record.text)
    return result


def _keep_sample(result: Preview, bucket: str, reason: str, identifier: str, text: str) -> None:
    if len(found := result.samples[bucket, reason]) < _SAMPLES:
        found.append((identifier, " ".join(text[: 2 * _SAMPLE_CHARACTERS].split())[:_SAMPLE_CHARACTERS]))


def print_preview(result: Preview, as_json: bool) -> None:
    """Print keep rates and samples on stdout."""
    if as_json:
        print(json.dumps(result.as_json(), ensure_ascii=False, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"preview of {result.read:,} records (nothing written)", title_justify="left")
    table.add_column("bucket")
    for name in ("documents", "kept", "keep rate"):
        table.add_column(name, justify="right")
    table.add_column("refused for")
    for bucket in sorted({*result.kept, *result.refused}):
        kept, refused = result.kept[bucket], result.refused.get(bucket, Counter())
        documents = kept + refused.total()
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in refused.most_common())
        table.add_row(bucket, f"{documents:,}", f"{kept:,}", f"{100 * kept / documents:.1f} %", reasons)
    if result.quarantined:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in result.quarantined.most_common())
        table.add_row("not read", f"{result.quarantined.total():,}", "0", "", reasons)
    console = Console(width=110, highlight=False)
    console.print(table)
    for (bucket, reason), found in sorted(result.samples.items()):
        console.print(f"\n[bold]{escape(bucket)} · {escape(reason)}[/bold]")
        for identifier, text in found:
            console.print(f"  {escape(identifier)}: {escape(text)}")
