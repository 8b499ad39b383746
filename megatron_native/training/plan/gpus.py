"""The GPUs a plan can be made for: memory, peak rates, bandwidths, and what of them a run is taken to reach."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from megatron_native.errors import UserError

TABLE = Path(__file__).parent / "gpus.yaml"
DEFAULT_GPU = "h100-80g"
GIB = 2**30

Share = Field(ge=0, le=1)


class Shares(BaseModel):
    """What of a peak or a bandwidth is reached; 0 … 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bf16_matmul: float = Share
    fp8_matmul: float = Share
    attention_forward: float = Share
    attention_backward: float = Share
    hbm: float = Share
    nvlink: float = Share
    network: float = Share
    tp_exposed: float = Share
    """Of tensor-parallel communication, what is waited for although it overlaps with matrix products."""


class Gpu(BaseModel):
    """One kind of GPU and the node it stands in; the rates are the maker's, one direction, without sparsity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    name: str
    device: str
    """What CUDA calls it, without the maker's name. Other forms of the same chip (PCIe, NVL) have other rates."""
    memory_gib: float
    reserved_gib: float
    """Kept free as a margin."""
    bf16_tflops: float
    fp8_tflops: float | None
    """None: no FP8."""
    fp32_tflops: float
    """Without tensor cores."""
    hbm_tb_s: float
    nvlink_gb_s: float
    network_gb_s: float
    """To other nodes, for every GPU."""
    gpus_a_node: int
    shares: Shares
    source: dict[str, str]
    """Where the figures are from, or that they are choices."""

    @property
    def usable_bytes(self) -> int:
        """Bytes that a run's tensors may take."""
        return int((self.memory_gib - self.reserved_gib) * GIB)

    @property
    def hbm_bytes_s(self) -> float:
        """Bytes a second of the memory, as reached."""
        return self.hbm_tb_s * 1e12 * self.shares.hbm

    @property
    def bf16_flops(self) -> float:
        """FLOP/s of BF16 matrix products, as reached."""
        return self.bf16_tflops * 1e12 * self.shares.bf16_matmul

    @property
    def fp32_flops(self) -> float:
        """FLOP/s of FP32 matrix products, as reached."""
        return self.fp32_tflops * 1e12 * self.shares.bf16_matmul

    @property
    def fp8_flops(self) -> float:
        """FLOP/s of FP8 matrix products, as reached.

        Raises:
            UserError: the GPU has no FP8.
        """
        if self.fp8_tflops is None:
            raise UserError(
                f"training.precision is fp8, and {self.name} ({self.key}) has no FP8: set training.precision=bf16, or plan "
                "for another GPU with --gpu."
            )
        return self.fp8_tflops * 1e12 * self.shares.fp8_matmul

    def attention_flops(self, backward: bool) -> float:
        """FLOP/s of the attention kernel, as reached."""
        share = self.shares.attention_backward if backward else self.shares.attention_forward
        return self.bf16_tflops * 1e12 * share

    def link_bytes_s(self, size: int, stride: int) -> float:
        """Bytes a second that each member of a group sends and receives at once, as reached.

        Args:
            size: members of the group.
            stride: distance between the ranks of two neighbours in it.

        A group that stays in a node has NVLink. One that leaves it goes round a ring that enters a node once for all members
        there, over as many ports as they have: that many times one port, at most NVLink.
        """
        nvlink = self.nvlink_gb_s * 1e9 * self.shares.nvlink
        if size * stride <= self.gpus_a_node:
            return nvlink
        together = max(1, min(size, self.gpus_a_node // stride))
        return min(nvlink, together * self.network_gb_s * 1e9 * self.shares.network)


@cache
def _table() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def gpu_names() -> list[str]:
    """The GPUs there are."""
    return list(_table())


def read_gpu(key: str = DEFAULT_GPU) -> Gpu:
    """The GPU of that name.

    Raises:
        UserError: the table has none of that name.
    """
    if key not in _table():
        close = difflib.get_close_matches(key, _table(), n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise UserError(f"--gpu {key}: there is no such GPU in the table{hint} It has {', '.join(_table())}.")
    return Gpu(key=key, **_table()[key])


def gpu_of_device(name: str) -> Gpu | None:
    """The GPU that CUDA calls `name` (`NVIDIA H100 80GB HBM3`); None where the table has none like it."""
    device = name.removeprefix("NVIDIA ")
    return next((gpu for gpu in map(read_gpu, gpu_names()) if gpu.device == device), None)
