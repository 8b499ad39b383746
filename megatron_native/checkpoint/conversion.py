"""The folder that a conversion builds: file by file, by several threads, and taken up again where it was broken off.

Beside the output lies `OUTPUT.partial`, which one process at a time writes to. Each file finished there is on the disk
before its record is written to `.finished/` with its digest; a rerun with the same inputs and parameters keeps what has a
record and makes the rest. Parameters or inputs that differ begin anew, and so does what keeps no records. The rename to
`OUTPUT` comes last, when everything is on the disk.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import xxhash

from megatron_native import __version__
from megatron_native.checkpoint import layout
from megatron_native.checkpoint.disk_errors import said_of_disk
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest, write_json
from megatron_native.progress import Progress

BLOCK_BYTES = 4 << 20
"""What is read, hashed and written at a time."""
_AHEAD_BYTES = 32 << 20
_WRITE_BACK_BYTES = 32 << 20
FREE_SPACE_MARGIN = 64 << 20
"""Room for what is not tensors."""
_IDENTITY = "identity.json"
_LOCK = "lock"


class ConversionStoppedError(Exception):
    """Another thread of the conversion failed; its error is the one to show."""


def check_workers(workers: int | None) -> int:
    """Threads of a conversion; by default one a processor and at most 8. `UserError` below 1."""
    if workers is None:
        return min(8, len(os.sched_getaffinity(0)))
    if workers < 1:
        raise UserError(f"the number of workers is {workers}; it must be at least 1.")
    return workers


def lock(descriptor: int, busy: str) -> None:
    """Lock a file or folder until its descriptor is closed; `UserError` with `busy` where another process has it.

    On a file system without locks nothing happens.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(f"{busy}; wait for it, or choose another output.") from None


def empty_folder(folder: Path, keep: str | None = None) -> None:
    """Remove everything in a folder, but for what has the name `keep`."""
    for path in folder.iterdir():
        if path.name != keep:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


