"""Engines on a Ray cluster: each is an actor's call with its own GPUs; one that dies leaves its chunks to the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_native.alignment.rewriting.fleet import FleetSettings, pull_with
from megatron_native.errors import UserError

if TYPE_CHECKING:
    from megatron_native.alignment.backends.choice import BackendChoice
    from megatron_native.alignment.rewriting.pulling import Job

STOP = "stop"


def run_on_ray(
    job: Job, choice: BackendChoice, settings: FleetSettings, stopping: Callable[[], bool], shown: Any
) -> list[str]:
    """Engines on the cluster that `RayEngine` has joined, until nothing is free; what the dead ones said.

    All nodes see the same files. A file `stop` in the work folder asks the engines to leave.
    """
    import ray

    stop = job.work / STOP
    stop.unlink(missing_ok=True)
    remote = ray.remote(num_cpus=1, num_gpus=settings.gpus, max_retries=0)(_engine)
    shared = ray.put((job, choice, settings))
    running = {remote.remote(shared, place, str(stop)): place for place in range(settings.engines)}
    deaths: list[str] = []
    wrong: list[UserError] = []
    while running:
        finished, _ = ray.wait(list(running), timeout=1.0)
        shown.look()
        if stopping():
            stop.touch()
        for reference in finished:
            place = running.pop(reference)
            try:
                death = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    wrong.append(error.cause)
                death = str(error.cause)
            except ray.exceptions.RayError as error:
                death = " ".join(str(error).split())[:300]
            if death:
                deaths.append(f"engine {place}: {death}")
    stop.unlink(missing_ok=True)
    shown.look()
    if wrong and len(wrong) == settings.engines:
        raise wrong[0]
    return deaths


def _engine(shared: Any, place: int, stop: str) -> str:
    job, choice, settings = shared
    return pull_with(job, choice, settings, place, Path(stop).exists)
