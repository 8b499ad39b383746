"""Jobs about FP8 that need more than a run; started by `tests.distributed.run_jobs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.distributed import leave_groups


def main(description: Path) -> None:
    """Do each job (`train`: a run, with `fault` perhaps planted; `layers`, `masters`: see below); what it tells goes to
    `output`."""
    from megatron_native.platform import start_platform

    platform = start_platform("cpu")
    for job in json.loads(description.read_text(encoding="utf-8")):
        told = {"train": train, "layers": layers, "masters": masters}[job["kind"]](job, platform)
        if platform.is_main:
            Path(job["output"]).write_text(json.dumps(told), encoding="utf-8")
        leave_groups()


def train(job: dict[str, Any], platform: Any) -> dict[str, Any]:
    """A whole run, and what remains of it: the amax histories of this rank, and why it was refused."""
    from megatron_native.config.load import check_run_config
    from megatron_native.errors import UserError
    from megatron_native.models.fp8_layers import bf16_layers, linears, round_weights
    from megatron_native.training import checkpoints
    from megatron_native.training.trainer import Trainer

    load = checkpoints.load_weights
    if job.get("fault") == "masters refilled":

        def load_and_refill(folder: Path, model: Any) -> None:
            load(folder, model)
            model.optimizer.reload_model_params()

        checkpoints.load_weights = load_and_refill
    try:
        trainer = Trainer(check_run_config(job["train"], "test"), platform)
        trainer.fit()
    except UserError as error:
        return {"refused": str(error)}
    finally:
        checkpoints.load_weights = load
    modules, config = trainer.model.modules, trainer.model.configs.transformer
    before = [linear.weight.clone() for _, _, linear in linears(modules)]
    round_weights(config, modules)
    histories = {
        f"{layer}.{name}": linear.amax_history.history.tolist()
        for layer, name, linear in linears(modules)
        if getattr(linear, "amax_history", None) is not None
    }
    return {
        "bf16 layers": sorted(bf16_layers(config)),
        "histories": histories,
        "scales": {
            f"{layer}.{name}": linear.amax_history.scale.tolist()
            for layer, name, linear in linears(modules)
            if getattr(linear, "amax_history", None) is not None
        },
        "magnitudes": {
            f"{layer}.{name}": linear.weight.abs().unique().numel() for layer, name, linear in linears(modules)
        },
        "rounding again changes nothing": all(
            bool((weight == linear.weight).all()) for weight, (_, _, linear) in zip(before, linears(modules))
        ),
    }


def build(job: dict[str, Any], platform: Any) -> Any:
    """The trainable model of a job's run, with the checkpoint's weights."""
    from megatron_native.config.load import check_run_config
    from megatron_native.config.megatron import megatron_configs
    from megatron_native.platform import seed_everything
    from megatron_native.training import checkpoints
    from megatron_native.training.model import build_trainable_model, initialize_parallel_state
    from megatron_native.training.shape import read_model

    run = check_run_config(job["train"], "test")
    initialize_parallel_state(run)
    seed_everything(run.seed)
    shape = read_model(run)
    model = build_trainable_model(run, shape, megatron_configs(run, shape, "cpu", "torch"), platform.device)
    assert run.model.checkpoint is not None
    checkpoints.load_weights(run.model.checkpoint, model)
    return model


def layers(job: dict[str, Any], platform: Any) -> dict[str, Any]:
    """Which modules give other outputs than their BF16 twins, each from the same inputs, forward and backward."""
    import torch
    from megatron.core import parallel_state

    fp8 = build(job, platform).modules[0]
    parallel_state.destroy_model_parallel()
    bf16 = build({"train": {**job["train"], "training": {**job["train"]["training"], "precision": "bf16"}}}, platform)
    twins = dict(bf16.modules[0].named_modules())
    differing, same = [], []

    def compare(name: str) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> None:
            theirs = twins[name].forward(*arguments, **named)
            ours, theirs = (one[0] if isinstance(one, tuple) else one for one in (outputs, theirs))
            if isinstance(ours, torch.Tensor):
                (same if torch.equal(ours, theirs) else differing).append(name)

        return hook

    for name, module in fp8.named_modules():
        if not list(module.children()) and "rotary" not in name:
            module.register_forward_hook(compare(name), with_kwargs=True)
    tokens = torch.arange(48)[None]
    with torch.no_grad():
        fp8(tokens, tokens, None, labels=tokens)
    return {"differing": differing, "same": same}


def masters(job: dict[str, Any], platform: Any) -> dict[str, Any]:
    """After an import under FP8 weights: which masters equal the Hugging Face weights, and which weights do."""
    import torch
    from safetensors.torch import load_file

    from megatron_native.errors import UserError
    from megatron_native.training.import_gate import check_masters
    from megatron_native.training.masters import masters_of
    from megatron_native.training.parameter_names import named_parameters

    model = build(job, platform)
    names = named_parameters(model.modules)
    tensors = load_file(Path(job["hf"]) / "model.safetensors")
    told: dict[str, Any] = {"masters": [], "weights": []}
    for weight, _, master in masters_of(model.optimizer):
        expected = tensors.get(job["names"].get(names[weight], ""))
        if expected is not None:
            told["masters"] += [names[weight]] if torch.equal(master.flatten(), expected.float().flatten()) else []
            told["weights"] += [names[weight]] if torch.equal(weight.flatten(), expected.flatten()) else []
    checkpoint = Path(job["train"]["model"]["checkpoint"])
    told["message"] = check_masters(model, checkpoint).message
    model.optimizer.reload_model_params()  # the fault: masters from rounded weights
    try:
        check_masters(model, checkpoint)
    except UserError as error:
        told["refused"] = str(error)
    return told
