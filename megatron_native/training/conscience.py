"""FP8's conscience: now and then a micro-batch is computed in FP8 and again in BF16, and what differs is named by layer.

For every layer that computes in FP8:

* output error: ‖FP8 output − BF16 output‖ / ‖BF16 output‖ of its worst linear layer, both from the same input;
* gradient cosine: between the gradients of its four weight matrices from the FP8 and from the BF16 computation;
* saturation: share of the values that FP8 clips, of the worst of its matrices (inputs, weights, gradients);
* underflow: share of the values other than zero that FP8 makes zero, likewise.

Each rank looks at its own part of a split matrix, and the worst rank counts. Nothing of a replay stays: not in
gradients, amax histories, scales or random generators.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_native.config.run import RunConfig
from megatron_native.models.fp8_layers import (
    LINEARS,
    bf16_everywhere,
    bf16_layers,
    is_emulated,
    linears,
    set_bf16_layers,
    unrecorded,
    unround_moved,
)
from megatron_native.training import sharded_state
from megatron_native.training.batches import MicroBatch
from megatron_native.training.fp8_observation import FIGURES, observing
from megatron_native.training.incidents import FP8_LIMIT, FP8_TO_BF16, Incidents
from megatron_native.training.model import TrainableModel
from megatron_native.training.step import run_schedule


@dataclass(frozen=True)
class LayerFigures:
    """What FP8 does to one layer."""

    output_error: float
    gradient_cosine: float
    saturation: float
    underflow: float
    linear: str
    """The linear layer that is nearest to a limit, or farthest beyond."""


@dataclass(frozen=True)
class ConscienceReport:
    """What a replay found; the same on every rank."""

    layers: dict[int, LayerFigures]
    """By number from 0; layers in BF16 are not among them."""
    worst: int
    """The layer nearest to a limit, or farthest beyond."""
    emulated: bool

    def record(self) -> dict[str, Any]:
        """For `metrics.jsonl`."""
        layers = {str(layer): asdict(figures) for layer, figures in self.layers.items()}
        return {"layers": layers, "worst": self.worst, "emulated": self.emulated}

    def line(self) -> str:
        """For the console."""
        one = self.layers[self.worst]
        return (
            f"{'emulated ' if self.emulated else ''}FP8 against BF16: worst layer {self.worst} ({one.linear}): output error "
            f"{one.output_error:.3g}, gradient cosine {one.gradient_cosine:.5f}, saturation {one.saturation:.2%}, underflow "
            f"{one.underflow:.2%}"
        )


class Conscience:
    """Replays, judges by `conscience`'s limits, and moves layers to BF16 where the settings say so.

    Args:
        run: the configuration.
        model: what is trained; layers that `restore` knows of are moved at once.
        incidents: gets what is beyond a limit, and what is moved.
    """

    def __init__(self, run: RunConfig, model: TrainableModel, incidents: Incidents) -> None:
        self.run, self.settings, self.model, self.incidents = run, run.conscience, model, incidents
        self.moved: dict[int, str] = {}
        """Layers that compute in BF16 by this object's doing, and why."""
        self._pending: dict[int, str] = {}
        self._strikes: dict[int, int] = {}

    def due(self, step: int) -> bool:
        """Whether a replay belongs after `step`."""
        return (
            self.run.training.precision == "fp8" and self.settings.interval > 0 and step % self.settings.interval == 0
        )

    def replay(self, step: int, batches: Sequence[MicroBatch]) -> ConscienceReport | None:
        """Compute the first of these micro-batches both ways and judge; collective, after an update and before the next.

        Gradient buffers are zero afterwards. None where every layer is in BF16.
        """
        config = self.model.configs.transformer
        watched = sorted(set(range(config.num_layers)) - bf16_layers(config))
        if not watched:
            return None
        report = self._report(watched, *_both_ways(self.model, batches))
        self._judge(step, report)
        return report

    def begin_save(self, step: int) -> None:
        """Move the layers that are to be in BF16 from this checkpoint on; collective."""
        if not self._pending:
            return
        self.moved |= self._pending
        self._pending = {}
        self._apply()
        model = self.model
        unround_moved(model.configs.transformer, model.modules, model.chunks, model.optimizer)
        layers = ", ".join(str(layer) for layer in sorted(self.moved))
        self.incidents.record(FP8_TO_BF16, f"from step {step + 1} on these layers compute in BF16: {layers}", step,
                              {"reasons": {str(layer): reason for layer, reason in self.moved.items()}})  # fmt: skip

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "moved": {str(layer): reason for layer, reason in self.moved.items()},
            "strikes": {str(layer): count for layer, count in self._strikes.items()},
        }

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take over a saved state, or begin anew where there is none."""
        state = state or {}
        self.moved = {int(layer): reason for layer, reason in state.get("moved", {}).items()}
        self._strikes = {int(layer): count for layer, count in state.get("strikes", {}).items()}
        self._pending = {}
        if self.run.training.precision == "fp8":
            self._apply()

    def _apply(self) -> None:
        layers = {*self.run.fp8.bf16_layers, *self.moved}
        set_bf16_layers(self.model.configs.transformer, self.model.modules, layers)

    def _report(self, watched: Sequence[int], figures: Tensor, cosines: Tensor) -> ConscienceReport:
        layers: dict[int, LayerFigures] = {}
        for layer in watched:
            by_linear = figures[layer].tolist()
            linear = max(range(len(LINEARS)), key=lambda index: self._excess(*by_linear[index]))
            error, saturation, underflow = (max(of_one) for of_one in zip(*by_linear))
            layers[layer] = LayerFigures(error, float(cosines[layer]), saturation, underflow, LINEARS[linear])
        worst = max(layers, key=lambda layer: self._excess_of(layers[layer]))
        return ConscienceReport(layers, worst, is_emulated(self.model.modules))

    def _excess_of(self, one: LayerFigures) -> float:
        return self._excess(one.output_error, one.saturation, one.underflow)

    def _excess(self, *figures: float) -> float:
        """The largest of a layer's figures, in the order of `FIGURES`, each measured by its limit."""
        return max(_measured(figure, limit) for figure, limit in zip(figures, self._limits().values()))

    def _limits(self) -> dict[str, float]:
        return {name: getattr(self.settings, f"max_{name}") for name in FIGURES}

    def _judge(self, step: int, report: ConscienceReport) -> None:
        for layer, one in report.layers.items():
            beyond = [
                f"{name.replace('_', ' ')} {getattr(one, name):.3g} (at most {limit:g})"
                for name, limit in self._limits().items()
                if getattr(one, name) > limit
            ]
            if not beyond:
                self._strikes.pop(layer, None)
                continue
            self._strikes[layer] = self._strikes.get(layer, 0) + 1
            reason = f"layer {layer} in {'emulated ' if report.emulated else ''}FP8 ({one.linear}): {', '.join(beyond)}"
            moves = (
                self.settings.action == "bf16"
                and self._strikes[layer] >= self.settings.patience
                and layer not in self._pending
            )
            if moves:
                self._pending[layer] = f"{reason}, after step {step}"
            then = "; it computes in BF16 from the next checkpoint on" if moves else ""
            self.incidents.record(FP8_LIMIT, f"{reason}{then}", step, {"layer": layer, **asdict(one)})


