"""The account of a stage: what became of every record that was read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_native.documents.records import Document, Refusal


@dataclass
class Account:
    """What became of the records of a part; `read` = `kept` + all `dropped` + all `quarantined`."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    kept_by_language: Counter[str] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)
    """What was done to kept documents, such as lines taken out."""
    bytes_read: int = 0
    bytes_kept: int = 0
    """UTF-8 bytes of text."""
    read_by_source: Counter[str] = field(default_factory=Counter)
    read_by_language: Counter[str] = field(default_factory=Counter)

    def note(self, record: Document | Refusal) -> None:
        """Count a record as read; a refused one as quarantined too."""
        self.read += 1
        self.read_by_source[record.source] += 1
        if isinstance(record, Refusal):
            self.quarantined[record.reason] += 1

    def add(self, other: Account) -> None:
        """Add another part's account to this one."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def as_counts(self) -> dict[str, Any]:
        """For a manifest: plain dictionaries, reasons by falling count."""
        return {
            name: dict(sorted(value.items(), key=lambda item: (-item[1], item[0])))
            if isinstance(value, Counter)
            else value
            for name, value in vars(self).items()
        }

    @classmethod
    def of(cls, counts: Mapping[str, Any]) -> Account:
        """An account from `as_counts`."""
        values: dict[str, Any] = {
            name: Counter(value) if isinstance(value, dict) else value for name, value in counts.items()
        }
        return cls(**values)
