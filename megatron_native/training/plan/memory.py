"""What one rank of a run holds in memory, part by part, and the most of it at any moment of a step."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_native.config.megatron import LayerSpec
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank. Ranks of one pipeline stage hold equally much."""

    rank: int
    pipeline_rank: int
    layers: tuple[tuple[int, ...], ...]
    """Transformer layers of each model chunk, counted from 0 over the whole model."""
    parameters: int
    """Numbers, not bytes: what is really built there."""
    weights: int
    gradients: int
    optimizer: int
    activations: dict[str, int]
    """Component → bytes kept for the backward pass when most micro-batches are in flight."""
    communication: dict[str, int]
    """Kind → bytes of buffers beyond weights and gradients."""
    workspace: dict[str, int]
    """What comes and goes at the peak and is not kept: logits and loss, gradients of activations."""
    chunk_activations: tuple[dict[str, int], ...]
    """For each model chunk: component → bytes that one micro-batch leaves there for its backward pass."""
    in_flight: tuple[int, ...]
    """For each model chunk: micro-batches whose activations are there at the peak."""

    @property
    def parts(self) -> dict[str, int]:
        """Every part by name, in bytes; activations, communication and workspace by component."""
        parts = {"weights": self.weights, "gradients": self.gradients, "optimizer state": self.optimizer}
        for group, values in (
            ("activations", self.activations), ("communication", self.communication), ("workspace", self.workspace),
        ):  # fmt: skip
            parts.update({f"{group}: {name}": value for name, value in values.items()})
        return parts

    @property
    def static(self) -> int:
        """Bytes that stay through the whole run: weights, gradients, optimizer state, communication buffers."""
        return self.weights + self.gradients + self.optimizer + sum(self.communication.values())

    @property
    def total(self) -> int:
        """Bytes at the peak of a step."""
        return self.static + sum(self.activations.values()) + sum(self.workspace.values())

    peak = total

    @property
    def largest(self) -> tuple[str, int]:
        """The group that takes most: its name and its bytes."""
        groups = {
            "weights": self.weights, "gradients": self.gradients, "optimizer state": self.optimizer,
            "activations": sum(self.activations.values()), "communication": sum(self.communication.values()),
            "workspace": sum(self.workspace.values()),
        }  # fmt: skip
        name = max(groups, key=lambda group: groups[group])
        return name, groups[name]


def rank_memory(
    run: RunConfig, model_config: ModelConfig, world_size: int, pipeline_rank: int, layer_spec: LayerSpec = "transformer_engine"
) -> RankMemory:
    """The memory of the ranks of one pipeline stage, in the phase of the run that needs most.

    Args:
        run: the run; its layout has passed `config.layout.check_layout`.
        model_config: the model's shape.
        world_size: processes.
        pipeline_rank: the stage.
        layer_spec: whose layers: `transformer_engine` keeps what its kernels keep on a GPU (rules, never measured), `torch`
            what the plain-torch layers keep (measured on the meta device).
    """
    raise NotImplementedError