def _measured(figure: float, limit: float) -> float:
    if limit == 0:
        return float("inf") if figure > 0 else 0.0
    return figure / limit


def _both_ways(model: TrainableModel, batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
    """Figures [layers, linear layers, figures] and gradient cosines [layers] of one micro-batch, known to every rank."""
    config, modules = model.configs.transformer, model.modules
    # the interleaved schedule wants as many micro-batches as there are stages
    count = parallel_state.get_pipeline_model_parallel_world_size() if len(model.chunks) > 1 else 1
    batch = [batches[0]] * count
    generators = sharded_state.rng_state()
    device = batches[0].tokens.device
    figures = torch.full(
        (config.num_layers, len(LINEARS), len(FIGURES)), -torch.inf, dtype=torch.float64, device=device
    )
    distances = torch.full((config.num_layers,), -torch.inf, dtype=torch.float64, device=device)
    with unrecorded(modules), _local_gradients(model):
        with observing(config, modules, figures):
            in_fp8 = {key: gradient.to("cpu", torch.bfloat16) for key, gradient in _gradients(model, batch)}
        sums: dict[int, Tensor] = {}
        with bf16_everywhere(config, modules):
            for (layer, name), gradient in _gradients(model, batch):
                other = in_fp8[layer, name].to(gradient.device).double()
                mine = gradient.double()
                three = torch.stack([(mine * other).sum(), (mine * mine).sum(), (other * other).sum()])
                sums[layer] = sums.get(layer, torch.zeros_like(three)) + three
    sharded_state.set_rng_state(generators)
    for layer, (product, first, second) in sums.items():
        distances[layer] = 1 - product / (first * second).sqrt()
    for tensor in (figures, distances):
        torch.nan_to_num(tensor, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf, out=tensor)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return figures, 1 - distances


def _gradients(model: TrainableModel, batch: Sequence[MicroBatch]) -> Iterator[tuple[tuple[int, str], Tensor]]:
    """The gradients of every linear layer's weight from this rank's micro-batches alone, one after another."""
    with ExitStack() as stack:
        for chunk in model.chunks:
            chunk.zero_grad_buffer()  # which ends any no_sync
            stack.enter_context(chunk.no_sync())
        run_schedule(model.chunks, batch)
    for layer, name, linear in linears(model.modules):
        yield (layer, name), linear.weight.main_grad


@contextmanager
def _local_gradients(model: TrainableModel) -> Iterator[None]:
    """Within it the schedule's hooks send no gradients to other ranks; afterwards gradient buffers are zero."""
    config = model.configs.transformer
    hooks = ("finalize_model_grads_func", "no_sync_func", "grad_sync_func")
    before = {name: getattr(config, name) for name in hooks}
    observers = [module.logit_observer for module in model.modules]
    config.finalize_model_grads_func = config.grad_sync_func = None
    config.no_sync_func = nullcontext
    for module in model.modules:
        module.logit_observer = None
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(config, name, function)
        for module, observer in zip(model.modules, observers):
            module.logit_observer = observer
        for chunk in model.chunks:
            chunk.zero_grad_buffer()
