"""A stage over shards: outputs written beside and renamed, finished parts kept, the account balanced at the end.

A stage folder holds `part-00000.jsonl.zst …` (in sub-folders where the stage splits them), `_quarantine/` with the
refused records, and `manifest.json`. While the stage works, `_progress/` holds what every finished part counted, so
that a killed run goes on where it was; it is removed when the manifest is written.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from megatron_native.errors import UserError
from megatron_native.manifest import (
    already_done,
    build_manifest,
    file_entry,
    parameter_differences,
    parameters_hash,
    write_json,
)
from megatron_native.progress import progress

MANIFEST = "manifest.json"
QUARANTINE = "_quarantine"
PROGRESS = "_progress"


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

    def add(self, other: Account) -> None:
        """Add another part's account to this one."""
        for name in ("read", "kept", "bytes_read", "bytes_kept"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("dropped", "quarantined", "kept_by_language", "edits"):
            getattr(self, name).update(getattr(other, name))

    def as_counts(self) -> dict[str, Any]:
        """For a manifest: plain dictionaries, reasons by falling count."""
        return {
            name: dict(value.most_common()) if isinstance(value, Counter) else value for name, value in vars(self).items()
        }

    @classmethod
    def of(cls, counts: Mapping[str, Any]) -> Account:
        """An account from `as_counts`."""
        values: dict[str, Any] = {
            name: Counter(value) if isinstance(value, dict) else value for name, value in counts.items()
        }
        return cls(**values)


class ShardWriter:
    """A zstd-compressed JSONL file, made when the first record comes, written beside and renamed on a clean exit."""

    def __init__(self, path: Path) -> None:
        self.path, self.records = path, 0
        self._partial = path.with_name(path.name + ".partial")
        self._file: Any = None
        self._stream: Any = None

    def write(self, record: Any) -> None:
        """Append one record as a JSON line."""
        if self._stream is None:
            import zstandard

            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._partial, "wb")  # noqa: SIM115 (closed on exit)
            self._stream = zstandard.ZstdCompressor(level=3).stream_writer(self._file, closefd=False)
        self._stream.write(msgspec.json.encode(record) + b"\n")
        self.records += 1

    def __enter__(self) -> ShardWriter:
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._stream is None:
            return
        self._stream.close()
        self._file.close()
        if kind is None:
            self._partial.replace(self.path)
        else:
            self._partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class PartResult:
    """What one part left: its account and its files with their records."""

    account: Account
    outputs: list[tuple[str, int]]
    """Path relative to the stage folder, records."""


@dataclass(frozen=True)
class StageResult:
    """A finished stage."""

    output: Path
    manifest: dict[str, Any]
    skipped: bool
    """True when the very same stage had been done before."""


def run_stage(
    name: str,
    inputs: Sequence[Path],
    output: Path,
    parameters: Mapping[str, Any],
    work: Callable[[int, Path, Path], PartResult],
    workers: int,
    packages: Sequence[str],
    extra: Callable[[], Mapping[str, Any]] = dict,
) -> StageResult:
    """Do `work(part number, input file, stage folder)` for every input and write the manifest.

    `work` must be picklable when `workers` is above 1. Finished parts of a killed run are not done again.

    Raises:
        UserError: `output` holds something else, or the same stage with other parameters or inputs.
    """
    parameters = json.loads(json.dumps(dict(parameters)))  # as the manifest will have them
    # Names decide ids, so inputs are described from the working directory, as the user gave them.
    entries = [file_entry(path, Path.cwd()) for path in inputs]
    if already_done(output / MANIFEST, name, parameters, entries):
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        _check_outputs(output, manifest)
        shutil.rmtree(output / PROGRESS, ignore_errors=True)  # killed after its very last step
        return StageResult(output, manifest, skipped=True)
    _claim(name, output, parameters, entries)
    total = sum(entry["bytes"] for entry in entries)
    results: dict[int, PartResult] = {}
    with progress(name, total=total, unit="B") as bar:
        waiting = []
        for number, path in enumerate(inputs):
            done = _finished_part(output, number)
            if done is None:
                waiting.append((number, path))
            else:
                results[number] = done
                bar.advance(entries[number]["bytes"])
        for number, result in _work_through(waiting, output, work, workers):
            results[number] = result
            write_json(
                output / PROGRESS / f"part-{number:05d}.json",
                {"account": result.account.as_counts(), "outputs": result.outputs},
            )
            bar.advance(entries[number]["bytes"])
    account = Account()
    outputs = []
    for number in sorted(results):
        account.add(results[number].account)
        outputs += [file_entry(output / path, output, records) for path, records in results[number].outputs]
    manifest = build_manifest(
        name, parameters, entries, outputs, account.as_counts(), packages, lineage=_lineage(inputs), **extra()
    )
    write_json(output / MANIFEST, manifest)
    shutil.rmtree(output / PROGRESS)
    return StageResult(output, manifest, skipped=False)


