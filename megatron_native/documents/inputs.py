"""Inputs: from the paths, globs and folders a user names to the files that are read, each once, in a fixed order."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path

from megatron_native.errors import UserError

_COMPRESSIONS = ("", ".gz", ".zst", ".bz2")
JSON_SUFFIXES = tuple(kind + compression for kind in (".jsonl", ".json", ".ndjson") for compression in _COMPRESSIONS)
TEXT_SUFFIXES = tuple(".txt" + compression for compression in _COMPRESSIONS)
PARQUET_SUFFIXES = (".parquet",)
ARROW_SUFFIXES = (".arrow",)
ZIP_SUFFIXES = (".zip",)
READABLE_SUFFIXES = (*JSON_SUFFIXES, *TEXT_SUFFIXES, *PARQUET_SUFFIXES, *ARROW_SUFFIXES, *ZIP_SUFFIXES)
KINDS = ".jsonl, .json (also arrays), .txt, each also .gz, .zst or .bz2; .zip of these; .parquet; .arrow"


def is_json(name: str) -> bool:
    """Whether a file of this name (in lower case) holds JSON lines or an array."""
    return name.endswith(JSON_SUFFIXES)


def is_text(name: str) -> bool:
    """Whether a file of this name (in lower case) holds plain text."""
    return name.endswith(TEXT_SUFFIXES)


def expand_inputs(patterns: Sequence[str]) -> list[Path]:
    """Files that paths, globs and folders name, each once, in the order given; a folder means its readable files, sorted.

    Files and folders whose name begins with `_` or `.` (quarantine, progress) are passed over inside folders; of a
    stage folder, wherever it lies, only the documents in its manifest are taken; of a `datasets` folder its data files.

    Raises:
        UserError: a pattern that names nothing readable, a link that leads nowhere, a stage that is not whole.
    """
    found: dict[Path, Path] = {}
    for pattern in map(str, patterns):
        path = Path(pattern)
        if path.is_dir():
            files = _folder_files(path)
            if not files:
                raise UserError(f"the folder {pattern} holds no file that can be read ({KINDS}).")
        elif path.exists() or path.is_symlink():
            files = [path]
        else:
            matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
            files = [match for match in matches if not match.is_dir()]
            if not files:
                raise UserError(f"{pattern} does not exist and matches no file; check the path (globs need quotes).")
        for file in files:
            _check_readable(file)
            found.setdefault(Path.cwd() / file, file)
    return list(found.values())


def check_line_limit(max_line_bytes: int) -> None:
    """Raise a UserError for a limit under which no line could be read."""
    if max_line_bytes < 1:
        raise UserError(f"--max-line-bytes {max_line_bytes}: it must be 1 or more (64 MiB is 67108864).")


def unknown_kind(path: Path) -> UserError:
    """The error for a file whose ending says nothing."""
    return UserError(f"{path}: this kind of file is not read; known are {KINDS}.")


def _check_readable(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {path.readlink()}, which does not exist; mend the link.")
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder; give a file of documents.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} can't be read: permission denied.")
    if not path.name.lower().endswith(READABLE_SUFFIXES):
        raise unknown_kind(path)


def _folder_files(folder: Path) -> list[Path]:
    """Every readable file of a folder and its sub-folders; of a stage folder the documents that its manifest knows."""
    if (folder / "manifest.json").is_file():
        return _stage_files(folder)
    if (folder / "_progress").is_dir():
        raise UserError(f"{folder} holds a stage that did not finish: run that command again first.")
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return _saved_dataset_files(folder)
    files = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(("_", ".")) or path.name == "dataset_dict.json":
            continue
        if path.is_dir():
            if path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
                raise UserError(f"{path} is a link to a folder around it; remove the link.")
            files += _folder_files(path)
        elif path.name.lower().endswith(READABLE_SUFFIXES):
            files.append(path)
    return files


def _saved_dataset_files(folder: Path) -> list[Path]:
    """The data files of what `datasets.Dataset.save_to_disk` left, in its order."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'state.json'} is not what `datasets` saves ({error}); save the dataset again."
        ) from error
    if state.get("_indices_files"):
        raise UserError(f"{folder} is a selection over its files; save it again with datasets' flatten_indices().")
    for file in files:
        if not file.exists():
            raise UserError(f"{file} is named in {folder / 'state.json'} but not there; save the dataset again.")
    return files


def _stage_files(folder: Path) -> list[Path]:
    from megatron_native.manifest import read_manifest

    try:
        manifest = read_manifest(folder / "manifest.json")
    except UserError:
        raise UserError(
            f"{folder / 'manifest.json'} is no stage manifest, so what the folder holds is not known: name its files, for "
            f"instance '{folder}/*.jsonl.gz'."
        ) from None
    assert manifest is not None
    files = []
    for entry in manifest["outputs"]:
        hidden = any(part.startswith(("_", ".")) for part in Path(entry["path"]).parts)
        if hidden or not entry["path"].lower().endswith(READABLE_SUFFIXES):
            continue
        if not (folder / entry["path"]).exists():
            raise UserError(f"{folder / entry['path']} is in the folder's manifest but not there; redo that stage.")
        files.append(folder / entry["path"])
    return files


def common_root(patterns: Sequence[str], files: Sequence[Path]) -> Path:
    """The folder around all that was named; the places of files below it are kept in the output.

    A folder counts as itself, even if all its files lie in one sub-folder; a file counts with its folder, a glob with
    the folder before its first wildcard.
    """
    named = []
    for path in map(Path, patterns):
        if not path.exists():
            while glob.has_magic(str(path)):
                path = path.parent
        named.append(path if path.is_dir() else path.parent)
    folders = [folder.resolve() for folder in (*named, *(file.parent for file in files))]
    return Path(os.path.commonpath(folders))


def check_apart(patterns: Sequence[str], output: Path) -> None:
    """Refuse an output below a folder that is read: the next run would read it as input, and never be the same again.

    Raises:
        UserError: `output` lies in one of the folders that `patterns` name.
    """
    place = output.resolve()
    for folder in (Path(pattern) for pattern in patterns if Path(pattern).is_dir()):
        if not place.is_relative_to(folder.resolve()):
            continue
        below = place.relative_to(folder.resolve()).parts
        if not any(part.startswith(("_", ".")) for part in below):  # such folders are passed over by the readers
            raise UserError(f"--output {output} lies in the input folder {folder}; choose a place outside of it.")
