"""The stages of a run: their folders and datasets found, linked by the files they handed on, and the account checked.

A stage is linked to another when it read a file that the other one wrote, told by its place or, where the folders were
moved apart, by its checksum. With the links, every record that came in from outside can be followed to where it is now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_native.corpus.report.figures import Check, Link, Stage, Totals
from megatron_native.corpus.report.reading import tokens_in_index
from megatron_native.errors import UserError
from megatron_native.manifest import read_manifest

COPIES = ("exact copy", "near copy", "exact copy of an earlier corpus", "near copy of an earlier corpus")
"""Reasons of dedup that are counted as duplicates."""
_ENDINGS = (".manifest.json", ".bin", ".idx")


@dataclass
class Place:
    """Where a stage lies, with its manifest ({} for a dataset without one)."""

    name: str
    folder: Path
    manifest: dict[str, Any]
    figures: Stage
    is_dataset: bool = False
    takers: Counter[str] = field(default_factory=Counter)
    """Its output files, by their path in the manifest, with how many of the given stages read each."""

    def document_files(self) -> list[dict[str, Any]]:
        """The manifest's entries of the files with documents."""
        if self.is_dataset:
            return []
        return [
            entry for entry in self.manifest.get("outputs", []) if not entry["path"].startswith(("_", "duplicates."))
        ]


def find_stages(inputs: Sequence[str]) -> list[Place]:
    """The stages that `inputs` name: stage folders, dataset prefixes, or folders of datasets; each once, in that order.

    Raises:
        UserError: something else.
    """
    places: dict[Path, Place] = {}
    for given in inputs:
        for key, place in _named_by(given):
            places.setdefault(key, place)
    return list(places.values())


def _named_by(given: str) -> list[tuple[Path, Place]]:
    path = Path(given.rstrip("/") or "/")
    if path.name == "manifest.json" and path.is_file():
        path = path.parent
    if path.is_dir():
        if (path / "manifest.json").is_file():
            manifest = read_manifest(path / "manifest.json") or {}
            return [(path.resolve(), Place(str(path), path, manifest, _figures(str(path), manifest)))]
        datasets = sorted({_prefix(file) for ending in (".manifest.json", ".idx") for file in path.glob(f"*{ending}")})
        if datasets:
            return [_dataset(prefix) for prefix in datasets]
        if (path / "_progress").is_dir():
            raise UserError(f"--input {given} holds a stage that did not finish: run that command again first.")
        around = next((parent for parent in path.absolute().parents if (parent / "manifest.json").is_file()), None)
        hint = (
            f"it lies in the stage folder {around}: give that" if around else "give what clean, dedup or tokenize wrote"
        )
        raise UserError(f"--input {given} holds no manifest.json and no dataset; {hint}.")
    prefix = _prefix(path)
    if not any(_beside(prefix, ending).is_file() for ending in (".manifest.json", ".idx")):
        raise UserError(
            f"--input {given} is neither a stage folder nor the prefix of a dataset (there is no {prefix.name}.manifest.json "
            "and no .idx beside it)."
        )
    return [_dataset(prefix)]


def _prefix(path: Path) -> Path:
    ending = next((ending for ending in _ENDINGS if path.name.endswith(ending)), "")
    return path.with_name(path.name.removesuffix(ending))


