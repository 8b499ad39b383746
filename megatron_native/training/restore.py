"""Where a run begins: its newest whole checkpoint, another run's (a branch), imported weights, or random ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.torch_dist import read_common
from megatron_native.config.run import RunConfig
from megatron_native.data.ledger import Ledger, read_ledger
from megatron_native.errors import UserError
from megatron_native.models.fp8_layers import round_weights, set_bf16_layers
from megatron_native.platform import Platform
from megatron_native.training import checkpoints
from megatron_native.training.course import Progress
from megatron_native.training.incidents import CHECKPOINT_DAMAGED, Incidents
from megatron_native.training.model import TrainableModel
from megatron_native.training.retention import newest_whole
from megatron_native.training.shape import read_model
from megatron_native.training.sharded_state import reset_moments


@dataclass
class Restored:
    """What a run begins with."""

    progress: Progress
    ledger: Ledger
    folder: Path | None
    """The checkpoint it comes from."""
    travelling: Path | None
    """Whose `run/` files go into the checkpoints to come."""
    fresh: bool
    """Whether the run begins here, with weights and nothing else."""
    monitors: dict[str, Any] = field(default_factory=dict)
    """State of what watches the run."""


def restore(
    run: RunConfig, model: TrainableModel, platform: Platform, say: Callable[[str], None], incidents: Incidents
) -> Restored:
    """Fill the model and find the position; every rank calls this. A damaged checkpoint is an incident.

    Raises:
        UserError: a checkpoint lacks something, or the run folder holds some and may not go on from them.
    """
    newest = _newest(run, platform, say, incidents)
    if newest is not None:
        if not run.checkpointing.resume:
            raise UserError(
                f"{run.run_dir} already holds checkpoints up to {newest.name} and checkpointing.resume is false: choose "
                "another run_dir, or let the run resume."
            )
        return _resumed(newest, run, model)
    if run.model.branch_from is not None:
        layout.check_complete(run.model.branch_from)
        branched = _resumed(run.model.branch_from, run, model)
        # the phases of this configuration begin here, whatever those of the trunk were
        branched.progress.phase, branched.progress.phase_steps, branched.progress.phase_tokens = None, 0, 0
        if "adopted" not in branched.monitors:  # an adopted run's schedule goes on
            branched.progress.schedule_steps = 0
        return branched
    _keep_in_bf16(run, model, None)
    if run.model.checkpoint is not None:
        layout.check_complete(run.model.checkpoint)
        checkpoints.load_weights(run.model.checkpoint, model)
        return Restored(Progress(), Ledger(run.seed), run.model.checkpoint, run.model.checkpoint, fresh=True)
    round_weights(model.configs.transformer, model.modules)
    return Restored(Progress(), Ledger(run.seed), None, _files_of_a_new_model(run, platform), fresh=True)


def roll_back(
    run: RunConfig, model: TrainableModel, platform: Platform, say: Callable[[str], None], incidents: Incidents
) -> Restored:
    """Go back to the newest whole checkpoint, or to where the run began."""
    restored = restore(run, model, platform, say, incidents)
    if restored.fresh and run.model.checkpoint is None:
        raise UserError(
            "the loss spiked before the first checkpoint of a run from random weights: there is nothing to go back to. Save "
            "earlier (checkpointing.save_interval), or choose another faults.spike.action."
        )
    if restored.fresh:
        reset_moments(model.optimizer)
    return restored


def _newest(run: RunConfig, platform: Platform, say: Callable[[str], None], incidents: Incidents) -> Path | None:
    """The newest whole checkpoint of the run folder, found by the main rank for all."""
    found: list[str | None] = [None]
    if platform.is_main:
        newest = newest_whole(
            run.run_dir, run.checkpointing.verify_on_resume, say,
            lambda message, step: incidents.record(CHECKPOINT_DAMAGED, message, step),
        )  # fmt: skip
        found = [None if newest is None else str(newest)]
    dist.broadcast_object_list(found, src=0)
    return None if found[0] is None else Path(found[0])


def _keep_in_bf16(run: RunConfig, model: TrainableModel, folder: Path | None) -> None:
    """Before weights are loaded, and rounded where they are kept in FP8: which layers aren't, moved ones too."""
    if run.training.precision != "fp8":
        return
    conscience = (read_common(folder).get("progress", {}).get("conscience") or {}) if folder is not None else {}
    layers = {*run.fp8.bf16_layers, *map(int, conscience.get("moved", ()))}
    set_bf16_layers(model.configs.transformer, model.modules, layers)


def _resumed(folder: Path, run: RunConfig, model: TrainableModel) -> Restored:
    _keep_in_bf16(run, model, folder)
    state = checkpoints.load_checkpoint(folder, model)
    progress = Progress(**state["position"])
    return Restored(progress, read_ledger(folder), folder, folder, fresh=False, monitors=state)


def _files_of_a_new_model(run: RunConfig, platform: Platform) -> Path:
    """For a model with random weights: its shape and `config.json`, laid out in the run folder as a checkpoint has them."""
    assert run.model.hf_config is not None
    folder = run.run_dir
    if platform.is_main:
        source = run.model.hf_config
        source = source / "config.json" if source.is_dir() else source
        (folder / layout.HF_FOLDER).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / layout.HF_CONFIG_FILE)
        layout.write_model_config(folder, read_model(run))
    dist.barrier()
    return folder
