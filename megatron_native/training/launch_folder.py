"""What a launcher and the ranks it started tell each other: small files in a temporary folder that all of them see.

A rank leaves its *outcome* there when starting again would change nothing: a user error (its text), or a stop that was
asked for and saved. The launcher leaves a request to stop, for ranks that are not ready for signals yet.
"""

from __future__ import annotations

import os
from pathlib import Path

from megatron_native.errors import RunStoppedError, UserError

FOLDER_VARIABLE = "MEGATRON_NATIVE_LAUNCH_FOLDER"
"""Environment variable that names the folder; set by the launcher for its ranks."""

_USER_ERROR, _STOPPED, _REQUEUE, _LISTENING, _STOP = "user_error.", "stopped.", "requeue.", "listening.", "stop"


class LaunchFolder:
    """The folder that one launcher and its ranks share.

    Args:
        path: an existing folder on this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def of_environment(cls) -> LaunchFolder | None:
        """The folder of the launcher that started this process, or None where another one (or none) started it."""
        path = os.environ.get(FOLDER_VARIABLE)
        return cls(Path(path)) if path and Path(path).is_dir() else None

    def leave_user_error(self, rank: int, error: UserError) -> None:
        """A rank ends because of what the user gave, or because a rule stops the run."""
        self._write(f"{_STOPPED if isinstance(error, RunStoppedError) else _USER_ERROR}{rank}", str(error))

    def leave_requeue(self, rank: int) -> None:
        """A rank has stopped because it was asked to; its state is saved and wants to be started again."""
        self._write(f"{_REQUEUE}{rank}", "")

    def user_error(self) -> UserError | None:
        """What ranks said about user errors or rules that stopped the run, each message once; None where none did."""
        for kind, error in ((_USER_ERROR, UserError), (_STOPPED, RunStoppedError)):
            messages = sorted({path.read_text(encoding="utf-8") for path in self.path.glob(f"{kind}*")})
            if messages:
                return error(" ".join(messages))
        return None

    def wants_requeue(self) -> bool:
        """Whether a rank has stopped as asked, saved."""
        return any(self.path.glob(f"{_REQUEUE}*"))

    def has_outcome(self) -> bool:
        """Whether a rank has ended in a way that starting again would not change."""
        return self.wants_requeue() or self.user_error() is not None

    def listen(self) -> str | None:
        """Say that this process handles stop signals from now on; the name of one that came before, if one did."""
        self._write(f"{_LISTENING}{os.getpid()}", "")
        return self.stop_requested()

    def listeners(self) -> set[int]:
        """Ids of the processes that said that they handle stop signals."""
        return {int(path.name.removeprefix(_LISTENING)) for path in self.path.glob(f"{_LISTENING}*")}

    def request_stop(self, signal_name: str) -> None:
        """Ask all ranks to stop, also those that don't listen yet. The first request stays."""
        if self.stop_requested() is None:
            self._write(_STOP, signal_name)

    def stop_requested(self) -> str | None:
        """Name of the signal that asked for a stop, if one did."""
        path = self.path / _STOP
        return path.read_text(encoding="utf-8") if path.exists() else None

    def _write(self, name: str, content: str) -> None:
        partial = self.path / f"partial.{os.getpid()}.{name}"  # starts like none of the names that are looked for
        partial.write_text(content, encoding="utf-8")
        partial.replace(self.path / name)
