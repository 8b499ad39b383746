"""Earlier corpora that a dedup is held against: the signatures that their own dedup left in `_signatures/`.

`_signatures/` holds a `.signatures`, `.ids` and `.stays` file for every part, and `signatures.json`: how they were made, and
their checksums. Its own checksum stands for the earlier corpus in the manifest of every dedup held against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from megatron_native.corpus.minhash import SEED, MinHashSettings, Signer
from megatron_native.corpus.signatures import SignaturePart, StoredPart
from megatron_native.corpus.stage import MANIFEST, PROGRESS
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest, parameter_differences, read_manifest, write_json

SIGNATURES = "_signatures"
INDEX = "signatures.json"
FORMAT = "megatron-native/signatures/1"
_SIGNED = "كَتَبَ الطّالبُ الدرسَ الأوّلَ في ١٢ صفحةً، ثم قرأه على معلّمته في المـــدرسة."
"""A text whose signature tells whether two versions of this software sign alike."""


@dataclass(frozen=True)
class EarlierCorpus:
    """A finished dedup folder with its signatures.

    Attributes:
        folder: the dedup folder, absolute.
        digest: xxh3_128 of its `signatures.json`.
        names: of its parts.
        documents: that its dedup read.
        stay: how many of them stayed.
    """

    folder: Path
    digest: str
    names: tuple[str, ...]
    documents: int
    stay: int

    def parts(self) -> list[StoredPart]:
        """The signature files, opened."""
        return [StoredPart(self.folder / SIGNATURES / f"{name}.signatures") for name in self.names]

    def ids(self) -> list[Path]:
        """The parts' files of ids."""
        return [self.folder / SIGNATURES / f"{name}.ids" for name in self.names]


def signature_parameters(settings: MinHashSettings) -> dict[str, Any]:
    """What two sets of signatures must have in common to be compared."""
    signed = Signer(settings).sign(_SIGNED)
    check = xxhash.xxh3_64_hexdigest(signed.digest + signed.bands.tobytes() + signed.sketch.tobytes())
    return {
        "shingle_words": settings.shingle_words, "bands": settings.bands, "rows": settings.rows, "seed": SEED,
        "matching_view": check,
    }  # fmt: skip


def store_signatures(folder: Path, names: Sequence[str], settings: MinHashSettings, output: Path) -> None:
    """Make `folder`, with the signature files of all parts, the `_signatures/` of the dedup folder `output`."""
    place = output / SIGNATURES
    if place.exists():  # killed between this and the manifest
        return
    parts = [StoredPart(folder / f"{name}.signatures") for name in names]
    files = sorted(path for name in names for path in _files(folder, name))
    for path in set(folder.iterdir()) - set(files):
        path.unlink()
    write_json(folder / INDEX, {
        "format": FORMAT, "parameters": signature_parameters(settings), "parts": list(names),
        "documents": sum(part.documents for part in parts), "stay": sum(int(part.stays().sum()) for part in parts),
        "files": {path.name: {"bytes": path.stat().st_size, "xxh3_128": file_digest(path)} for path in files},
    })  # fmt: skip
    folder.rename(place)


def _files(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}.{kind}" for kind in ("signatures", "stays", "ids", "ids.ends")]


def open_earlier(folders: Sequence[Path], settings: MinHashSettings, output: Path) -> list[EarlierCorpus]:
    """The earlier corpora in the dedup folders `folders`.

    Raises:
        UserError: one is no finished dedup folder, was made without `--keep-signatures`, is not whole any more, has
            signatures that can't be compared with those of `settings`, is named twice, or is `output` itself.
    """
    found: dict[Path, EarlierCorpus] = {}
    for given in folders:
        folder = given.resolve()
        if folder == output.resolve():
            raise UserError(f"--against {given} is the output itself; name the folder of an earlier dedup.")
        if folder in found:
            raise UserError(f"--against names {given} twice; name it once.")
        found[folder] = _opened(given, folder, settings)
    return list(found.values())


def _opened(given: Path, folder: Path, settings: MinHashSettings) -> EarlierCorpus:
    if not folder.is_dir():
        raise UserError(f"--against {given} is no folder; name the output folder of an earlier dedup.")
    if (folder / PROGRESS).is_dir() and not (folder / MANIFEST).exists():
        raise UserError(f"--against {given} holds a dedup that did not finish: run that command again first.")
    manifest = read_manifest(folder / MANIFEST)
    if manifest is None or manifest["stage"] != "dedup":
        raise UserError(f"--against {given} is no dedup folder; name the output folder of an earlier dedup.")
    path = folder / SIGNATURES / INDEX
    if not path.is_file():
        raise UserError(
            f"--against {given} has no {SIGNATURES}/{INDEX}: its dedup was made without --keep-signatures. Delete the folder "
            "and make it anew with that option."
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']!r}")
        differing = parameter_differences(index["parameters"], signature_parameters(settings))
        files = {name: int(entry["bytes"]) for name, entry in index["files"].items()}
        corpus = EarlierCorpus(folder, file_digest(path), tuple(index["parts"]), index["documents"], index["stay"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--against {given}: {path} can't be read as {FORMAT} ({error}); make the folder anew."
        ) from None
    if differing:
        raise UserError(
            f"--against {given}: its signatures can't be compared with those of this dedup ({'; '.join(differing)}); give "
            "the same options, or make that folder anew."
        )
    for name, size in files.items():
        file = folder / SIGNATURES / name
        there = file.stat().st_size if file.is_file() else None
        if there != size:
            state = "is not there" if there is None else f"has {there} bytes"
            raise UserError(f"--against {given}: {file} {state}, but {path} says {size} bytes; make the folder anew.")
    return corpus


def parts_of(
    corpora: Sequence[EarlierCorpus], signatures: Path, names: Sequence[str]
) -> tuple[list[SignaturePart], int]:
    """The parts of all documents, those of the earlier corpora first, and how many documents are in these."""
    stored: list[SignaturePart] = [part for corpus in corpora for part in corpus.parts()]
    own = [SignaturePart(signatures / f"{name}.signatures") for name in names]
    return [*stored, *own], sum(part.documents for part in stored)


def manifest_entries(corpora: Sequence[EarlierCorpus], output: Path) -> list[Mapping[str, Any]]:
    """What the manifest in `output` says of the earlier corpora."""
    import os

    return [
        {
            "path": os.path.relpath(corpus.folder, output), "signatures_xxh3_128": corpus.digest,
            "documents": corpus.documents, "stay": corpus.stay,
        }
        for corpus in corpora
    ]  # fmt: skip
