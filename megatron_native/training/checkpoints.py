"""Checkpoints of a run: saved while training goes on, complete in themselves, restored under any layout.

A save blocks training for the copy of the state only: a forked process on every rank writes it, beside and under another
name, and the folder gets its own name when every file is on the disk with its checksum. Whatever fails, on whatever
rank, all ranks learn of it, the half-written folder goes and the run goes on with its older checkpoints.

Model weights and optimizer state are global tensors, so a run resumes under another layout; the same layout resumes bit
for bit. Weights that the model keeps in FP8 are saved as their FP32 masters have them, in BF16. What travels with the
weights is described by `checkpoint/layout.py`.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.torch_dist import TorchDistReader, read_common
from megatron_native.config.run import CheckpointingSection
from megatron_native.errors import UserError
from megatron_native.models.fp8_layers import round_weights, rounded_weights
from megatron_native.training import sharded_state
from megatron_native.training.async_save import (
    BesideTensors,
    PlannedSave,
    Written,
    finish_save,
    plan_save,
    write_planned,
)
from megatron_native.training.forked_writer import ForkedWriter
from megatron_native.training.masters import read_weights, refill_masters
from megatron_native.training.model import TrainableModel
from megatron_native.training.owned_state import put_unrounded_weights, without_gathering
from megatron_native.training.retention import Retention, checkpoint_folder, checkpoints_of

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class SavedCheckpoint:
    """How a save ended; every rank says the same, but for its own seconds."""

    folder: Path
    step: int
    seconds: float
    """From its beginning until it had its name, or had failed."""
    bytes: int
    """Of all its files, on all ranks; 0 when it failed."""
    failed: str | None
    """Why there is no such checkpoint; None when there is one."""
    blocked: float = 0.0
    """Seconds that training waited for it, from its beginning to its end."""


@dataclass
class _Save:
    """A save under way, as one rank sees it."""

    folder: Path
    step: int
    started: float
    planned: PlannedSave | None = None
    writer: ForkedWriter | None = None
    keep: tuple[Path, ...] = ()
    """Checkpoints that are not deleted after this save."""
    failed: str | None = None
    """Why this rank can't do its part."""
    blocked: float = 0.0
    finishing: bool = False
    """All ranks have written, and rank 0 makes a checkpoint of it."""
    finished: Future[tuple[int, str | None]] | None = None
    """Rank 0's: bytes, and why it failed."""


