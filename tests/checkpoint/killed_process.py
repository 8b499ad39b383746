"""Conversions that are killed at random moments and run again, for test_conversion_kills.

`python -m tests.checkpoint.killed_process DIRECTION GIVEN FOLDER KILLS`: prints, as JSON, how many kills hit a conversion
at work, the most files that one found finished, and which finished files a later run made anew all the same.
Children are forked from a process that has imported everything and computed nothing, so a run takes no longer than its work.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from megatron_native.checkpoint import export_hf, import_hf, layout

FILE_BYTES = 60_000


def convert(direction: str, given: Path, output: Path, workers: int) -> None:
    if direction == "import":
        import_hf.import_hf(given, output, reference_logits=False, max_file_bytes=FILE_BYTES, workers=workers)
    else:
        export_hf.export_hf(given, output, max_shard_bytes=FILE_BYTES, workers=workers)


def start(*arguments) -> int:
    child = os.fork()
    if child:
        return child
    try:
        convert(*arguments)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def finished_files(partial: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file that has a record."""
    records = (path.name.removesuffix(".json") for path in (partial / layout.FINISHED_FOLDER).glob("*.json"))
    return {name: identity(partial / name) for name in records if (partial / name).is_file()}


def identity(path: Path) -> tuple[int, int]:
    """What changes when a file is made anew."""
    state = path.stat()
    return state.st_ino, state.st_mtime_ns


def main(direction: str, given: Path, folder: Path, kills: int) -> None:
    started = time.monotonic()
    _, status = os.waitpid(start(direction, given, folder / "undisturbed", 1), 0)
    assert status == 0
    usual = time.monotonic() - started
    moments, output, hit, seen, redone = random.Random(8), folder / "killed", 0, 0, []
    partial = layout.partial_path(output)
    outputs = 0
    while hit < kills or not output.exists():
        before = finished_files(partial)
        child = start(direction, given, output, 1 + hit % 3)
        if hit < kills:
            time.sleep(usual * moments.uniform(0.0, 0.7))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or status == 0, status
        if os.WIFSIGNALED(status) and not output.exists():
            hit += 1
        place = output if output.exists() else partial
        redone += [name for name, state in before.items() if identity(place / name) != state]
        seen = max(seen, len(before))
        if hit < kills and output.exists():
            outputs += 1
            output.rename(folder / f"finished {outputs}")  # it was faster than the kill; the next begins anew
    print(json.dumps({"kills": hit, "finished": seen, "redone": redone}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
