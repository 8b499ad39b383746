"""The buffers through which Transformer Engine overlaps tensor-parallel communication with matrix products.

megatron-core carries the flag `tp_comm_overlap` alone: the trainer makes the buffers, once, before the first forward pass.
What to make is decided here, from the configuration; no Transformer Engine is needed to ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import resolve_phases
from megatron_native.config.run import RunConfig

QuantizationMode = Literal["none", "fp8"]


@dataclass(frozen=True)
class UserBuffers:
    """The arguments of `transformer_engine.pytorch.module.base.initialize_ub`, in plain values.

    Attributes:
        shape: [tokens of one micro-batch on one context-parallel process, hidden size]. The buffers are static: every
            forward pass of the run, evaluation included, must have this many tokens.
        tp_size: processes of the tensor-parallel group.
        quantization_modes: by the names of Transformer Engine's `UserBufferQuantizationMode` in small letters; both where
            some layers are FP8 and others BF16, or are computed in BF16 by the conscience: each kind has buffers of its own.
        ub_cfgs: matrix product → its settings; products that are not named, and all of them where it is empty, take
            Transformer Engine's own.
        bootstrap_backend: of torch.distributed, for the exchange of addresses at the start.
    """

    shape: list[int]
    tp_size: int
    quantization_modes: list[QuantizationMode]
    ub_cfgs: dict[str, dict[str, Any]]
    bootstrap_backend: str = "nccl"


def _bulk(num_sm: int) -> dict[str, Any]:
    return {"method": "bulk", "num_sm": num_sm, "cga_size": 2, "set_sm_margin": False}


def _pipeline(num_sm: int) -> dict[str, Any]:
    return {"method": "pipeline", "num_sm": num_sm, "cga_size": 2, "num_splits": 4, "set_sm_margin": True}


def _ring(set_sm_margin: bool = False) -> dict[str, Any]:
    return {"method": "ring_exchange", "num_sm": 1, "cga_size": 1, "set_sm_margin": set_sm_margin, "aggregate": False}


# Megatron-Bridge's figures for LLaMA3-70B on H100 (hidden 8192, TP4, micro-batch 1, sequence 8192), by matrix product.
_H8192_TP4: dict[str, dict[str, Any]] = {
    "qkv_dgrad": _bulk(4), "qkv_wgrad": _bulk(24), "fc1_dgrad": _bulk(2), "fc1_wgrad": _bulk(4),
    "qkv_fprop": _ring(), "fc1_fprop": _ring(), "proj_dgrad": _ring(), "fc2_dgrad": _ring(),
}  # fmt: skip
_H8192_TP4_BF16 = {**_H8192_TP4, "proj_fprop": _pipeline(24), "fc2_fprop": _pipeline(16)}
_H8192_TP4_FP8 = {**_H8192_TP4, "proj_fprop": _ring(set_sm_margin=True), "fc2_fprop": _ring(set_sm_margin=True)}


def overlaps_tensor_parallel(run: RunConfig) -> bool:
    """Whether tensor-parallel communication overlaps on GPUs: where it is set, but not in mode `exact`."""
    return run.parallel.tp_comm_overlap and run.training.mode == "fast"


def tokens_of_forward_passes(run: RunConfig) -> dict[str, int]:
    """Tokens of a forward pass on one context-parallel process, by what sets them: each phase, and evaluation."""
    cp = run.parallel.context_parallel_size
    tokens = {f"phase '{phase.name}'": phase.seq_length * phase.micro_batch_size // cp for phase in resolve_phases(run)}
    if run.evaluation.heldout:
        tokens["evaluation"] = run.data.seq_length * run.evaluation.micro_batch_size // cp
    return tokens


def quantization_modes(run: RunConfig) -> list[QuantizationMode]:
    """The kinds of buffers that a run's matrix products want."""
    if run.training.precision != "fp8":
        return ["none"]
    # The conscience computes every layer in BF16 too, and may keep it so.
    bf16 = run.fp8.bf16_at_start() or run.fp8.bf16_at_end() or run.fp8.bf16_layers or run.conscience.interval
    return ["fp8", "none"] if bf16 else ["fp8"]


def user_buffers(run: RunConfig, model: ModelConfig) -> UserBuffers | None:
    """The buffers that a run on CUDA needs; None where nothing overlaps.

    `check_layout` has seen to it that every forward pass has the same number of tokens.
    """
    if not overlaps_tensor_parallel(run):
        return None
    tp = run.parallel.tensor_model_parallel_size
    fp8 = run.training.precision == "fp8"
    measured = model.hidden_size == 8192 and tp == 4
    return UserBuffers(
        shape=[next(iter(tokens_of_forward_passes(run).values())), model.hidden_size],
        tp_size=tp,
        quantization_modes=quantization_modes(run),
        ub_cfgs={} if not measured else _H8192_TP4_FP8 if fp8 else _H8192_TP4_BF16,
    )