@contextmanager
def _short_collections() -> Iterator[None]:
    """Leave what is there out of garbage collections: megatron-core does one for its sharded state, 0.3 s long otherwise."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Checkpointer:
    """Saves a run's checkpoints; every rank makes one, at the same time.

    What an earlier run left half written is removed first.

    Args:
        run_dir: the run's folder; checkpoints lie in `checkpoints/step_XXXXXXXX`.
        settings: when to save asynchronously, with or without the optimizer, and what to keep.
        say: gets a line about leftovers and about what could not be deleted, on rank 0.
    """

    def __init__(self, run_dir: Path, settings: CheckpointingSection, say: Callable[[str], None]) -> None:
        self.run_dir, self.settings, self._say = run_dir, settings, say
        self._rank = dist.get_rank()
        # Of its own and on the CPU: asking how far a save is never waits for a device.
        self._group = dist.new_group(backend="gloo")
        self._save: _Save | None = None
        self._ended: list[SavedCheckpoint] = []
        self._validated = False
        self._retention: Retention | None = None
        self._thread: ThreadPoolExecutor | None = None
        if self._rank == 0:
            self._retention = Retention(run_dir, settings.keep_last, settings.keep_every)
            self._retention.clean(say)
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-finishing")

    @property
    def in_flight(self) -> bool:
        """Whether a save is under way; the same on every rank."""
        return self._save is not None

    def save(
        self,
        step: int,
        model: TrainableModel,
        progress: Mapping[str, Any],
        source: Path | None,
        run_files: Mapping[str, str],
        keep: Collection[Path] = (),
    ) -> float:
        """Begin to save; collective. Model and optimizer may change as soon as this returns.

        A save that is still under way is waited for first. How a save ended is told by `poll` and `wait`: a full disk
        is no exception.

        Args:
            step: names the checkpoint; one of the same name is replaced when the new one is whole.
            model: what is saved.
            progress: how far the run is, as JSON could hold it; `load_checkpoint` returns it.
            source: checkpoint whose `run/` files (model, tokenizer, HF config, reference logits) travel along. Where it
                is gone, the newest checkpoint of this run, which had them from it.
            run_files: other texts by name relative to `run/`, such as `config.yaml`.
            keep: checkpoints that retention leaves alone this time, as old as they are.

        Returns:
            Seconds that training was blocked.

        Raises:
            TypeError: `progress` holds something that JSON doesn't.
        """
        started = time.monotonic()
        position = json.loads(json.dumps(progress))
        self._wait_for_save()
        begun = time.monotonic()
        save = _Save(checkpoint_folder(self.run_dir, step), step, begun, keep=tuple(keep))
        with _short_collections():
            state = sharded_state.model_state(model.modules)
            state["progress"] = position
            if self.settings.save_optimizer:
                flat = sharded_state.flat_model_state(state)
                with without_gathering(model.optimizer):
                    state["optimizer"] = model.optimizer.sharded_state_dict(flat, metadata=sharded_state.content())
                state[sharded_state.RNG_KEY] = sharded_state.rng_object(sharded_state.rng_state())
            put_unrounded_weights(model.optimizer, state, rounded_weights(model.configs.transformer, model.modules))
        planned = plan_save(state, sharded_state.content(), validate=not self._validated)
        del state
        self._validated = True
        refused = self._prepare_folder(save.folder, planned.bytes)
        if refused is None:
            self._start_writer(save, planned, source, run_files)
        save.blocked = time.monotonic() - begun
        self._save = save
        if refused is not None:
            self._end(save, 0, refused)
        elif not self.settings.asynchronous:
            self._wait_for_save()
        return time.monotonic() - started

    def poll(self) -> list[SavedCheckpoint]:
        """Finish a save whose files are written, without waiting; collective, called after every step.

        Returns:
            The saves that have ended, well or not, since the last call.
        """
        if self._save is not None:
            self._advance(self._save)
        if self._retention is not None:
            for failure in self._retention.failures():
                self._say(failure)
        ended, self._ended = self._ended, []
        return ended

    def wait(self) -> list[SavedCheckpoint]:
        """Block until nothing is under way, deletions included; collective. Returns what `poll` does."""
        self._wait_for_save()
        if self._retention is not None:
            self._retention.wait()
        return self.poll()

    def _wait_for_save(self) -> None:
        while self._save is not None:
            save = self._save
            if not self._advance(save):
                time.sleep(_POLL_SECONDS)
                save.blocked += _POLL_SECONDS

    def _prepare_folder(self, folder: Path, own_bytes: int) -> str | None:
        """Make the empty folder to write in, on rank 0; every rank learns why there is none."""
        total = torch.tensor([own_bytes], dtype=torch.int64, device="cpu")
        dist.all_reduce(total, group=self._group)
        refused: list[str | None] = [None]
        if self._retention is not None:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                self._require_space(folder.parent, int(total))
                layout.start_partial(folder)
            except (OSError, UserError) as error:
                refused[0] = layout.in_one_line(error)
        dist.broadcast_object_list(refused, src=0, group=self._group, device=torch.device("cpu"))
        return refused[0]

    def _require_space(self, folder: Path, needed: int) -> None:
        """Raise `UserError` where the disk lacks `needed` bytes, also when what is being deleted has gone."""
        assert self._retention is not None
        try:
            layout.check_free_space(folder, needed, "the checkpoint")
        except UserError:
            self._retention.wait()
            layout.check_free_space(folder, needed, "the checkpoint")

    def _start_writer(
        self, save: _Save, planned: PlannedSave, source: Path | None, run_files: Mapping[str, str]
    ) -> None:
        """Fork this rank's writer; what keeps it from starting is this rank's failure, agreed on with the others later."""
        beside = None
        try:
            if self._rank == 0:
                beside = BesideTensors(self._travelling_from(source), dict(run_files))
            planned.stage()
            work = partial(write_planned, planned, layout.partial_path(save.folder), self._rank, beside)
            save.writer = ForkedWriter(work)
        except (OSError, RuntimeError) as error:  # torch's lack of memory is a RuntimeError
            save.failed = layout.in_one_line(error)
        planned.release()
        save.planned = planned

    def _travelling_from(self, source: Path | None) -> Path | None:
        if source is None or source.is_dir():
            return source
        existing = checkpoints_of(self.run_dir)
        if not existing:
            raise FileNotFoundError(f"{source}, whose {layout.RUN}/ files belong into the checkpoint, is gone")
        return existing[-1]

    def _advance(self, save: _Save) -> bool:
        """Take a save as far as it goes without waiting; whether it has ended. Collective."""
        started = time.monotonic()
        try:
            if not save.finishing:
                if not self._all(save.writer is None or save.writer.done()):
                    return False
                self._begin_finishing(save)
            if not self._all(save.finished is None or save.finished.done()):
                return False
            outcome = [save.finished.result() if save.finished is not None else None]
            dist.broadcast_object_list(outcome, src=0, group=self._group, device=torch.device("cpu"))
        finally:
            save.blocked += time.monotonic() - started
        assert outcome[0] is not None
        self._end(save, *outcome[0])
        return True

    def _all(self, here: bool) -> bool:
        """Whether all ranks say so."""
        answer = torch.tensor([int(here)], dtype=torch.int32, device="cpu")
        dist.all_reduce(answer, op=dist.ReduceOp.MIN, group=self._group)
        return bool(answer)

    def _begin_finishing(self, save: _Save) -> None:
        """Collect what the ranks have written, or why they have not; rank 0 goes on in a thread."""
        written, failed = save.writer.result() if save.writer is not None else (None, save.failed)
        report = (written, None if failed is None else f"rank {self._rank}: {failed}")
        reports: list[Any] | None = [None] * dist.get_world_size() if self._rank == 0 else None
        dist.gather_object(report, reports, dst=0, group=self._group)
        save.finishing = True
        if reports is not None:
            assert self._thread is not None and save.planned is not None
            save.finished = self._thread.submit(self._finish, save, save.planned.planner, reports)

    def _finish(self, save: _Save, planner: Any, reports: list[tuple[Written, str | None]]) -> tuple[int, str | None]:
        """Rank 0's last part, in a thread: a checkpoint with its name, or nothing of it. Bytes, and why it failed."""
        assert self._retention is not None
        unfinished = layout.partial_path(save.folder)
        failures = [failed for _, failed in reports if failed is not None]
        size = 0
        if not failures:
            try:
                written = [report for report, _ in reports]
                size = finish_save(planner, written, unfinished, save.folder, self._retention.delete)
            except Exception as error:  # whatever it is, every rank has to learn of it
                failures.append(f"rank 0: {layout.in_one_line(error)}")
        if failures:
            with suppress(OSError):  # told by failures(), or cleaned up by the next run
                self._retention.delete(unfinished)
            return 0, "; ".join(failures[:4]) + (f"; and {len(failures) - 4} more" if len(failures) > 4 else "")
        for folder in self._retention.expired(protected=(save.folder, *save.keep)):
            with suppress(OSError):  # tried again after the next save
                self._retention.delete(folder)
        return size, None

    def _end(self, save: _Save, size: int, failed: str | None) -> None:
        seconds = time.monotonic() - save.started
        self._ended.append(SavedCheckpoint(save.folder, save.step, seconds, size, failed, save.blocked))
        self._save = None


