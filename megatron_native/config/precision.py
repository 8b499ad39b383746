"""FP8: which recipe, which layers, and the conscience that watches it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_native.config.section import Section


class Fp8Section(Section):
    """FP8 matrix products, where `training.precision` is `fp8`; on the CPU platform they are emulated."""

    recipe: Literal["tensorwise", "delayed", "blockwise"] = "tensorwise"
    """How values are scaled into FP8: `tensorwise` by the tensor's own largest value (current scaling), `delayed` by the
    largest of earlier steps, `blockwise` by blocks of 128."""
    format: Literal["hybrid", "e4m3"] = "hybrid"
    """`hybrid`: activations and weights E4M3, gradients E5M2; `e4m3`: everything E4M3."""
    first_layers_bf16: int | None = Field(default=None, ge=0)
    """Layers at the beginning that stay BF16: by default 1, and 0 with `delayed`, which cannot."""
    last_layers_bf16: int | None = Field(default=None, ge=0)
    """Layers at the end that stay BF16: by default 1, and 0 with `delayed`, which cannot."""
    bf16_layers: list[int] = Field(default=[])
    """More layers that stay BF16, counted from 0; the conscience adds to them."""
    param_gather: bool = False
    """Keep weights in FP8 and gather them so: less memory and half the traffic. Master weights stay FP32."""
    amax_history_len: int = Field(default=1024, gt=0)
    """With `delayed`: steps whose largest values are remembered."""
    amax_compute_algo: Literal["max", "most_recent"] = "max"
    """With `delayed`: which of the remembered values scales."""
    margin: int = Field(default=0, ge=0)
    """With `delayed`: powers of two that are kept free above the largest value."""
    tp_only_amax_red: bool = False
    """With `delayed`: agree on largest values in the tensor-parallel group alone."""

    def bf16_at_start(self) -> int:
        """Layers at the beginning that stay BF16."""
        return self._edge(self.first_layers_bf16)

    def bf16_at_end(self) -> int:
        """Layers at the end that stay BF16."""
        return self._edge(self.last_layers_bf16)

    def _edge(self, given: int | None) -> int:
        if given is not None:
            return given
        return 0 if self.recipe == "delayed" else 1


class ConscienceSection(Section):
    """FP8 checked against BF16: now and then a batch is computed in both, and what differs is logged by layer."""

    interval: int = Field(default=0, ge=0)
    """Steps between replays; 0 replays none."""
    action: Literal["warn", "bf16"] = "warn"
    """Where a limit is passed: say so, or move the layer to BF16 from the next checkpoint on."""
    max_output_error: float = Field(default=0.2, gt=0)
    """Relative error of a layer's output (FP8 against BF16, by norms) above which it is named."""
    max_saturation: float = Field(default=0.001, ge=0)
    """Share of a layer's values beyond FP8's largest value, clipped to it, above which it is named."""
    max_underflow: float = Field(default=0.1, ge=0)
    """Share of a layer's non-zero values that become zero in FP8 above which it is named."""
    patience: int = Field(default=2, gt=0)
    """Replays in a row that must name a layer before `bf16` moves it."""
