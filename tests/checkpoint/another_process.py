"""Another process that is at work on an output, as a conversion sees it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_native.checkpoint import layout


@contextmanager
def another_at_work(output: Path) -> Iterator[Path]:
    """Hold the lock of `output`'s partial folder; a file that the other has written there. Later it lies there still."""
    records = layout.partial_path(output) / layout.FINISHED_FOLDER
    records.mkdir(parents=True)
    written = records.parent / "__0_7.distcp"
    written.write_bytes(b"what the other has written")
    with open(records / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield written