def _check_outputs(output: Path, manifest: Mapping[str, Any]) -> None:
    """A stage that is done must still be whole; sizes are compared, contents are not read again."""
    for entry in manifest["outputs"]:
        path = output / entry["path"]
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            found = "is not there" if size is None else f"has {size} bytes"
            raise UserError(
                f"{path} {found}, but {output / MANIFEST} says {entry['bytes']} bytes: delete {output} to make it anew."
            )


def _claim(name: str, output: Path, parameters: Mapping[str, Any], entries: list[dict[str, Any]]) -> None:
    """Make the output folder this stage's: empty, or begun by the very same stage."""
    identity: dict[str, Any] = {
        "stage": name,
        "parameters": dict(parameters),
        "inputs": parameters_hash({"files": [[entry["path"], entry["xxh3_128"]] for entry in entries]}),
    }
    marker = output / PROGRESS / "stage.json"
    if marker.exists():
        begun = json.loads(marker.read_text(encoding="utf-8"))
        if begun != identity:
            differing = parameter_differences(begun["parameters"], identity["parameters"]) or ["the input files"]
            raise UserError(
                f"{output} holds an unfinished {begun['stage']} with other settings ({'; '.join(differing)}): finish that "
                "one, choose another output, or delete the folder."
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not empty and is no {name} stage: choose another output folder.")
    write_json(marker, identity)


def _finished_part(output: Path, number: int) -> PartResult | None:
    path = output / PROGRESS / f"part-{number:05d}.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    return PartResult(Account.of(record["account"]), [(name, records) for name, records in record["outputs"]])


def _work_through(
    waiting: list[tuple[int, Path]], output: Path, work: Callable[[int, Path, Path], PartResult], workers: int
) -> Any:
    if workers <= 1 or len(waiting) <= 1:
        for number, path in waiting:
            yield number, work(number, path, output)
        return
    with ProcessPoolExecutor(min(workers, len(waiting)), get_context("spawn"), _end_with_parent) as pool:
        futures = {pool.submit(work, number, path, output): number for number, path in waiting}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Have a worker process end when the main one is killed, lest it writes into the parts of the next run."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _lineage(inputs: Sequence[Path]) -> list[dict[str, str]]:
    """Hashes of the manifests that stand beside or above the inputs: the stages before this one."""
    from megatron_native.manifest import file_digest

    found: dict[Path, None] = {}
    for path in inputs:
        for folder in list(path.resolve().parents)[:3]:
            if (folder / MANIFEST).is_file():
                found.setdefault(folder / MANIFEST)
                break
    return [{"manifest": path.parent.name + "/" + path.name, "xxh3_128": file_digest(path)} for path in found]


def common_root(inputs: Sequence[Path]) -> Path:
    """The folder that all inputs lie in; their places below it are kept in the output."""
    parents = [path.parent.resolve() for path in inputs]
    root = parents[0]
    while not all(parent.is_relative_to(root) for parent in parents):
        root = root.parent
    return root


def settings_of(settings: Any) -> dict[str, Any]:
    """A settings dataclass as manifest parameters, paths as text."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
