"""The ladder on real process groups, with a fault planted in what it checks; started by `tests.distributed.run_jobs`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def swapped_norms(patch: pytest.MonkeyPatch) -> None:
    """Two norms of a layer stand in each other's place."""
    from megatron_native.training import checkpoints

    load = checkpoints.load_weights

    def swap(folder: Path, model: Any) -> None:
        load(folder, model)
        layer = model.modules[0].decoder.layers[1]
        one, other = layer.input_layernorm.weight.data, layer.pre_mlp_layernorm.weight.data
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)

    patch.setattr(checkpoints, "load_weights", swap)


def leaking_attention(patch: pytest.MonkeyPatch) -> None:
    """Packed sequences are attended to as one."""
    from megatron_native.models.specs import TorchCausalAttention

    def leak(self: Any, query: Any, key: Any, value: Any, packed: Any) -> Any:
        return self._attend(*(part.transpose(0, 1)[None] for part in (query, key, value)))[0].transpose(0, 1)

    patch.setattr(TorchCausalAttention, "_by_document", leak)


def wrong_fused_gradients(patch: pytest.MonkeyPatch) -> None:
    """The fused kernel's gradients are a twentieth too large."""
    from megatron.core.fusions import fused_cross_entropy

    gradients = fused_cross_entropy.calculate_gradients
    patch.setattr(fused_cross_entropy, "calculate_gradients", lambda *given: gradients(*given) * 1.05)


def rounded_master(patch: pytest.MonkeyPatch) -> None:
    """One value of one master differs from its weight in its last bit."""
    import torch

    from megatron_native.training import checkpoints
    from megatron_native.training.masters import masters_of

    load = checkpoints.load_weights

    def load_badly(folder: Path, model: Any) -> None:
        load(folder, model)
        master = next(iter(masters_of(model.optimizer)))[2].detach().view(-1)
        master[7] = torch.nextafter(master[7], torch.tensor(10.0))

    patch.setattr(checkpoints, "load_weights", load_badly)


def masters_from_fp8(patch: pytest.MonkeyPatch) -> None:
    """Masters are filled from the weights that are kept in FP8, as megatron-core does it."""
    from megatron_native.training import checkpoints

    load = checkpoints.load_weights

    def refill(folder: Path, model: Any) -> None:
        load(folder, model)
        model.optimizer.reload_model_params()

    patch.setattr(checkpoints, "load_weights", refill)


def idle_fp8(patch: pytest.MonkeyPatch) -> None:
    """No layer computes in FP8."""
    from megatron_native.models import fp8_layers

    def apply(config: Any, modules: Any) -> None:
        for _, _, linear in fp8_layers.linears(modules):
            linear.quantises = False

    patch.setattr(fp8_layers, "_apply", apply)


def wrong_fp8_gradients(patch: pytest.MonkeyPatch) -> None:
    """The gradient of weights has the other sign in FP8."""
    from megatron_native.models.fp8_emulation import _Fp8Product

    backward = _Fp8Product.backward

    def wrong(ctx: Any, *given: Any) -> Any:
        of_input, of_weight, *rest = backward(ctx, *given)
        return of_input, -of_weight, *rest

    patch.setattr(_Fp8Product, "backward", staticmethod(wrong))


def other_source(patch: pytest.MonkeyPatch) -> None:
    """The Hugging Face folder is not what was imported, by one bit."""
    from safetensors.torch import load_file, save_file

    from megatron_native.training.qualify import trial_files

    make = trial_files.make_trial_files

    def make_and_change(folder: Path, *given: Any) -> None:
        make(folder, *given)
        tensors = load_file(folder / "hf" / "model.safetensors")
        tensors["model.norm.weight"].view(dtype=__import__("torch").int16)[0] ^= 1
        save_file(tensors, folder / "hf" / "model.safetensors", {"format": "pt"})

    patch.setattr(trial_files, "make_trial_files", make_and_change)


def stale_weights(patch: pytest.MonkeyPatch) -> None:
    """Parameters are not gathered when that is left to overlap with the forward pass."""
    from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup as Group

    start, finish = Group.start_param_sync, Group.finish_param_sync

    def starts(self: Any, *given: Any, **named: Any) -> None:
        if self.ddp_config.overlap_param_gather:
            self.param_gather_dispatched = True
        else:
            start(self, *given, **named)

    def finishes(self: Any, *given: Any, **named: Any) -> None:
        if not self.ddp_config.overlap_param_gather:
            finish(self, *given, **named)

    patch.setattr(Group, "start_param_sync", starts)
    patch.setattr(Group, "finish_param_sync", finishes)


def early_reduction(patch: pytest.MonkeyPatch) -> None:
    """With overlap gradients are reduced when the first of a bucket is there, and not the last."""
    from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup as Group

    register = Group.register_grad_ready

    def early(self: Any, *given: Any, **named: Any) -> None:
        if self.is_first_batch:
            register(self, *given, **named)
        elif self.grad_reduce_handle is None:
            self.start_grad_sync()

    patch.setattr(Group, "register_grad_ready", early)


def forgotten_setting(patch: pytest.MonkeyPatch) -> None:
    """The resumed run goes on with another learning rate."""
    from megatron_native.training.qualify import resume

    beside = resume._run_beside

    def forget(runs: Any, platform: Any, die_at: int = 0) -> list[int]:
        if not die_at:
            adam = runs[1].optimizer.model_copy(update={"lr": 1.1 * runs[1].optimizer.lr})
            runs = [runs[0], runs[1].model_copy(update={"optimizer": adam})]
        return beside(runs, platform, die_at)

    patch.setattr(resume, "_run_beside", forget)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    fault.__name__: fault
    for fault in (
        swapped_norms, leaking_attention, wrong_fused_gradients, rounded_master, masters_from_fp8, other_source, stale_weights,
        early_reduction, idle_fp8, wrong_fp8_gradients, forgotten_setting,
    )
}  # fmt: skip


def main(description: Path) -> None:
    """Climb the rungs of every job; the main rank writes its results."""
    from megatron_native.config.load import check_run_config
    from megatron_native.platform import start_platform
    from megatron_native.training.qualify.ladder import chosen_rungs, climb

    platform = start_platform("cpu")
    for job in json.loads(description.read_text(encoding="utf-8")):
        folder = Path(job["output"]).with_suffix("")
        folder.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            if job["fault"]:
                FAULTS[job["fault"]](patch)
            run = check_run_config(job["config"], "test")
            results = climb(run, platform, chosen_rungs(job["rungs"]), folder, lambda _: None)
        if platform.is_main:
            Path(job["output"]).write_text(json.dumps([result.as_dict() for result in results]), encoding="utf-8")
