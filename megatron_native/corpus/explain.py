"""Why a document left in dedup: the pair, its similarity, and what the two texts share and don't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_native.corpus.dedup import DUPLICATES
from megatron_native.corpus.folding import fold
from megatron_native.documents.readers import read_documents
from megatron_native.documents.records import Document
from megatron_native.errors import UserError
from megatron_native.manifest import read_manifest

_SHOWN_CHARACTERS = 400
_SHOWN_SHINGLES = 5


def explain(output: Path, identifier: str) -> dict[str, Any]:
    """What a finished dedup folder says of a document.

    Raises:
        UserError: `output` is no dedup folder, or has nothing of such a document.
    """
    manifest = read_manifest(output / "manifest.json")
    if manifest is None or manifest["stage"] != "dedup":
        raise UserError(f"--explain: {output} is no finished dedup folder.")
    records = _duplicates(output)
    left = [record for record in records if record["id"] == identifier]
    copies = [record for record in records if record["copy_of"] == identifier]
    if not left and not copies:
        raise UserError(
            f"--explain {identifier}: no document of this id left or has copies; a document without copies stays, and one "
            "that was empty or could not be read is in the counts alone."
        )
    result: dict[str, Any] = {"id": identifier, "left": left, "copies": copies}
    if left:
        inputs = {entry["source"]: (output / entry["path"]).resolve() for entry in manifest["inputs"]}
        key = manifest["parameters"]
        gone = _find(inputs, left[0]["source"], identifier, key["text_key"], key["id_key"], key["text_unit"])
        kept = _stays(output, manifest, left[0])
        if gone and kept:
            result |= _compare(gone.text, kept.text, key["shingle_words"])
    return result


def _duplicates(output: Path) -> list[dict[str, Any]]:
    import io

    import zstandard

    found = []
    for path in sorted((output / DUPLICATES).glob("*.jsonl.zst")):
        with (
            open(path, "rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream,
        ):
            found += [json.loads(line) for line in io.TextIOWrapper(stream, encoding="utf-8")]
    return found


def _find(
    inputs: dict[str, Path], source: str, identifier: str, text_key: str, id_key: str, text_unit: str
) -> Document | None:
    path = inputs.get(source.split("!")[0])
    if path is None or not path.exists():
        return None
    records = read_documents(path, text_key, id_key, text_unit=text_unit)
    return next((record for record in records if isinstance(record, Document) and record.id == identifier), None)


def _stays(output: Path, manifest: dict[str, Any], left: dict[str, Any]) -> Document | None:
    """The text that a document is a copy of: of this stage, or of the earlier corpus that has it."""
    if "earlier_corpus" not in left:
        return _kept(output, manifest, left["copy_of"])
    folder = (output / left["earlier_corpus"]).resolve()
    earlier = read_manifest(folder / "manifest.json")
    return None if earlier is None else _kept(folder, earlier, left["copy_of"])


def _kept(output: Path, manifest: dict[str, Any], identifier: str) -> Document | None:
    for entry in manifest["outputs"]:
        if not entry["path"].startswith("_") and (output / entry["path"]).exists():
            for record in read_documents(output / entry["path"]):
                if isinstance(record, Document) and record.id == identifier:
                    return record
    return None


def _compare(gone: str, kept: str, size: int) -> dict[str, Any]:
    ours, theirs = _shingles(gone, size), _shingles(kept, size)
    return {
        "jaccard": round(len(ours & theirs) / max(1, len(ours | theirs)), 4), "shared_shingles": len(ours & theirs),
        "only_in_the_one_that_left": sorted(ours - theirs)[:_SHOWN_SHINGLES], "only_in_the_one_that_stays":
        sorted(theirs - ours)[:_SHOWN_SHINGLES], "text": gone[:_SHOWN_CHARACTERS], "kept_text": kept[:_SHOWN_CHARACTERS],
    }  # fmt: skip


def _shingles(text: str, size: int) -> set[str]:
    words = fold(text).split()
    return {" ".join(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}


def _named(record: dict[str, Any]) -> str:
    """What a document that left is a copy of, in words."""
    if "earlier_corpus" not in record:
        return f"{record['reason']} of {record['copy_of']}"
    again = ", which stays here in a new form" if record["new_form_stays"] else ""
    return f"{record['reason']}: {record['copy_of']} as it is in {record['earlier_corpus']}{again}"


def print_explanation(found: dict[str, Any], as_json: bool) -> None:
    """Print it on stdout."""
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for record in found["left"]:
        print(
            f"{record['id']} ({record['source']}) left: {_named(record)}, "
            f"estimated similarity {record['similarity']:.3f}"
        )
    if "jaccard" in found:
        print(f"  exact Jaccard similarity {found['jaccard']:.3f}, {found['shared_shingles']} shingles shared")
        for title, key in (
            ("only in the one that left", "only_in_the_one_that_left"),
            ("only in the one that stays", "only_in_the_one_that_stays"),
        ):
            for shingle in found[key]:
                print(f"  {title}: {shingle}")
        print(f"\n  left:  {found['text']}\n\n  stays: {found['kept_text']}")
    for record in found["copies"]:
        print(f"{found['id']} stays for {record['id']} ({record['reason']}, {record['similarity']:.3f})")
