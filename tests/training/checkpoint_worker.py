"""Scenes around a checkpoint on real process groups, for test_checkpoints.py: `{"scene": NAME, "run": RunConfig, …}`.

Every rank writes what it saw to `report_RANK.json` in the run folder. References are saved by megatron-core's own
synchronous `dist_checkpointing.save`.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

MEBIBYTE = 1 << 20


def say_nothing(_: str) -> None: ...


def reference(trainer: Any, folder: Path) -> None:
    """The same state, saved by megatron-core alone."""
    from megatron.core import dist_checkpointing

    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    model, optimizer = trainer.model.modules[0], trainer.model.optimizer

    def content() -> dict[str, Any]:
        return {"distrib_optim_sharding_type": "fully_reshardable"}

    state = {"model": model.sharded_state_dict(metadata=content())}
    state["optimizer"] = optimizer.sharded_state_dict(dict(state), metadata=content())
    dist_checkpointing.save(state, str(folder), ("torch_dist", 1), content_metadata=content())


def checkpointer(trainer: Any, **settings: Any) -> Any:
    from megatron_native.training.checkpoints import Checkpointer

    section = trainer.run.checkpointing.model_copy(update=settings)
    return Checkpointer(trainer.run.run_dir, section, say_nothing)


def one_step(trainer: Any) -> tuple[Any, float]:
    """The next step of a run, and its learning rate."""
    plan = trainer.course.next_step()
    assert plan is not None
    trainer._enter(plan)
    return trainer._take(plan).result, plan.learning_rate


def save(saver: Any, trainer: Any, step: int, source: Path | None = None) -> float:
    progress = {"step": step, "nested": {"list": [1, 2.5, None, "ا"]}}
    return saver.save(step, trainer.model, progress, source, {"config.yaml": "a: 1\n", "deep/ledger.json": "{}"})


def outcomes(saved: list[Any]) -> list[dict[str, Any]]:
    return [{"step": s.step, "failed": s.failed, "bytes": s.bytes, "folder": s.folder.name} for s in saved]


def listing(trainer: Any) -> list[str]:
    dist.barrier()
    names = sorted(path.name for path in (trainer.run.run_dir / "checkpoints").iterdir())
    dist.barrier()
    return names


def raising(error: Exception) -> Any:
    def refuse(*_: Any) -> None:
        raise error

    return refuse


class Gate:
    """Writers wait, before they touch anything, until it is opened."""

    def __init__(self, path: Path) -> None:
        from megatron_native.training import checkpoints

        self.path, self._module, self._write = path, checkpoints, checkpoints.write_planned

        def write(*arguments: Any) -> Any:
            while not path.exists():
                time.sleep(0.01)
            return self._write(*arguments)

        checkpoints.write_planned = write  # type: ignore[assignment]  # of any arguments

    def open(self) -> None:
        self.path.touch()
        self._module.write_planned = self._write


def equal(trainer: Any, **_: Any) -> dict[str, Any]:
    """Steps 1 synchronous, 2 asynchronous, 3 asynchronous with everything overwritten before the writer begins."""
    for _ in range(2):
        one_step(trainer)
    reference(trainer, trainer.run.run_dir / "reference")
    saver = checkpointer(trainer, asynchronous=False)
    save(saver, trainer, 1)
    in_flight = [saver.in_flight]
    saved = saver.wait()
    saver = checkpointer(trainer, asynchronous=True)
    save(saver, trainer, 2)
    saved += saver.wait()
    gate = Gate(trainer.run.run_dir / f"gate_{dist.get_rank()}")
    save(saver, trainer, 3)
    in_flight.append(saver.in_flight)
    early = saver.poll()
    with torch.no_grad():
        for module in trainer.model.modules:
            for parameter in module.parameters():
                parameter.fill_(7.0)
        for inner in getattr(trainer.model.optimizer, "chained_optimizers", [trainer.model.optimizer]):
            for group in inner.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.fill_(7.0)
            for state in inner.optimizer.state.values():
                for value in state.values():
                    if isinstance(value, torch.Tensor):
                        value.fill_(7.0)
    random.random()
    gate.open()
    while saver.in_flight:
        saved += saver.poll()
    return {"in_flight": in_flight, "early": len(early), "saved": outcomes(saved)}


def failures(trainer: Any, **_: Any) -> dict[str, Any]:
    """A good save; then rank 1's writer may write 1 MiB only, then is killed; rank 0 can't fork, can't finish; good again."""
    from megatron_native.checkpoint import layout

    saver, rank, seen = checkpointer(trainer), dist.get_rank(), {}
    one_step(trainer)
    save(saver, trainer, 1, source=trainer.run.model.checkpoint)
    seen["good"] = outcomes(saver.wait())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE, before[1]))
    save(saver, trainer, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    one_step(trainer)
    seen["limited"] = outcomes(saver.wait())
    gate = Gate(trainer.run.run_dir / f"gate_{rank}")
    save(saver, trainer, 3)
    if rank == 1:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
    gate.open()
    one_step(trainer)
    seen["killed"] = outcomes(saver.wait())
    fork = os.fork
    if rank == 0:
        os.fork = raising(OSError(errno.EAGAIN, "Resource temporarily unavailable"))
    save(saver, trainer, 3)
    os.fork = fork
    seen["not forked"] = outcomes(saver.wait())
    write_checksums = layout.write_checksums
    layout.write_checksums = raising(OSError(errno.EIO, "Input/output error"))
    save(saver, trainer, 3)
    seen["not finished"] = outcomes(saver.wait())
    layout.write_checksums = write_checksums
    seen["after failures"] = listing(trainer)
    for _ in range(2):  # the second takes the place of the first
        one_step(trainer)
        reference(trainer, trainer.run.run_dir / f"reference {trainer.progress.step}")
        save(saver, trainer, 4, source=trainer.run.run_dir / "gone")
    seen["last reference"] = f"reference {trainer.progress.step}"
    seen["again"] = outcomes(saver.wait())
    seen["at the end"] = listing(trainer)
    return seen


def full_disk(trainer: Any, **_: Any) -> dict[str, Any]:
    """The run folder's disk takes one checkpoint: told before it is written, and while it is; then there is room."""
    from megatron_native.checkpoint import layout

    saver, rank, seen = checkpointer(trainer), dist.get_rank(), {}
    one_step(trainer)
    save(saver, trainer, 1)
    seen["good"] = outcomes(saver.wait())
    filler = trainer.run.run_dir / "filler"
    if rank == 0:
        size = trainer.run.run_dir
        stat = os.statvfs(size)
        filler.write_bytes(bytes(stat.f_bavail * stat.f_frsize - 2 * MEBIBYTE))
    dist.barrier()
    save(saver, trainer, 2)
    seen["refused"] = outcomes(saver.poll())
    one_step(trainer)
    check, layout.check_free_space = layout.check_free_space, lambda *_: None
    save(saver, trainer, 3)  # as on a disk that promises more than it has, or that others are filling
    one_step(trainer)
    seen["full"] = outcomes(saver.wait())
    layout.check_free_space = check
    seen["after failures"] = listing(trainer)
    dist.barrier()
    if rank == 0:
        filler.unlink()
    dist.barrier()
    save(saver, trainer, 4)
    seen["again"] = outcomes(saver.wait())
    seen["at the end"] = listing(trainer)
    return seen


def rollback(trainer: Any, **_: Any) -> dict[str, Any]:
    """Back to a checkpoint in the running process, twice: exactly, and with the optimizer anew."""
    from megatron_native.training.checkpoints import load_checkpoint
    from megatron_native.training.retention import checkpoint_folder

    saver = checkpointer(trainer)
    for _ in range(3):
        one_step(trainer)
    position = vars(trainer.progress).copy()
    save(saver, trainer, 3)
    saver.wait()
    folder = checkpoint_folder(trainer.run.run_dir, 3)

    def weights() -> list[torch.Tensor]:
        return [p.detach().clone() for module in trainer.model.modules for p in module.parameters()]

    def masters() -> list[torch.Tensor]:
        return [p.detach().clone() for o in inners for group in o.param_groups for p in group["params"]]

    optimizer = trainer.model.optimizer
    inners = [inner.optimizer for inner in getattr(optimizer, "chained_optimizers", [optimizer])]
    saved_weights, saved_masters = weights(), masters()
    first = [one_step(trainer)[0].loss for _ in range(3)]
    progress = load_checkpoint(folder, trainer.model)
    for name, value in position.items():
        setattr(trainer.progress, name, value)
    second = [one_step(trainer)[0].loss for _ in range(3)]
    load_checkpoint(folder, trainer.model, reset_optimizer=True)
    moments = [s[name] for o in inners for s in o.state.values() for name in ("exp_avg", "exp_avg_sq")]
    steps = {float(s["step"]) for o in inners for s in o.state.values()}
    seen = {
        "first": first, "second": second, "progress": progress, "moments": len(moments), "steps": sorted(steps),
        "moments are zero": all(not m.any() for m in moments),
        "weights are back": all(torch.equal(a, b) for a, b in zip(weights(), saved_weights, strict=True)),
        "masters are back": all(torch.equal(a, b) for a, b in zip(masters(), saved_masters, strict=True)),
    }  # fmt: skip
    trainer.progress.consumed_samples = position["consumed_samples"]
    before = masters()
    seen["first loss after a reset"] = one_step(trainer)[0].loss
    seen["update"] = max(float((a - b).abs().max()) for a, b in zip(masters(), before, strict=True))
    return seen


SCENES = {"equal": equal, "failures": failures, "full_disk": full_disk, "rollback": rollback}


def main(description: Path) -> None:
    from megatron_native.platform import start_platform

    platform = start_platform("cpu")
    from megatron_native.config.load import check_run_config
    from megatron_native.training.trainer import Trainer
    from tests.distributed import leave_groups

    for job in json.loads(description.read_text(encoding="utf-8")):
        trainer = Trainer(check_run_config(job["run"], "test"), platform)
        if job["scene"] == "train":
            trainer.fit()
        else:
            seen = SCENES[job["scene"]](trainer)
            report = trainer.run.run_dir / f"report_{platform.rank}.json"
            report.write_text(json.dumps(seen, ensure_ascii=False), encoding="utf-8")
        leave_groups()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