def _beside(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _dataset(prefix: Path) -> tuple[Path, Place]:
    manifest = read_manifest(_beside(prefix, ".manifest.json"))
    if manifest is not None:
        figures = _figures(str(prefix), manifest)
    else:
        tokens, documents = tokens_in_index(prefix)
        figures = Stage(str(prefix), "dataset", kept=documents, tokens=tokens)
    return prefix.resolve(), Place(str(prefix), prefix.parent, manifest or {}, figures, is_dataset=True)


def _figures(name: str, manifest: Mapping[str, Any]) -> Stage:
    counts = manifest.get("counts", {})
    return Stage(
        name=name,
        kind=str(manifest.get("stage", "?")),
        read=counts.get("read"),
        kept=counts.get("kept"),
        dropped=dict(counts.get("dropped", {})),
        quarantined=dict(counts.get("quarantined", {})),
        read_by_language=dict(counts.get("read_by_language", {})),
        kept_by_language=dict(counts.get("kept_by_language", {})),
        edits=dict(counts.get("edits", {})),
        bytes_read=counts.get("bytes_read"),
        bytes_kept=counts.get("bytes_kept", counts.get("text_bytes")),
        tokens=manifest.get("tokens"),
        parameters=dict(manifest.get("parameters", {})),
        software=dict(manifest.get("software", {})),
        created=manifest.get("created"),
        parameters_hash=manifest.get("parameters_hash"),
        tokenizer=manifest.get("tokenizer"),
    )


def link(places: Sequence[Place], checks: list[Check]) -> list[Link]:
    """Who read what of whom; columns, what is left unread and what was handed over wrongly are noted on the way."""
    handed: Counter[tuple[int, int]] = Counter()
    outputs = _Outputs(places)
    for taker, place in enumerate(places):
        for entry in place.manifest.get("inputs", []):
            found = outputs.giver(taker, entry)
            if found is None:
                continue
            giver, output = found
            places[giver].takers[output["path"]] += 1
            records = entry.get("records", output.get("records"))
            if records is None:
                checks.append(
                    Check("hand-over", None, f"{place.name} did not record how much it read of {output['path']}")
                )
                continue
            handed[giver, taker] += records
            wrote = output.get("records", records)
            if wrote != records:
                detail = (
                    f"{places[giver].name} wrote {wrote:,} records to {output['path']}, {place.name} read {records:,}"
                )
                checks.append(Check("hand-over", False, detail))
    _set_columns(places, handed)
    for place in places:
        if place.takers:
            left = [entry.get("records") for entry in place.document_files() if not place.takers[entry["path"]]]
            place.figures.unread = sum(records or 0 for records in left)
    return [Link(giver, taker, records) for (giver, taker), records in sorted(handed.items())]


class _Outputs:
    """Which of the stages wrote a file, by its place or its checksum."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._by_path: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._by_digest: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for number, place in enumerate(places):
            for entry in place.document_files():
                self._by_path.setdefault((place.folder / entry["path"]).resolve(), (number, entry))
                if "xxh3_128" in entry:
                    self._by_digest.setdefault(entry["xxh3_128"], []).append((number, entry))

    def giver(self, taker: int, entry: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """The stage that wrote what `taker` read, and that file's entry among its outputs.

        Two stages may have written the same bytes: then it is the last one before `taker`.
        """
        found = self._by_path.get((self._places[taker].folder / entry["path"]).resolve())
        if found is not None:
            return found if found[0] != taker else None
        created = [place.figures.created or "" for place in self._places]
        same = [
            (number, output)
            for number, output in self._by_digest.get(entry.get("xxh3_128", ""), [])
            if number != taker and created[number] <= created[taker]
        ]
        return max(same, key=lambda one: (created[one[0]], -one[0]), default=None)


def _set_columns(places: Sequence[Place], handed: Mapping[tuple[int, int], int]) -> None:
    for _ in places:  # the longest way to a stage has fewer steps than there are stages
        for giver, taker in handed:
            column = places[giver].figures.column + 1
            if column < len(places):
                places[taker].figures.column = max(places[taker].figures.column, column)


def check_account(places: Sequence[Place], links: Sequence[Link], checks: list[Check]) -> Totals | None:
    """The totals over all stages, with a check for each stage; None where a stage has recorded too little."""
    totals, complete = Totals(), True
    for number, place in enumerate(places):
        stage = place.figures
        _check_files(place, checks)
        if stage.tokens is not None:
            totals.tokens = (totals.tokens or 0) + stage.tokens
        if stage.read is None or stage.kept is None:
            complete = False
            checks.append(Check("account of the stage", None, f"{stage.name}: not recorded"))
            continue
        dropped, quarantined = sum(stage.dropped.values()), sum(stage.quarantined.values())
        accounted = stage.kept + dropped + quarantined
        sign = "=" if stage.read == accounted else "≠"
        parts = f"{stage.kept:,} kept + {dropped:,} dropped + {quarantined:,} quarantined"
        detail = f"{stage.name}: {stage.read:,} read {sign} {parts}"
        checks.append(Check("account of the stage", stage.read == accounted, detail))
        handed_in = sum(one.records for one in links if one.taker == number)
        if handed_in > stage.read:
            detail = f"{stage.name} read {stage.read:,} records, but was handed {handed_in:,}"
            checks.append(Check("hand-over", False, detail))
        totals.read += stage.read - handed_in
        again = {path: takers - 1 for path, takers in place.takers.items() if takers > 1}
        totals.read_again += sum(
            again.get(entry["path"], 0) * entry.get("records", 0) for entry in place.document_files()
        )
        copies = sum(count for reason, count in stage.dropped.items() if reason in COPIES)
        totals.duplicates += copies
        totals.dropped += dropped - copies
        totals.quarantined += quarantined
        totals.kept += stage.kept if stage.unread is None else stage.unread
    return totals if complete else None


def _check_files(place: Place, checks: list[Check]) -> None:
    """The files of the manifest are there and as long as it says, and hold as many documents as were kept."""
    faults, outputs = [], place.manifest.get("outputs", [])
    for entry in outputs:
        file = place.folder / entry["path"]
        if not file.is_file():
            faults.append(f"{entry['path']} is gone")
        elif "bytes" in entry and file.stat().st_size != entry["bytes"]:
            faults.append(f"{entry['path']} has {file.stat().st_size:,} bytes, the manifest says {entry['bytes']:,}")
    if faults:
        checks.append(Check("files", False, f"{place.name}: {'; '.join(faults)}"))
    elif outputs:
        checks.append(
            Check("files", True, f"{place.name}: {len(outputs):,} files are there, as long as the manifest says")
        )
    listed = [entry["records"] for entry in place.document_files() if entry.get("records") is not None]
    kept = place.figures.kept
    if len(listed) == len(place.document_files()) > 0 and kept is not None and sum(listed) != kept:
        detail = f"{place.name}: the manifest lists {sum(listed):,} documents in files, but {kept:,} kept"
        checks.append(Check("files", False, detail))