class Conversion:
    """An output under construction; a context that nobody else may enter at the same time."""

    def __init__(
        self,
        output: Path,
        stage: str,
        identity: Mapping[str, Any] | None = None,
        *,
        what: str = "the output",
        needed_bytes: int | None = None,
    ) -> None:
        """Nothing is touched before the context is entered.

        Args:
            output: the folder, which must be empty or absent on entering.
            stage: the command's name.
            identity: parameters and inputs as JSON; a partial folder of another identity is discarded on entering, and
                with None any.
            what: what the output is, in messages.
            needed_bytes: size of the output, for which there has to be room; None where it takes none.
        """
        self.output, self.stage, self._what, self._needed_bytes = output, stage, what, needed_bytes
        self.partial = layout.partial_path(output)
        self._records = self.partial / layout.FINISHED_FOLDER
        self._identity: dict[str, Any] | None = None
        if identity is not None:
            self._identity = json.loads(json.dumps({"stage": stage, "version": __version__, **identity}))
        self._left = ExitStack()
        self._stop = threading.Event()
        self._bar_lock = threading.Lock()

    def __enter__(self) -> Self:
        """Raises `UserError` where the output is occupied, another process is at work on it, or there is too little room."""
        kept = f"What is finished in {self.partial} is kept"
        if self._identity is None:
            kept = f"{self.partial} holds a part of it, which is of no use"
        afterwards = f"{kept}: make room and run the same command again, or delete that folder."
        with ExitStack() as entered:
            entered.enter_context(said_of_disk(self._what, afterwards))
            layout.refuse_occupied(self.output, self.stage)
            if not self.partial.exists():
                self._check_free_space()
            self._records.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._records / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            entered.callback(os.close, descriptor)
            lock(descriptor, f"another {self.stage} is writing to {self.partial} right now")
            if self._identity is None or self._identity_there() != self._identity:
                empty_folder(self.partial, keep=layout.FINISHED_FOLDER)
                empty_folder(self._records, keep=_LOCK)
                if self._identity is not None:
                    write_json(self._records / _IDENTITY, self._identity)
            self._check_free_space()
            self._left = entered.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left.__exit__(kind, error, traceback)

    def _identity_there(self) -> Any:
        try:
            return json.loads((self._records / _IDENTITY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _check_free_space(self) -> None:
        """`UserError` where what is still to be written finds no room."""
        if self._needed_bytes is not None:
            needed = self._needed_bytes + FREE_SPACE_MARGIN - self._finished_bytes()
            layout.check_free_space(self.output, needed, self._what)

    def record(self, name: str) -> dict[str, Any] | None:
        """What `finish_file` kept for the file `name`, where the file is still there in its size; else None."""
        try:
            value = json.loads((self._records / f"{name}.json").read_text(encoding="utf-8"))
            size = value.get("bytes")
            return value if size is None or (self.partial / name).stat().st_size == size else None
        except (OSError, ValueError, AttributeError):
            return None

    def finish_file(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep `value` as the record of `name`; with `bytes` in it, `name` is a file of that size, and it is on the disk."""
        write_json(self._records / f"{name}.json", value)

    def distrust(self) -> None:
        """Have the next conversion make every file anew: what is there was found to be wrong."""
        (self._records / _IDENTITY).unlink(missing_ok=True)

    def _finished_bytes(self) -> int:
        """Bytes of the files that have a record."""
        sizes = (self.record(path.name.removesuffix(".json")) for path in self._records.glob("*.json"))
        return sum(value.get("bytes", 0) for value in sizes if value)

    def run(self, tasks: Sequence[Callable[[], None]], workers: int) -> None:
        """Run tasks on `workers` threads; the first error stops the others and is raised."""
        with ThreadPoolExecutor(max_workers=workers, thread_name_prefix=self.stage) as pool:
            futures = [pool.submit(task) for task in tasks]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()  # nothing is left to stop where all went well
                pool.shutdown(cancel_futures=True)
            errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
            for error in errors:
                if not isinstance(error, ConversionStoppedError):
                    raise error
        self._stop.clear()

    def advance(self, bar: Progress, amount: int) -> None:
        """Report progress from any thread; raises `ConversionStoppedError` when the conversion is to end."""
        if self._stop.is_set():
            raise ConversionStoppedError
        with self._bar_lock:
            bar.advance(amount)

    def finish(self) -> None:
        """Rename the whole to its place; the records go with it and are removed there."""
        layout.finish_partial(self.partial, self.output)
        layout.remove_records(self.output)


class HashedFile:
    """A file written from front to back whose digest is known at the end."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._digest = xxhash.xxh3_128()
        self._written_back = 0
        self.position = 0

    def write(self, data: Any) -> None:
        """Append bytes, and have the disk begin with what has piled up."""
        view = memoryview(data)
        self._digest.update(view)
        while view.nbytes:
            count = os.write(self._descriptor, view)
            self.position += count
            view = view[count:]
        if self.position - self._written_back >= _WRITE_BACK_BYTES:
            # Pages not yet on the disk are not dropped by this, only sent there: no flood of them at the end.
            os.posix_fadvise(
                self._descriptor, self._written_back, self.position - self._written_back, os.POSIX_FADV_DONTNEED
            )
            self._written_back = self.position

    def close(self, flush: bool = True) -> str:
        """Close the file, by default bringing it to the disk; its xxh3_128 in hex."""
        try:
            if flush:
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Close a file that will not be finished, whatever happened to it; nothing where it is closed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class SourceFile:
    """A file read block by block, with the disk asked for what comes next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size
        self._asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def blocks(self, start: int, length: int, buffer: memoryview, ahead: int = 0) -> Iterator[memoryview]:
        """The bytes from `start` on, in views of `buffer`, each valid until the next.

        The disk is asked early for what comes, as far as `ahead` bytes into the file. Raises `UserError` where the file
        ends too early or can't be read.
        """
        position, end = start, start + length
        while position < end:
            view = buffer[: min(len(buffer), end - position)]
            self._ask(position + len(view), min(ahead, self.size))
            filled = 0
            while filled < len(view):
                try:
                    count = os.preadv(self._descriptor, [view[filled:]], position + filled)
                except OSError as error:
                    raise UserError(
                        f"{self.path} can't be read at {position + filled} bytes ({error.strerror}); copy it again."
                    ) from error
                if not count:
                    raise UserError(f"{self.path} was cut short at {position + filled} bytes; copy it again.")
                filled += count
            position += filled
            yield view

    def _ask(self, position: int, end: int) -> None:
        """Have the disk read on while this block is worked on."""
        if not self._asked - _AHEAD_BYTES <= position <= self._asked:
            self._asked = position
        if self._asked < end and self._asked - position < _AHEAD_BYTES // 2:
            length = min(_AHEAD_BYTES, end - self._asked)
            os.posix_fadvise(self._descriptor, self._asked, length, os.POSIX_FADV_WILLNEED)
            self._asked += length


_buffers = threading.local()


def block_buffer() -> memoryview:
    """This thread's buffer of `BLOCK_BYTES`, the same at every call."""
    if not hasattr(_buffers, "block"):
        _buffers.block = memoryview(bytearray(BLOCK_BYTES))
    view: memoryview = _buffers.block
    return view


def file_digests(paths: Sequence[Path], workers: int, on_done: Callable[[Path], None]) -> list[str]:
    """`file_digest` of several files at a time, in the order of `paths`; `on_done` is called from this thread."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        result = []
        for path, digest in zip(paths, pool.map(file_digest, paths), strict=True):
            on_done(path)
            result.append(digest)
    return result
