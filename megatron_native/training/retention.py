"""The checkpoints of a run folder: their names, which of them is whole, and which are kept.

RUN/checkpoints/step_00000100             a finished checkpoint
RUN/checkpoints/step_00000200.partial     being written; left by a run that was killed
RUN/checkpoints/step_00000050.deleting    no longer counted, its files are being deleted
RUN/checkpoints/step_00000150.damaged     found torn or corrupt, set aside for whoever wants to look at it
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

from megatron_native.checkpoint import layout
from megatron_native.errors import UserError


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` lies."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The run's finished checkpoints, oldest first; folders still being written have another name."""
    return sorted(path for path in (run_dir / "checkpoints").glob("step_????????") if path.is_dir())


def step_of(folder: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(folder.name.removeprefix("step_"))


def newest_whole(
    run_dir: Path,
    verify: Literal["sizes", "full"],
    say: Callable[[str], None],
    passed_over: Callable[[str, int], None] | None = None,
) -> Path | None:
    """The newest checkpoint that is whole, or None where the run has none at all. One process calls this.

    Damaged ones that are newer are told, each with the reason, and renamed to `step_XXXXXXXX.damaged`, so that they are
    never counted again.

    Args:
        run_dir: the run's folder; nothing may be writing to it.
        verify: compare the size of every file, or every checksum too.
        say: gets a line for what else was found.
        passed_over: gets a line and the step of each damaged checkpoint; by default `say` gets the line.

    Raises:
        UserError: there are checkpoints and none is whole: going on would silently start the run anew. Nothing is
            renamed then.
    """
    _finish_renames(run_dir, say)
    damaged: list[tuple[Path, str]] = []
    for folder in reversed(checkpoints_of(run_dir)):
        try:
            layout.check_complete(folder, full=verify == "full")
        except (UserError, OSError) as error:
            damaged.append((folder, layout.in_one_line(error)))
            continue
        for bad, reason in damaged:
            aside = _free_name(bad, "damaged")
            told = f"PASSED OVER a damaged checkpoint, {bad.name} (now {aside.name}): {reason} Going on from {folder.name}."
            if passed_over is None:
                say(told)
            else:
                passed_over(told, step_of(bad))
            bad.rename(aside)
        return folder
    if damaged:
        reasons = " ".join(reason for _, reason in damaged)
        raise UserError(
            f"{run_dir} has checkpoints and none of them is whole: {reasons} Restore one from another copy, or start anew in "
            "another run_dir."
        )
    return None


class Retention:
    """Deletes what a run no longer keeps, in a thread of its own; one process has it.

    A folder is renamed first, so that a half-deleted checkpoint is never taken for one.

    Args:
        run_dir: the run's folder.
        keep_last: this many of the newest checkpoints are kept; 0 keeps all.
        keep_every: checkpoints of steps that are multiples of this are kept too; 0 exempts none.
    """

    def __init__(self, run_dir: Path, keep_last: int, keep_every: int) -> None:
        self.run_dir, self.keep_last, self.keep_every = run_dir, keep_last, keep_every
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-deletion")
        self._deletions: list[tuple[Path, Future[None]]] = []

    def clean(self, say: Callable[[str], None]) -> None:
        """Delete what an earlier run left half written or half deleted; a partial that is whole gets its name."""
        _finish_renames(self.run_dir, say)
        checkpoints = self.run_dir / "checkpoints"
        for partial in sorted(checkpoints.glob("step_*.partial")):
            say(f"deleting {partial.name}: an earlier run ended while it was written")
            self.delete(partial)
        for folder in sorted(checkpoints.glob("step_*.deleting")):
            self._delete_files(folder)

    def expired(self, protected: Collection[Path] = ()) -> list[Path]:
        """Checkpoints that are to go, oldest first; never the newest, and none that is `protected`."""
        if not self.keep_last:
            return []
        older = checkpoints_of(self.run_dir)[: -self.keep_last]
        return [
            folder
            for folder in older
            if folder not in protected and not (self.keep_every and step_of(folder) % self.keep_every == 0)
        ]

    def delete(self, folder: Path) -> None:
        """Rename `folder` out of the way and delete its files in the background.

        Raises:
            OSError: it can't be renamed.
        """
        aside = _free_name(folder, "deleting")
        folder.rename(aside)
        self._delete_files(aside)

    def failures(self) -> list[str]:
        """What could not be deleted since the last call, one sentence each."""
        done = [entry for entry in self._deletions if entry[1].done()]
        self._deletions = [entry for entry in self._deletions if not entry[1].done()]
        return [
            f"could not delete {folder} ({layout.in_one_line(error)}); it is no longer used, delete it by hand"
            for folder, error in ((folder, deletion.exception()) for folder, deletion in done)
            if error is not None
        ]

    def wait(self) -> None:
        """Return when everything is deleted that was to be."""
        for _, deletion in self._deletions:
            with suppress(Exception):  # told by failures()
                deletion.result()

    def _delete_files(self, folder: Path) -> None:
        self._deletions.append((folder, self._thread.submit(shutil.rmtree, folder)))


def _free_name(folder: Path, suffix: str) -> Path:
    """`FOLDER.SUFFIX`, with a number where that is taken."""
    name, number = folder.with_name(f"{folder.name}.{suffix}"), 1
    while name.exists():
        number += 1
        name = folder.with_name(f"{folder.name}.{number}.{suffix}")
    return name


def _finish_renames(run_dir: Path, say: Callable[[str], None]) -> None:
    """Give its name to a checkpoint that was all written when the run ended between its last byte and its rename."""
    for partial in sorted((run_dir / "checkpoints").glob("step_????????.partial")):
        folder = partial.with_name(partial.name.removesuffix(".partial"))
        if folder.exists():
            continue
        with suppress(UserError, OSError):
            layout.check_complete(partial)
            partial.rename(folder)
            say(f"{folder.name} was all written when the last run ended, and is used")
