"""One step of real runs on gloo, in which every rank notes what it holds; started by `tests.distributed.run_jobs`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.distributed import leave_groups


def main(description: Path) -> None:
    """A job is `{"run": RunConfig, "model": ModelConfig, "out": folder}`; rank r writes `rank-<r>.json` there."""
    from megatron_native.platform import start_platform

    platform = start_platform("cpu")
    for job in json.loads(description.read_text(encoding="utf-8")):
        held = _held_in_a_step(job["run"], job["model"], platform)
        out = Path(job["out"])
        out.mkdir(parents=True, exist_ok=True)
        (out / f"rank-{platform.rank}.json").write_text(json.dumps(held), encoding="utf-8")
        leave_groups()


def _held_in_a_step(raw_run: dict[str, Any], raw_model: dict[str, Any], platform: Any) -> dict[str, Any]:
    from megatron.core import parallel_state

    from megatron_native.config.megatron import megatron_configs
    from megatron_native.config.model import ModelConfig
    from megatron_native.config.run import RunConfig
    from megatron_native.platform import seed_everything
    from megatron_native.training.model import build_trainable_model, initialize_parallel_state
    from megatron_native.training.plan.activations import component
    from megatron_native.training.plan.saved_tensors import SavedTensors
    from megatron_native.training.step import apply_update, compute_gradients

    run, model = RunConfig.model_validate(raw_run), ModelConfig.model_validate(raw_model)
    initialize_parallel_state(run)
    seed_everything(run.seed)
    trainable = build_trainable_model(run, model, megatron_configs(run, model, "cpu", "torch"), platform.device)
    batches = _micro_batches(run, model, parallel_state.get_data_parallel_world_size())
    saved = SavedTensors(trainable.modules, component)
    with saved.counting():
        result = compute_gradients(trainable.chunks, trainable.optimizer, batches, platform.device)
    apply_update(trainable.optimizer, result, 1e-3, 0.1)

    model_storages = _storages(p for chunk in trainable.chunks for p in chunk.parameters())
    state = [
        value
        for inner in getattr(trainable.optimizer, "chained_optimizers", [trainable.optimizer])
        if not getattr(inner, "is_stub_optimizer", False)
        for parameter, values in inner.optimizer.state.items()
        for value in (parameter, values["exp_avg"], values["exp_avg_sq"])
    ]
    return {
        "pipeline_rank": parallel_state.get_pipeline_model_parallel_rank(),
        "layers": [[layer.layer_number - 1 for layer in module.decoder.layers] for module in trainable.modules],
        "parameters": [
            {name: list(parameter.shape) for name, parameter in module.named_parameters()}
            for module in trainable.modules
        ],
        "weights": sum(model_storages.values()),
        "gradients": sum(_storages(p.main_grad for chunk in trainable.chunks for p in chunk.parameters()).values()),
        "optimizer": sum(size for key, size in _storages(state).items() if key not in model_storages),
        "activations": saved.peak,
        "left": saved.bytes(),
    }


def _micro_batches(run: Any, model: Any, data_parallel: int) -> list[Any]:
    import numpy as np
    import torch

    from megatron_native.training.batches import MicroBatch, pack, positions_of

    rows, length = run.training.micro_batch_size, run.data.seq_length
    found = []
    for _ in range(run.training.global_batch_size // (rows * data_parallel)):
        tokens = torch.randint(0, model.vocab_size, (rows, length))
        batch = MicroBatch(tokens, tokens.clone(), torch.ones(rows, length), positions_of(tokens))
        documents = [length // 4, length - length // 4] * rows
        found.append(pack(batch, np.array(documents)) if run.data.document_boundaries else batch)
    return found


def _storages(tensors: Iterable[Any]) -> dict[int, int]:
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
