"""What a checkpoint is made of and restored into: sharded state of model, optimizer and random generators.

Model weights and optimizer state are global tensors (optimizer sharding `fully_reshardable`), so what one layout saved
another can load; RNG states belong to a place in the layout. Gaps between megatron-core 0.16 and torch's AdamW, which
stands in where no fused Adam is installed, are bridged here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import param_group_identifier_keys

from megatron_native.errors import UserError
from megatron_native.models.fp8_layers import without_foreign_states

RNG_KEY = "rng_state"


def content() -> dict[str, Any]:
    """What the checkpoint holds, for megatron-core, which adds process groups to the dictionary it is given."""
    return {"distrib_optim_sharding_type": "fully_reshardable"}


def model_state(modules: Sequence[Any]) -> dict[str, Any]:
    """Each chunk's sharded state under `model`, or `model0`, `model1`, … as in Megatron-LM."""
    if len(modules) == 1:
        return {"model": modules[0].sharded_state_dict(metadata=content())}
    return {f"model{index}": module.sharded_state_dict(metadata=content()) for index, module in enumerate(modules)}


def flat_model_state(state: dict[str, Any]) -> dict[str, Any]:
    """What the optimizer looks its parameters up in."""
    return {key: value for key, value in state.items() if key.startswith("model")}


def put_model_state(modules: Sequence[Any], loaded: dict[str, Any]) -> None:
    """Load what `model_state` described back into the chunks."""
    for index, module in enumerate(modules):
        key = "model" if len(modules) == 1 else f"model{index}"
        # Not strict about Transformer Engine's extra state, which an import leaves empty; weights were checked before.
        missing, unexpected = module.load_state_dict(without_foreign_states(module, loaded[key]), strict=False)
        wrong = [name for name in (*missing, *unexpected) if not name.endswith("_extra_state")]
        if wrong:
            raise RuntimeError(f"the model and its loaded state differ in {wrong}")


def add_missing_groups(optimizer: Any, saved: dict[Any, Any]) -> None:
    """Give what was `saved` of distributed optimizers every parameter group that this run's have.

    megatron-core finds groups by their multipliers, so a learning rate of embeddings of their own
    (`optimizer.embedding_lr_multiplier`) would end a run that goes on from a checkpoint without. Settings and step of a new
    group are those of one with the same weight decay.
    """
    inners = getattr(optimizer, "chained_optimizers", [optimizer])
    states = [saved] if len(inners) == 1 else [state for _, state in sorted(saved.items())]
    for inner, state in zip(inners, states, strict=True):
        if not isinstance(inner, DistributedOptimizer) or getattr(inner, "is_stub_optimizer", False):
            continue
        groups = state["optimizer"]["param_groups"]
        for wanted in _missing_groups(inner, groups):
            alike = next((one for one in groups if _group_identity(one)[0] == wanted[0]), groups[0])
            groups.append({**alike, **dict(zip(param_group_identifier_keys, wanted, strict=True))})


def refuse_missing_groups(optimizer: Any, saved: dict[Any, Any], folder: Path) -> None:
    """Raise `UserError` where an optimizer that is not distributed has a parameter group that was not `saved`."""
    groups = saved.get("optimizer", saved).get("param_groups")
    inners = getattr(optimizer, "chained_optimizers", [optimizer])
    if len(inners) != 1 or isinstance(inners[0], DistributedOptimizer) or not groups:
        return
    if _missing_groups(inners[0], groups):
        raise UserError(
            f"{folder} was saved with another optimizer.embedding_lr_multiplier, and an optimizer that is not distributed "
            "can't go on with this one. Keep it as it was, or start from the weights alone (model.checkpoint)."
        )


def _missing_groups(inner: Any, groups: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    there = {_group_identity(group) for group in groups}
    return [wanted for group in inner.optimizer.param_groups if (wanted := _group_identity(group)) not in there]


def _group_identity(group: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(group.get(name, group.get(f"pre_{name}")) for name in param_group_identifier_keys)


def prepare_torch_adam_for_loading(optimizer: Any) -> None:
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


def separate_torch_adam_steps(optimizer: Any) -> None:
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


def reset_moments(optimizer: Any) -> None:
    """Set the moments and step counts of every optimizer inside to zero, where there are any; masters stay."""
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not hasattr(inner, "optimizer"):
            continue
        for state in inner.optimizer.state.values():
            for name in ("exp_avg", "exp_avg_sq", "step"):
                if isinstance(state.get(name), torch.Tensor):
                    state[name].zero_()
                elif name in state:
                    state[name] = 0
        for group in inner.optimizer.param_groups:
            if "step" in group:
                group["step"] = torch.zeros_like(group["step"]) if isinstance(group["step"], torch.Tensor) else 0


def rng_object(data: Any) -> ShardedObject:
    """The RNG states as an object with one shard per pipeline and tensor rank, replicated over data-parallel ranks."""
    pipeline, tensor = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
    return ShardedObject(
        RNG_KEY,
        data,
        (pipeline, tensor),
        (parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_tensor_model_parallel_rank()),
        replica_id=parallel_state.get_data_parallel_rank(with_context_parallel=True),
    )


def rng_state() -> dict[str, Any]:
    """Every random generator's state in this process."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the generators where `rng_state` found them."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state(state["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])