def load_weights(folder: Path, model: TrainableModel) -> None:
    """Fill the model's weights from a checkpoint, of whatever layout, and the optimizer's masters with the same values.

    Where weights are kept in FP8 they are rounded only after the masters have them; megatron-core's way round loses bits.
    """
    config, modules = model.configs.transformer, model.modules
    if not (config.fp8 and config.fp8_param):
        load_model_weights(folder, modules)
        model.optimizer.reload_model_params()
        return
    _require_keys(TorchDistReader(folder), sharded_state.model_state(modules))
    loaded, weights = read_weights(folder, modules)
    sharded_state.put_model_state(modules, loaded)
    refill_masters(model.optimizer, weights)
    round_weights(config, modules)


def load_model_weights(folder: Path, modules: Sequence[Any]) -> None:
    """Fill unwrapped model chunks from a checkpoint.

    Raises:
        UserError: the checkpoint lacks a weight of the model, or has it in another shape.
    """
    state = sharded_state.model_state(modules)
    _require_keys(TorchDistReader(folder), state)
    sharded_state.put_model_state(modules, dist_checkpointing.load(state, str(folder)))


def load_checkpoint(folder: Path, model: TrainableModel, reset_optimizer: bool = False) -> dict[str, Any]:
    """Restore weights, optimizer and RNG states from a checkpoint of this run.

    RNG states belong to a place in the layout: under another layout the seeds of the start stand.

    Args:
        folder: the checkpoint.
        model: what is restored; it may have been trained since it was built.
        reset_optimizer: the moments and step counts start anew; weights and their FP32 masters are restored.

    Returns:
        The `progress` that was saved.

    Raises:
        UserError: the checkpoint is incomplete, or has no state for this run's optimizer, or none at all and that is not
            reset.
    """
    layout.check_complete(folder)
    reader, common = TorchDistReader(folder), read_common(folder)
    if not any(key.startswith("optimizer.") for key in reader.tensors):
        if not reset_optimizer:
            raise UserError(
                f"{folder} was saved without optimizer state (checkpointing.save_optimizer=false), so the run can't go on "
                "exactly from it. Start a new run with model.checkpoint set to it, in another run_dir."
            )
        load_weights(folder, model)
    else:
        _load_everything(model, reader, common)
    if reset_optimizer:
        sharded_state.reset_moments(model.optimizer)
    return dict(common["progress"])


