"""Checkpoints of a run: megatron-core's distributed format, written beside and renamed, complete in themselves.

Model weights and optimizer state are global tensors (optimizer sharding `fully_reshardable`), so a run resumes under
another layout; the same layout resumes bit for bit. What travels with the weights is described by `checkpoint/layout.py`.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.torch_dist import TorchDistReader, read_common
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.training.model import TrainableModel

_RNG_KEY = "rng_state"


def _content() -> dict[str, Any]:
    """What the checkpoint holds, for megatron-core, which adds process groups to the dictionary it is given."""
    return {"distrib_optim_sharding_type": "fully_reshardable"}


@dataclass
class Progress:
    """How far a run is; the only position there is."""

    step: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` lies."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The run's finished checkpoints, oldest first; folders still being written have another name."""
    return sorted(path for path in (run_dir / "checkpoints").glob("step_????????") if path.is_dir())


def save_checkpoint(
    folder: Path, model: TrainableModel, progress: Progress, source: Path | None, config_yaml: str, save_optimizer: bool
) -> None:
    """Write a complete checkpoint; every rank calls this.

    Args:
        folder: where it will lie. It is written beside and appears whole.
        source: checkpoint whose `run/` files (model, tokenizer, HF config, reference logits) travel along.
        config_yaml: the resolved configuration.
        save_optimizer: also write optimizer state and RNG states, which an exact resume needs.
    """
    partial = layout.partial_path(folder)
    if dist.get_rank() == 0:
        layout.start_partial(folder)
    dist.barrier()
    state = _model_state(model.modules)
    state["progress"] = vars(progress).copy()
    if save_optimizer:
        state["optimizer"] = model.optimizer.sharded_state_dict(_flat_model_state(state), metadata=_content())
        state[_RNG_KEY] = _rng_object(_rng_state())
    dist_checkpointing.save(state, str(partial), ("torch_dist", 1), content_metadata=_content())
    if dist.get_rank() == 0:
        if source is not None:
            layout.copy_run_files(source, partial)
        (partial / layout.RUN).mkdir(exist_ok=True)
        (partial / layout.RUN / "config.yaml").write_text(config_yaml, encoding="utf-8")
        layout.write_checksums(partial)
        if folder.exists():
            shutil.rmtree(folder)
        layout.finish_partial(partial, folder)
    dist.barrier()


def load_weights(folder: Path, model: TrainableModel) -> None:
    """Fill the model's weights from a checkpoint, of whatever layout, and the optimizer's masters from them."""
    load_model_weights(folder, model.modules)
    model.optimizer.reload_model_params()


def load_model_weights(folder: Path, modules: Sequence[Any]) -> None:
    """Fill unwrapped model chunks from a checkpoint.

    Raises:
        UserError: the checkpoint lacks a weight of the model, or has it in another shape.
    """
    state = _model_state(modules)
    _require_keys(folder, state)
    _put_model_state(modules, dist_checkpointing.load(state, str(folder)))


def refuse_other_data(folder: Path, run: RunConfig) -> None:
    """Refuse to go on from a checkpoint with settings under which the same position means other samples.

    Raises:
        UserError: names each such setting with its value there and here.
    """
    path = folder / layout.RUN / "config.yaml"
    there = yaml.safe_load(path.read_text(encoding="utf-8"))
    here = run.model_dump(mode="json")
    fields = (("seed",), ("data", "seq_length"), ("data", "blend"), ("training", "global_batch_size"))
    differing = []
    for keys in fields:
        before, now = there, here
        for key in keys:
            before, now = before[key], now[key]
        if before != now:
            differing.append(f"{'.'.join(keys)}: {before} there, {now} now")
    if differing:
        raise UserError(
            f"{folder} was trained with other settings of the data ({'; '.join(differing)}), so going on would repeat or "
            "skip samples. Put them back, or start a run of its own with model.checkpoint set to that folder."
        )


def load_checkpoint(folder: Path, model: TrainableModel) -> Progress:
    """Restore weights, optimizer, RNG states and position from a checkpoint of this run.

    RNG states belong to a place in the layout: under another layout the seeds of the start stand.

    Raises:
        UserError: the checkpoint is incomplete or was saved without optimizer state.
    """
    layout.check_complete(folder)
    reader = TorchDistReader(folder)
    if not any(key.startswith("optimizer.") for key in reader.tensors):
        raise UserError(
            f"{folder} was saved without optimizer state (checkpointing.save_optimizer=false), so the run can't go on "
            "exactly from it. Start a new run with model.checkpoint set to it, in another run_dir."
        )
    state = _model_state(model.modules)
    _require_keys(folder, state)
    _prepare_torch_adam_for_loading(model.optimizer)
    state["optimizer"] = model.optimizer.sharded_state_dict(
        _flat_model_state(state), is_loading=True, metadata=_content()
    )
    rng = _rng_object(None)
    same_layout = any(key.startswith(f"{rng.unique_key}") for key in reader.objects)
    if same_layout:
        state[_RNG_KEY] = rng
    loaded = dist_checkpointing.load(state, str(folder))
    _put_model_state(model.modules, loaded)
    model.optimizer.load_state_dict(loaded["optimizer"])
    _separate_torch_adam_steps(model.optimizer)
    if same_layout:
        _set_rng_state(loaded[_RNG_KEY])
    return Progress(**read_common(folder)["progress"])


