"""The Ray engine: the same tasks on a Ray cluster whose nodes see the same files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_native.engine.tasks import Work
from megatron_native.errors import UserError
from megatron_native.progress import Progress

_TASKS_AHEAD = 2


class RayEngine:
    """Tasks on the cluster at `address` (`auto`: the one this machine is part of; None: one started for this run)."""

    def __init__(self, address: str | None = None) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise UserError("--engine ray needs the package ray: pip install 'megatron-native[ray]'.") from error
        self._ray = ray
        _check_answers(address)
        if not ray.is_initialized():
            try:
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"--address {address}: no Ray cluster answers ({' '.join(str(error).split())[:200]}); start one with "
                    "'ray start --head', or leave --address out."
                ) from error

    def run(self, work: Work, tasks: Sequence[Any], bar: Progress) -> Iterator[tuple[int, Any]]:
        """(place in `tasks`, result) as tasks finish; the first error stops all."""
        ray = self._ray
        # A node that dies takes its tasks with it: they are done again elsewhere, and finished files are replaced whole.
        remote = ray.remote(num_cpus=1, max_retries=3)(_call)
        function = ray.put(work)
        ahead = max(2, int(_TASKS_AHEAD * ray.cluster_resources().get("CPU", 1)))
        waiting = iter(enumerate(tasks))
        running: dict[Any, int] = {}
        try:
            while True:
                while len(running) < ahead and (next_task := next(waiting, None)) is not None:
                    running[remote.remote(function, next_task[1])] = next_task[0]
                if not running:
                    return
                finished, _ = ray.wait(list(running))
                for reference in finished:
                    place = running.pop(reference)
                    result, read = ray.get(reference)
                    bar.advance(read)
                    yield place, result
        except ray.exceptions.RayTaskError as error:
            for reference in running:
                ray.cancel(reference)
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise


def _check_answers(address: str | None) -> None:
    """Ask the address itself first: Ray would try a dead one for minutes.

    Raises:
        UserError: nothing listens there.
    """
    import socket

    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers ({error.strerror or error}); start one with 'ray start --head', or "
            "leave --address out."
        ) from None


def _call(work: Work, task: Any) -> tuple[Any, int]:
    read = 0

    def on_read(size: int) -> None:
        nonlocal read
        read += size

    result = work(task, on_read)
    return result, read
