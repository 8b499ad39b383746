"""The ladder: which rungs there are, which of them this place can be put on, and how they are climbed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_native.config.layout import data_parallel_size
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.platform import Platform
from megatron_native.training.qualify.task import Task
from megatron_native.training.qualify.trial import (
    STEPS,
    needed_bytes,
    own_run,
    runs_own_checkpoint,
    shrunk,
    trial_model,
    trial_run,
)
from megatron_native.training.qualify.verdict import RungResult, not_run, of_world

_SLICE_SHARE = 0.7
"""Of a GPU's memory, what a slice's weights, gradients and optimizer may take; the rest is for activations."""


@dataclass(frozen=True)
class Rung:
    """One check of the ladder."""

    name: str
    title: str
    module: str
    """Of this package; its function is the name, with underscores."""
    cuda: bool = False
    """Whether it says something on CUDA only."""
    overlaps: bool = False
    """Whether there must be communication to overlap."""


RUNGS: tuple[Rung, ...] = (
    Rung("logits", "logits against Hugging Face", "numerics"),
    Rung("boundaries", "documents of a packed sequence don't see each other", "numerics"),
    Rung("cross-entropy", "fused against plain cross entropy, gradients", "numerics"),
    Rung("masters", "FP32 masters equal Hugging Face, bit by bit", "numerics"),
    Rung("overlaps", "communication overlapped against not", "numerics", overlaps=True),
    Rung("fp8", "FP8 against BF16", "numerics"),
    Rung("resume", "saved, killed, resumed: the same losses", "resume"),
    Rung("memory", "memory against the plan", "cost", cuda=True),
    Rung("speed", "tokens a second against the plan", "cost", cuda=True),
)
"""In the order in which they are climbed. A new one is a function of a `Task` and a line here."""


def chosen_rungs(names: str | None) -> tuple[Rung, ...]:
    """The rungs of a comma-separated list; all without one.

    Raises:
        UserError: a name is none of them.
    """
    if names is None:
        return RUNGS
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = [rung.name for rung in RUNGS]
    for name in wanted:
        if name not in known:
            raise UserError(f"--rungs {name}: there is no such rung; they are {', '.join(known)}.")
    if not wanted:
        raise UserError(f"--rungs names none; they are {', '.join(known)}.")
    return tuple(rung for rung in RUNGS if rung.name in wanted)


def why_not(rung: Rung, run: RunConfig, platform: str, world_size: int) -> str | None:
    """Why a rung can't be climbed here, None where it can; `run` is the slice's, overlapped."""
    if rung.cuda and platform != "cuda":
        return "CUDA only"
    if rung.overlaps:
        alone = data_parallel_size(run, world_size) < 2
        if alone and not (platform == "cuda" and run.parallel.tp_comm_overlap):
            tp = run.parallel.tensor_model_parallel_size
            return f"nothing to overlap on {world_size} process(es) at TP {tp}: start more (--nproc)"
    if rung.name == "fp8" and run.training.precision == "fp32":
        return "the run is FP32"
    return None


def climb(
    run: RunConfig, platform: Platform, rungs: Sequence[Rung], folder: Path, report: Callable[[RungResult], None]
) -> list[RungResult]:
    """Climb the rungs, one after another, whatever becomes of each. Collective.

    Args:
        run: the run to be qualified.
        platform: this process's place; its group is up, and megatron-core has no parallel state.
        rungs: which, in order.
        folder: an empty folder that all ranks see.
        report: called with each result as it comes.
    """
    from megatron_native.training.qualify.trial_files import make_trial_files
    from megatron_native.training.shape import read_model

    model = read_model(run)
    short, overlapped = (
        trial_run(run, model, platform.world_size, folder, platform.name, overlap=on) for on in (False, True)
    )
    possible = [rung for rung in rungs if why_not(rung, overlapped, platform.name, platform.world_size) is None]
    if possible:
        import torch

        shape = trial_model(model, short.parallel, platform.name)
        if platform.name == "cuda":
            there = torch.cuda.get_device_properties(platform.device).total_memory
            shape = shrunk(shape, short, platform.world_size, int(_SLICE_SHARE * there))
        tokens = 2 * STEPS * short.training.global_batch_size * short.data.seq_length
        dtype = torch.float32 if short.training.precision == "fp32" else torch.bfloat16
        make_trial_files(folder, shape, dtype, tokens, platform)
    own = own_run(run, folder, platform.world_size) if _sees_own_checkpoint(run, model, platform) else None
    task = Task(short, overlapped, own, run.training.precision == "fp8", folder, platform)
    results = []
    for rung in rungs:
        reason, started = why_not(rung, overlapped, platform.name, platform.world_size), time.monotonic()
        result = not_run(rung.name, reason) if reason is not None else _climb_one(rung, task)
        results.append(of_world(result, platform.world_size, time.monotonic() - started))
        report(results[-1])
    return results


def _sees_own_checkpoint(run: RunConfig, model: ModelConfig, platform: Platform) -> bool:
    """Whether the run's own checkpoint can be looked at here: it is an import, its layout and its size fit. Collective."""
    if not runs_own_checkpoint(run, platform.world_size):
        return False
    import torch
    import torch.distributed as dist

    from megatron_native.checkpoint import import_hf, layout
    from megatron_native.checkpoint.reference_logits import available_memory

    assert run.model.checkpoint is not None
    manifest = layout.read_json(run.model.checkpoint / layout.MANIFEST_FILE)
    # What was trained since its import has other logits than those recorded.
    fits = [manifest is not None and manifest.get("stage") == import_hf.STAGE]
    if platform.is_main and fits[0]:
        if platform.name == "cuda":
            there = torch.cuda.get_device_properties(platform.device).total_memory
        else:
            there = (available_memory() or 0) // platform.world_size
        fits = [needed_bytes(run, model, platform.world_size) < 0.8 * there]
    dist.broadcast_object_list(fits, src=0)
    return fits[0]


def _climb_one(rung: Rung, task: Task) -> RungResult:
    """One rung; an error is a failure, on every rank what the first that failed says."""
    from importlib import import_module

    import torch.distributed as dist

    try:
        module = import_module(f"megatron_native.training.qualify.{rung.module}")
        result: RungResult = getattr(module, rung.name.replace("-", "_"))(task)
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        result = RungResult(rung.name, "failed", message=f"{kind}{error}")
    gathered: list[RungResult | None] = [None] * task.platform.world_size
    dist.all_gather_object(gathered, result)
    return next((one for one in gathered if one is not None and one.verdict == "failed"), result)