def prune(run_dir: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints; 0 keeps all. Called by one rank."""
    if keep_last:
        for folder in checkpoints_of(run_dir)[:-keep_last]:
            shutil.rmtree(folder)


def _model_state(modules: Sequence[Any]) -> dict[str, Any]:
    """Each chunk's sharded state under `model`, or `model0`, `model1`, … as in Megatron-LM."""
    if len(modules) == 1:
        return {"model": modules[0].sharded_state_dict(metadata=_content())}
    return {f"model{index}": module.sharded_state_dict(metadata=_content()) for index, module in enumerate(modules)}


def _flat_model_state(state: dict[str, Any]) -> dict[str, Any]:
    """What the optimizer looks its parameters up in."""
    return {key: value for key, value in state.items() if key.startswith("model")}


def _put_model_state(modules: Sequence[Any], loaded: dict[str, Any]) -> None:
    for index, module in enumerate(modules):
        key = "model" if len(modules) == 1 else f"model{index}"
        # Not strict about Transformer Engine's extra state, which an import leaves empty; weights were checked before.
        missing, unexpected = module.load_state_dict(loaded[key], strict=False)
        wrong = [name for name in (*missing, *unexpected) if not name.endswith("_extra_state")]
        if wrong:
            raise RuntimeError(f"the model and its loaded state differ in {wrong}")


def _prepare_torch_adam_for_loading(optimizer: Any) -> None:
    """Bridge gaps of megatron-core 0.16 with torch's AdamW, which stands in where no fused Adam is installed.

    It asks for the optimizer's step before there was one, so the state is allocated first. And it copies every state of
    a parameter from the checkpoint, `step` included, which is not stored per parameter: the value that it has already
    set from the parameter groups is handed back to it.
    """
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not isinstance(inner.optimizer, torch.optim.AdamW):
            continue
        states = inner.optimizer.state
        for group in inner.optimizer.param_groups:
            for parameter in group["params"]:
                if not states[parameter]:
                    states[parameter] = {
                        "step": torch.zeros(()),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
        if hasattr(inner, "_set_main_param_and_optimizer_states"):
            inner._set_main_param_and_optimizer_states = _with_own_step(inner)


def _separate_torch_adam_steps(optimizer: Any) -> None:
    """Give every parameter a step counter of its own again: megatron-core 0.16 loads one tensor into all of them.

    torch's AdamW counts in place, so a shared counter would advance once per parameter at every step.
    """
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(inner.optimizer, torch.optim.AdamW):
            for state in inner.optimizer.state.values():
                state["step"] = state["step"].clone()


def _with_own_step(optimizer: Any) -> Any:
    set_states = type(optimizer)._set_main_param_and_optimizer_states

    def set_states_with_step(model_param: Any, tensors: dict[str, Any]) -> None:
        group, order = optimizer.model_param_group_index_map[model_param]
        main_param = optimizer.optimizer.param_groups[group]["params"][order]
        set_states(optimizer, model_param, {**tensors, "step": optimizer.optimizer.state[main_param]["step"]})

    return set_states_with_step


def _require_keys(folder: Path, state: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks a weight or has it in another shape, before megatron-core tries to read it."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    tensors = TorchDistReader(folder).tensors
    for tensor in nested_values(state):
        if not isinstance(tensor, ShardedTensor):
            continue
        if tensor.key not in tensors:
            raise UserError(f"{folder} has no weight {tensor.key}, which this model needs: is it another model's?")
        there, here = tuple(tensors[tensor.key].shape), tuple(tensor.global_shape)
        if there != here and not tensor.allow_shape_mismatch:
            raise UserError(f"{folder}: {tensor.key} has shape {there}, this model's is {here}: another model's?")


def _rng_object(data: Any) -> ShardedObject:
    """The RNG states as an object with one shard per pipeline and tensor rank, replicated over data-parallel ranks."""
    pipeline, tensor = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
    return ShardedObject(
        _RNG_KEY,
        data,
        (pipeline, tensor),
        (parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_tensor_model_parallel_rank()),
        replica_id=parallel_state.get_data_parallel_rank(with_context_parallel=True),
    )


def _rng_state() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state(state["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])
