"""Where documents are from: sites after each stage, and the files of the raw input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_native.corpus.repeated_lines import site_of
from megatron_native.corpus.report.figures import InputFile, Source
from megatron_native.corpus.report.stages import Place

OTHERS = "(rare ones together)"
NOT_RECORDED = "not recorded"
_MOST = 100_000
_SHOWN = 25


def file_of(metadata: dict[str, Any]) -> str:
    """The raw input file that a document came from, or "" where it was not recorded."""
    origin = metadata.get("from")
    file = origin.get("file") if isinstance(origin, dict) else None
    return file if isinstance(file, str) else ""


def name_of(metadata: dict[str, Any]) -> str:
    """The site of a document, or else its file."""
    return site_of(metadata, file_of(metadata)) or NOT_RECORDED


class SourceTable:
    """Documents by site and stage; beyond 100,000 sites the rare ones are counted together."""

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._kept: dict[str, list[int]] = {}
        self._dropped: dict[str, list[int]] = {}
        self._knows_dropped = [False] * stages
        self.counted_together = False

    def keep(self, name: str, stage: int, size: int) -> None:
        """Count a document that a stage kept; `size` is its bytes, or 0 where the stage isn't the last one."""
        row = self._row(self._kept, name, self._stages + 1)
        row[stage] += 1
        row[-1] += size

    def drop(self, name: str, stage: int) -> None:
        """Count a document that a stage took out."""
        self._knows_dropped[stage] = True
        self._row(self._dropped, name, self._stages)[stage] += 1

    def _row(self, table: dict[str, list[int]], name: str, width: int) -> list[int]:
        row = table.get(name)
        if row is None:
            if len(table) >= _MOST:
                self._put_together(table, width)
            row = table[name] = [0] * width
        return row

    def _put_together(self, table: dict[str, list[int]], width: int) -> None:
        self.counted_together = True
        rare = sorted(table, key=lambda name: (sum(table[name][: self._stages]), name))[: _MOST // 2]
        rest = table.pop(OTHERS, [0] * width)
        for name in rare:
            if name != OTHERS:
                rest = [one + other for one, other in zip(rest, table.pop(name))]
        table[OTHERS] = rest

    def count(self) -> int:
        """How many sites there are."""
        return len(self._kept.keys() | self._dropped.keys())

    def top(self, givers: Mapping[int, Sequence[int]]) -> list[Source]:
        """The sites with most documents.

        `givers` are the stages that handed all they kept to one stage, and it read nothing else: then what it took out
        is what they kept and it did not.
        """
        nothing = [0] * (self._stages + 1)
        found = []
        for name in self._kept.keys() | self._dropped.keys():
            kept, dropped = self._kept.get(name, nothing), self._dropped.get(name, nothing)
            left: list[int | None] = []
            for stage, count in enumerate(dropped[: self._stages]):
                handed = givers.get(stage)
                if self._knows_dropped[stage]:
                    left.append(count)
                else:
                    left.append(None if handed is None else sum(kept[giver] for giver in handed) - kept[stage])
            found.append(Source(name, kept[:-1], left, kept[-1]))
        found.sort(key=lambda source: (-max([*source.kept, *(n or 0 for n in source.dropped)]), source.name))
        return found[:_SHOWN]


class FileTable:
    """What became of the records of each raw file, where one stage has read them."""

    def __init__(self, places: list[Place]) -> None:
        firsts = [place for place in places if not place.is_dataset and place.figures.column == 0]
        self.first = firsts[0] if len(firsts) == 1 else None
        self._left: dict[str, Counter[str]] = {"dropped": Counter(), "quarantined": Counter()}
        self._known = {"dropped": False, "quarantined": False}
        self._kept: Counter[str] = Counter()

    def leave(self, place: Place, kind: str, file: Any) -> None:
        """Count a record that a stage `dropped` or `quarantined`."""
        if place is self.first and isinstance(file, str):
            self._known[kind] = True
            self._left[kind][file] += 1

    def keep(self, metadata: dict[str, Any]) -> None:
        """Count a document that is kept at the end."""
        if self.first is not None and (file := file_of(metadata)):
            self._kept[file] += 1

    def top(self) -> tuple[list[InputFile], int]:
        """The files with most records, and how many files there are."""
        if self.first is None:
            return [], 0
        entries = self.first.manifest.get("inputs", [])
        known = {kind: self._known[kind] or not sum(getattr(self.first.figures, kind).values()) for kind in self._left}
        files = []
        for entry in entries:
            name = entry.get("source", entry["path"])

            def below(counts: Counter[str], name: str = name) -> int:
                return counts[name] + sum(n for file, n in counts.items() if file.startswith(f"{name}!"))

            files.append((entry.get("records"), name, below))
        files.sort(key=lambda file: (-(file[0] or 0), file[1]))
        return [
            InputFile(
                name,
                read,
                below(self._left["dropped"]) if known["dropped"] else None,
                below(self._left["quarantined"]) if known["quarantined"] else None,
                below(self._kept),
            )
            for read, name, below in files[:_SHOWN]
        ], len(files)
