"""A stage over documents: parts done by tasks, outputs written beside and renamed, the account balanced at the end.

A stage folder holds `part-00000.jsonl.zst …` (in sub-folders where the stage splits them), `_quarantine/` with the
refused records, and `manifest.json`. While the stage works, `_progress/` holds what every finished part left, so that a
killed run goes on where it was; it is removed when the manifest is written.

Tasks may run in local processes, on Ray, or as a Slurm job array: then every run of the array does its share, the one
that finishes a phase last goes on with what can't be shared, and all give the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from megatron_native.corpus.account import Account
from megatron_native.engine.tasks import Engine, OnRead, Share, make_engine
from megatron_native.errors import UserError
from megatron_native.manifest import (
    already_done,
    build_manifest,
    file_digest,
    parameter_differences,
    parameters_hash,
    write_json,
)
from megatron_native.progress import progress

MANIFEST = "manifest.json"
QUARANTINE = "_quarantine"
PROGRESS = "_progress"
_NOT_OUR_FAULT = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO,
}  # fmt: skip
"""What the operating system says when a disk is full or a place can't be written."""


@dataclass(frozen=True)
class Execution:
    """How a stage runs; nothing of it changes the output.

    Attributes:
        workers: processes of the local engine.
        engine: `local` or `ray`.
        address: of the Ray cluster.
        share: which part of the work this run does.
    """

    workers: int = 1
    engine: str = "local"
    address: str | None = None
    share: Share = field(default_factory=Share)

    def make_engine(self) -> Engine:
        """The engine, started."""
        return make_engine(self.engine, self.workers, self.address)


@dataclass(frozen=True)
class PartResult:
    """What one part left: its account and its files."""

    account: Account
    outputs: list[list[Any]]
    """[path relative to the stage folder, records, bytes, xxh3_128] each."""

    def as_json(self) -> dict[str, Any]:
        """For a progress file."""
        return {"account": self.account.as_counts(), "outputs": self.outputs}


@dataclass(frozen=True)
class StageResult:
    """A stage: finished, or (of a job array) with parts that other tasks have still to do."""

    output: Path
    manifest: dict[str, Any]
    """Empty as long as parts are missing."""
    skipped: bool
    """True when the very same stage had been done before."""
    missing: str = ""
    """What other tasks have still to do; empty when the stage is finished."""


class OthersAtWorkError(Exception):
    """This run has done its share of a job array; the message says what is missing."""


class StageRun:
    """A stage folder that is being worked in; made by `working_in`."""

    def __init__(
        self,
        name: str,
        output: Path,
        parameters: dict[str, Any],
        entries: list[dict[str, Any]],
        engine: Engine,
        share: Share,
    ) -> None:
        self.name, self.output, self.parameters, self.entries = name, output, parameters, entries
        self.engine, self.share = engine, share
        self.also_made_from: list[Path] = []
        """Stage folders beside those of the inputs whose manifests belong into the lineage."""

    def do(
        self,
        phase: str,
        tasks: Sequence[Any],
        work: Callable[[Any, OnRead], Any],
        sizes: Sequence[int] | None = None,
        unit: str = "B",
    ) -> list[Any]:
        """The results of all tasks of a phase, in order; those that are finished are not done again.

        `work(task, on_read)` gives what `json` can hold. Raises `OthersAtWorkError` when tasks of other runs are missing.
        """
        folder = self.output / PROGRESS / phase
        folder.mkdir(parents=True, exist_ok=True)
        sizes = sizes or [1] * len(tasks)
        places = [folder / f"{number:05d}.json" for number in range(len(tasks))]
        finished = {path.name for path in folder.iterdir()}
        waiting = [n for n, place in enumerate(places) if place.name not in finished and self.share.has(n)]
        label = self.name if phase == "parts" else f"{self.name}: {phase}"
        with progress(label, total=sum(sizes), unit=unit) as bar:
            bar.advance(sum(size for number, size in enumerate(sizes) if places[number].name in finished))
            for place, result in self.engine.run(work, [tasks[number] for number in waiting], bar):
                if unit != "B":
                    bar.advance(1)
                write_json(places[waiting[place]], result)
        left = sum(1 for place in places if not place.exists())
        if left:
            raise OthersAtWorkError(
                f"{left} of {len(tasks)} tasks of '{phase}' are left to other runs of the job array"
            )
        return [json.loads(place.read_text(encoding="utf-8")) for place in places]

    @contextmanager
    def alone(self, phase: str) -> Iterator[Path]:
        """The folder of a phase that one run of a job array does for all: the first to come here, the others leave."""
        folder = self.output / PROGRESS / phase
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            if not _lock(lock, exclusive=True):
                raise OthersAtWorkError(f"another run of the job array does '{phase}'")
            yield folder

    def finish(self, parts: Sequence[Mapping[str, Any]], packages: Sequence[str], **extra: Any) -> dict[str, Any]:
        """Write the manifest over all parts' results and take the progress away."""
        account, outputs = Account(), []
        for part in parts:
            account.add(Account.of(part["account"]))
            outputs += [
                {"path": path, "bytes": size, "xxh3_128": digest, "records": records}
                for path, records, size, digest in part["outputs"]
            ]
        counts = account.as_counts()
        by_source: dict[str, int] = counts.pop("read_by_source")
        by_file: Counter[str] = Counter()
        for source, records in by_source.items():
            by_file[source.split("!", 1)[0]] += records  # members of an archive are its records
        for entry in self.entries:
            entry["records"] = by_file[entry["source"]]
        manifest = build_manifest(
            self.name,
            self.parameters,
            self.entries,
            outputs,
            counts,
            packages,
            lineage=_lineage(self.output, self.entries, self.also_made_from),
            **extra,
        )
        write_json(self.output / MANIFEST, manifest)
        # Network disks keep what is open, such as the locks: what stays goes when the finished stage is met again.
        shutil.rmtree(self.output / PROGRESS, ignore_errors=True)
        return manifest