def _load_everything(model: TrainableModel, reader: TorchDistReader, common: dict[str, Any]) -> None:
    state = sharded_state.model_state(model.modules)
    _require_keys(reader, state)
    sharded_state.refuse_missing_groups(model.optimizer, common.get("optimizer", {}), reader.folder)
    sharded_state.prepare_torch_adam_for_loading(model.optimizer)
    flat = sharded_state.flat_model_state(state)
    with _short_collections():
        state["optimizer"] = model.optimizer.sharded_state_dict(flat, is_loading=True, metadata=sharded_state.content())
    _require_states(reader, state["optimizer"])
    rng = sharded_state.rng_object(None)
    same_layout = any(key.startswith(f"{rng.unique_key}") for key in reader.objects)
    if same_layout:
        state[sharded_state.RNG_KEY] = rng
    loaded = dist_checkpointing.load(state, str(reader.folder))
    sharded_state.put_model_state(model.modules, loaded)
    sharded_state.add_missing_groups(model.optimizer, loaded["optimizer"])
    model.optimizer.load_state_dict(loaded["optimizer"])
    sharded_state.separate_torch_adam_steps(model.optimizer)
    round_weights(model.configs.transformer, model.modules)
    if same_layout:
        sharded_state.set_rng_state(loaded[sharded_state.RNG_KEY])


def _require_keys(reader: TorchDistReader, state: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks a weight or has it in another shape, before megatron-core tries to read it."""
    folder, tensors = reader.folder, reader.tensors
    for tensor in _sharded_tensors(state):
        if tensor.key not in tensors:
            raise UserError(f"{folder} has no weight {tensor.key}, which this model needs: is it another model's?")
        there, here = tuple(tensors[tensor.key].shape), tuple(tensor.global_shape)
        if there != here and not tensor.allow_shape_mismatch:
            raise UserError(f"{folder}: {tensor.key} has shape {there}, this model's is {here}: another model's?")


def _require_states(reader: TorchDistReader, state: dict[str, Any]) -> None:
    """Refuse a checkpoint of another kind of optimizer: one that has no masters of FP32 weights, say."""
    missing = [tensor.key for tensor in _sharded_tensors(state) if tensor.key not in reader.tensors]
    if missing:
        raise UserError(
            f"{reader.folder} has no {missing[0]}, which this run's optimizer needs: parallel.use_distributed_optimizer or "
            "training.precision was another when it was saved. Set them as they were, or start a new run with "
            "model.checkpoint set to it, in another run_dir."
        )


def _sharded_tensors(state: dict[str, Any]) -> Iterator[Any]:
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    return (tensor for tensor in nested_values(state) if isinstance(tensor, ShardedTensor))
