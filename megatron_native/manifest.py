"""Manifests: the JSON beside every output that says what it is, what it was made of and that nothing was lost.

In go the files a stage read and wrote and its account of records; out comes `manifest.json` (or
`PREFIX.manifest.json` beside an indexed dataset). A manifest whose account does not balance is never written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from megatron_native import __version__
from megatron_native.errors import UserError

FORMAT = "megatron-native/manifest/1"
_CHUNK_BYTES = 1 << 22
_SHOWN_DIFFERENCES = 6


def file_digest(path: Path) -> str:
    """xxh3_128 of a file's bytes, in hex."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def file_entry(path: Path, relative_to: Path, records: int | None = None) -> dict[str, Any]:
    """One line of `inputs` or `outputs`: path relative to the manifest's folder, bytes, xxh3_128, records."""
    entry: dict[str, Any] = {
        "path": os.path.relpath(path, relative_to),
        "bytes": path.stat().st_size,
        "xxh3_128": file_digest(path),
    }
    if records is not None:
        entry["records"] = records
    return entry


def parameters_hash(parameters: Mapping[str, Any]) -> str:
    """sha256 of the parameters as canonical JSON: equal parameters, equal hash, whatever their order."""
    canonical = json.dumps(parameters, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def software_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of this project and of the named installed packages; a package that is absent is left out."""
    versions = {"megatron-native": __version__}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def source_commit() -> list[str]:
    """The commit of this package, then what differs from it (`git status --porcelain`); empty outside of a repository."""
    folder = Path(__file__).resolve().parents[1]
    lines: list[str] = []
    for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            break
        if done.returncode:
            break
        lines += done.stdout.splitlines()
    return lines


def check_balance(stage: str, counts: Mapping[str, Any]) -> None:
    """Every record read is kept, dropped for a reason or quarantined for a reason.

    Raises:
        RuntimeError: the account does not balance, which is a defect of the stage and never of the input.
    """
    accounted = counts["kept"] + sum(counts["dropped"].values()) + sum(counts["quarantined"].values())
    if counts["read"] != accounted:
        raise RuntimeError(f"{stage}: {counts['read']} records read but {accounted} accounted for: {dict(counts)}")


def build_manifest(
    stage: str,
    parameters: Mapping[str, Any],
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    counts: Mapping[str, Any],
    packages: Iterable[str] = (),
    **extra: Any,
) -> dict[str, Any]:
    """The manifest of one stage.

    `counts` holds `read`, `kept`, `dropped` (reason → records) and `quarantined` (reason → records), and may
    hold more (bytes, tokens); `inputs` and `outputs` are lists of `file_entry`.
    """
    check_balance(stage, counts)
    return {
        "format": FORMAT,
        "stage": stage,
        "parameters": dict(parameters),
        "parameters_hash": parameters_hash(parameters),
        "inputs": inputs,
        "outputs": outputs,
        "counts": dict(counts),
        "software": software_versions(packages),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **extra,
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside its place and rename it there, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def json_value(value: Any) -> Any:
    """A value as JSON can say it: numbers that are none (`"inf"`, `"nan"`) and paths as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def stage_manifest_of(path: Path) -> Path | None:
    """The manifest of the stage folder that a file lies in, which may be split into sub-folders; None where there is none."""
    places = (path.parent / "manifest.json", path.parent.parent / "manifest.json")
    return next((place for place in places if place.is_file()), None)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest at `path`, or None where there is none.

    Raises:
        UserError: the file is there but is not a manifest of this format.
    """
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable manifest ({error}); delete it to redo this stage.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not a {FORMAT} manifest; delete it, or choose another output, to go on.")
    return manifest


def parameter_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two sets of parameters, one sentence a value; nested ones are named with dots."""
    flat_there, flat_here = (_flatten(json.loads(json.dumps(dict(values)))) for values in (there, here))
    differing = [key for key in sorted({*flat_there, *flat_here}) if flat_there.get(key) != flat_here.get(key)]
    sentences = [
        f"{key}: {flat_there.get(key, 'unset')!r} there, {flat_here.get(key, 'unset')!r} asked for"
        for key in differing[:_SHOWN_DIFFERENCES]
    ]
    if len(differing) > _SHOWN_DIFFERENCES:
        sentences.append(f"and {len(differing) - _SHOWN_DIFFERENCES} more")
    return sentences


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def already_done(path: Path, stage: str, parameters: Mapping[str, Any], inputs: list[dict[str, Any]]) -> bool:
    """Whether `path` is the manifest of this very stage, parameters and inputs: then the work can be skipped.

    `inputs` are compared by their digests. Raises `UserError`, with the difference shown, when a manifest is
    there for other parameters or inputs: mixing two settings in one folder is never right.
    """
    manifest = read_manifest(path)
    if manifest is None:
        return False
    if manifest["stage"] != stage:
        raise UserError(f"{path} belongs to the stage '{manifest['stage']}', not '{stage}'; choose another output.")
    differences = parameter_differences(manifest["parameters"], parameters)
    before = {entry["xxh3_128"] for entry in manifest["inputs"]}
    now = {entry["xxh3_128"] for entry in inputs}
    if before != now:
        changed = [entry["path"] for entry in inputs if entry["xxh3_128"] not in before]
        gone = [entry["path"] for entry in manifest["inputs"] if entry["xxh3_128"] not in now]
        differences.append(f"inputs: new or changed {changed or 'none'}, gone or changed {gone or 'none'}")
    if differences:
        raise UserError(
            f"{path} was made with other settings or inputs: " + "; ".join(differences)
            + ". Choose another output, or delete what was made there to make it anew."
        )
    return True
