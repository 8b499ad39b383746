"""A file of lines that survives a full disk: what can't be written now is kept and written later, in order.

`metrics.jsonl` and `incidents.jsonl` are such files, and are read here too.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


class LineFile:
    """Appends whole lines to a file.

    Args:
        path: the file; made with its folder at the first line. A line that a kill has cut short is ended first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[bytes] = []
        self._complained = False

    def append(self, line: str) -> None:
        """Write a line, and those before it that could not be written; never raises for what the disk refuses."""
        self._pending.append(line.encode() + b"\n")
        self.flush()

    def flush(self) -> bool:
        """Try to write what is pending; whether nothing is left."""
        if not self._pending:
            return True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._write(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if not self._complained:
                print(
                    f"{self.path} can't be written ({error.strerror}); {len(self._pending)} lines wait until it can",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            self._complained = True
            return False
        self._complained = False
        return True

    def _write(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        broken = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        content = (b"\n" if broken else b"") + b"".join(self._pending)
        try:
            written = os.write(descriptor, content)
            while written < len(content):
                written += os.write(descriptor, content[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)  # no half of a line stays
            raise
        self._pending.clear()


def read_json_lines(path: Path, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """Every whole line of a file of JSON objects, in order; none where the file is missing.

    A line that a kill cut short is left out, and said on stderr.

    Args:
        path: the file.
        last_bytes: only the lines that begin in so many bytes at its end, and nothing is said: the end of a file that is
            being written to.
    """
    if not path.exists():
        return []
    with open(path, "rb") as file:
        start = 0 if last_bytes is None else max(0, os.fstat(file.fileno()).st_size - last_bytes)
        if start:
            file.seek(start - 1)
            file.readline()
        lines = file.read().split(b"\n")
    records = []
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif last_bytes is None:
            print(f"{path}: a line that was cut short is left out", file=sys.stderr)
    return records