def run_stage(
    name: str,
    files: Sequence[Path],
    root: Path,
    output: Path,
    parameters: Mapping[str, Any],
    execution: Execution,
    work: Callable[[StageRun], dict[str, Any]],
) -> StageResult:
    """Do a stage over `files` into the folder `output`, unless it is done: `work` does its phases and finishes it.

    Raises:
        UserError: `output` holds something else, or the same stage with other parameters or inputs, or can't be written,
            or another run works in it.
    """
    output = output.absolute()
    try:
        engine = execution.make_engine()
        settings: dict[str, Any] = json.loads(json.dumps(dict(parameters)))  # as the manifest will have them
        entries = _input_entries(name, files, root, output, engine)
        if already_done(output / MANIFEST, name, settings, entries):
            manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
            _check_outputs(output, manifest)
            shutil.rmtree(output / PROGRESS, ignore_errors=True)  # killed after its very last step
            return StageResult(output, manifest, skipped=True)
        with _claimed(name, output, settings, entries, execution.share):
            try:
                manifest = work(StageRun(name, output, settings, entries, engine, execution.share))
            except OthersAtWorkError as error:
                return StageResult(output, {}, skipped=False, missing=str(error))
        return StageResult(output, manifest, skipped=False)
    except OSError as error:
        if error.errno not in _NOT_OUR_FAULT:
            raise
        raise UserError(
            f"{name}: {error.filename or output}: {error.strerror}. Finished parts are kept: make room or choose another "
            "output, then run the same command again."
        ) from error


def _input_entries(name: str, files: Sequence[Path], root: Path, output: Path, engine: Engine) -> list[dict[str, Any]]:
    """What the manifest says of every input: its place seen from the output, bytes, xxh3_128."""
    paths = [str(file.absolute()) for file in files]
    digests: dict[int, str] = {}
    with progress(f"{name}: checksums of the inputs", sum(file.stat().st_size for file in files), "B") as bar:
        for place, digest in engine.run(_digest, paths, bar):
            digests[place] = digest
    return [
        {
            "path": _seen_from(output, file), "source": (file.parent.resolve() / file.name).relative_to(root).as_posix(),
            "bytes": file.stat().st_size, "xxh3_128": digests[place],
        }
        for place, file in enumerate(files)
    ]  # fmt: skip


def _seen_from(folder: Path, file: Path) -> str:
    import os

    return os.path.relpath(file.absolute(), folder)


def _digest(path: str, on_read: OnRead) -> str:
    try:
        digest = file_digest(Path(path))
    except FileNotFoundError:
        raise UserError(f"{path} has vanished since the inputs were listed; run the command again.") from None
    on_read(Path(path).stat().st_size)
    return digest


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


@contextmanager
def _claimed(
    name: str, output: Path, parameters: Mapping[str, Any], entries: list[dict[str, Any]], share: Share
) -> Iterator[None]:
    """Make the output folder this stage's: empty, or begun by the very same stage; and keep other runs out of it."""
    identity: dict[str, Any] = {
        "stage": name,
        "parameters": dict(parameters),
        "inputs": parameters_hash({"files": [[entry["source"], entry["xxh3_128"]] for entry in entries]}),
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
    else:
        if output.exists() and (not output.is_dir() or any(path.name != PROGRESS for path in output.iterdir())):
            raise UserError(f"{output} is not empty and is no {name} stage: choose another output folder.")
        try:
            write_json(marker, identity)
        except OSError as error:
            raise UserError(
                f"the output folder {output} can't be made: {error.strerror or error}; choose another."
            ) from error
    with open(output / PROGRESS / "lock", "w") as lock:
        if not _lock(lock, exclusive=share.whole):
            raise UserError(f"another run is writing {output}; wait for it, or stop it.")
        yield


def _lock(file: IO[str], exclusive: bool) -> bool:
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lineage(output: Path, entries: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> list[dict[str, str]]:
    """Hashes of the manifests that stand beside or above the inputs, and in `folders`: the stages before this one."""
    found: dict[Path, None] = {}
    for entry in entries:
        for folder in list((output / entry["path"]).resolve().parents)[:3]:
            if (folder / MANIFEST).is_file():
                found.setdefault(folder / MANIFEST)
                break
    for folder in folders:
        found.setdefault(folder / MANIFEST)
    return [{"manifest": path.parent.name + "/" + path.name, "xxh3_128": file_digest(path)} for path in found]
