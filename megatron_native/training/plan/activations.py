"""What one micro-batch leaves on a rank for its backward pass, by component of the model.

Plain-torch layers are *measured*: the real chunk's forward and backward run on the meta device, and the storages that
autograd keeps are counted (`saved_tensors.py`). Transformer Engine can't run on meta; for its layers there are rules
(`transformer_engine.py`), put in the place of the measured layers.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_native.config.megatron import LayerSpec, PlatformKind
from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import ResolvedPhase
from megatron_native.config.run import RunConfig
from megatron_native.training.batches import MicroBatch, positions_of
from megatron_native.training.plan.rank_model import RankModel
from megatron_native.training.plan.saved_tensors import SavedTensors
from megatron_native.training.plan.transformer_engine import Layer, TransformerEngineRules

# The last part of a submodule's name → component; a part that is not here belongs to the module around it.
_COMPONENTS = {
    "embedding": "embedding", "word_embeddings": "embedding", "rotary_pos_emb": "rope", "input_layernorm": "norms",
    "pre_mlp_layernorm": "norms", "final_layernorm": "final norm", "linear_qkv": "qkv", "self_attention": "rope",
    "core_attention": "attention core", "linear_proj": "projection", "linear_fc1": "fc1", "mlp": "activation",
    "linear_fc2": "fc2", "output_layer": "output layer", "decoder": "recomputed from",
}  # fmt: skip
_LAYER_COMPONENTS = (
    "norms", "qkv", "rope", "attention core", "projection", "fc1", "activation", "fc2", "residuals", "recomputed from",
)  # fmt: skip
LOGITS = "logits and loss"


@dataclass(frozen=True)
class ChunkActivations:
    """One model chunk and one micro-batch, in bytes."""

    kept: dict[str, int]
    """Component → what stays from the forward pass until the backward pass."""
    shared: dict[str, int]
    """The same, but there once for all micro-batches: tables of rotary angles."""
    recomputed: int
    """What the backward pass keeps beside it at its most: activations of one recomputed part."""
    workspace: int
    """What comes and goes beside both: gradients of activations, copies of logits, gathered sequences."""

    @property
    def kept_bytes(self) -> int:
        """All that stays."""
        return sum(self.kept.values())


def component(name: str) -> str:
    """The component that a submodule of a LanguageModel is part of, by its name."""
    if re.search(r"layers\.\d+$", name):
        return "residuals"
    last = name.rpartition(".")[2]
    return _COMPONENTS.get(last, LOGITS if not name else last)


def micro_batch_on(device: torch.device, phase: ResolvedPhase, context_parallel: int, packed: bool) -> MicroBatch:
    """A micro-batch of a phase as one rank gets it; a packed one has a document a sequence."""
    rows, length = phase.micro_batch_size, phase.seq_length // context_parallel
    tokens = torch.zeros((rows, length), dtype=torch.int64, device=device)
    mask = torch.ones((rows, length), device=device)
    if not packed:
        return MicroBatch(tokens, tokens.clone(), mask, positions_of(tokens).to(device))
    from megatron.core.packed_seq_params import PackedSeqParams

    bounds = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device="cpu")  # read by the attention
    parameters = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=length + 1, max_seqlen_kv=length + 1
    )
    tokens, mask = tokens.reshape(1, -1), mask.reshape(1, -1)
    return MicroBatch(tokens, tokens.clone(), mask, torch.zeros_like(tokens), parameters)


def measure_chunks(rank: RankModel, run: RunConfig, phase: ResolvedPhase) -> tuple[ChunkActivations, ...]:
    """Every chunk of a rank with plain-torch layers, measured on meta.

    Chunks with as many layers leave the same behind on whatever stage of whatever layout, so each kind is measured once in a
    process.
    """
    measured = []
    fields = {name: value for name, value in rank.fields.items() if "pipeline" not in name and name != "num_layers"}
    for index, layers in enumerate(rank.layers):
        module = rank.trainable.modules[index]
        key = (repr(fields), module.pre_process, module.post_process, module.vocab_size, len(layers), phase.micro_batch_size,
               phase.seq_length, run.parallel.context_parallel_size, run.data.document_boundaries)  # fmt: skip
        if key not in _measured:
            _measured[key] = _measure(rank, index, run, phase)
        measured.append(_measured[key])
    return tuple(measured)


_measured: dict[tuple[Any, ...], ChunkActivations] = {}


def _measure(rank: RankModel, index: int, run: RunConfig, phase: ResolvedPhase) -> ChunkActivations:
    from megatron_native.training.step import forward_step

    chunk, module = rank.trainable.chunks[index], rank.trainable.modules[index]
    config, contexts, packed = module.config, run.parallel.context_parallel_size, run.data.document_boundaries
    rows, length = phase.micro_batch_size, phase.seq_length // contexts
    if packed:
        rows, length = 1, rows * length
    if config.sequence_parallel:
        length //= config.tensor_model_parallel_size

    def forward() -> Tensor:
        if not module.pre_process:
            shape = (length, rows, config.hidden_size)
            module.set_input_tensor(
                torch.zeros(shape, dtype=config.pipeline_dtype, device=rank.device, requires_grad=True)
            )
        batch = micro_batch_on(rank.device, phase, contexts, packed)
        output, report = forward_step(iter([batch]), chunk)
        return report(output)[0] if module.post_process else output

    count = SavedTensors([module], component)
    with count.counting():
        first = forward()
        after_one = count.by_component()
        second = forward()
        after_two = count.by_component()
        kept = {name: size - after_one.get(name, 0) for name, size in after_two.items()}
        shared = {name: size - kept.get(name, 0) for name, size in after_one.items()}
        _backward(second)
        before = count.bytes()
        count.peak_bytes = 0
        _backward(first)
        recomputed = max(0, count.peak_bytes - before)
    with _Live() as live:
        _backward(forward())
    workspace = live.peak - sum(kept.values()) - recomputed
    return ChunkActivations(
        {name: size for name, size in kept.items() if size}, {name: size for name, size in shared.items() if size},
        recomputed, max(0, workspace),
    )  # fmt: skip


def _backward(output: Tensor) -> None:
    torch.autograd.backward(output, torch.ones_like(output))


class _Live(TorchDispatchMode):
    """Follows every storage that operations make: bytes there now, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self._follow(tensor, args)
        return result

    def _follow(self, tensor: Tensor, args: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or any(isinstance(one, Tensor) and one.untyped_storage()._cdata == key for one in args):
            return
        size = storage.nbytes()
        self._known[key] = weakref.finalize(storage, self._gone, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


def chunk_activations(
    rank: RankModel,
    run: RunConfig,
    model: ModelConfig,
    phase: ResolvedPhase,
    platform: PlatformKind,
    layer_spec: LayerSpec,
) -> tuple[ChunkActivations, ...]:
    """What one micro-batch of a phase leaves in each model chunk of a rank, for the layers that it will run with."""
    measured = measure_chunks(rank, run, phase)
    if platform == "cpu":
        return measured
    rules = TransformerEngineRules(run, model, phase)
    if layer_spec == "torch":
        return tuple(_with_fused_norms(chunk, rules) for chunk in measured)
    return tuple(_with_rules(chunk, rules, layers) for chunk, layers in zip(measured, rank.layers))


def _with_fused_norms(chunk: ChunkActivations, rules: TransformerEngineRules) -> ChunkActivations:
    """CUDA's RMSNorm is one kernel, which keeps its input and a number a token; the CPU's keeps two FP32 copies."""
    kept = {
        name: size * rules.norm // rules.plain_norm if name in ("norms", "final norm") else size
        for name, size in chunk.kept.items()
    }
    return replace(chunk, kept=kept)


def _with_rules(chunk: ChunkActivations, rules: TransformerEngineRules, layers: Sequence[int]) -> ChunkActivations:
    kept = {name: size for name, size in chunk.kept.items() if name not in _LAYER_COMPONENTS}
    if "final norm" in kept:
        kept["final norm"] = rules.norm
    recomputed = 0
    for position, number in enumerate(layers):
        layer: Layer = rules.layer(number, position, len(layers))
        for name, size in layer.kept.items():
            if size:
                kept[name] = kept.get(name, 0) + size
        recomputed = max(recomputed, layer.recomputed)
    return ChunkActivations(kept, chunk.shared, recomputed, chunk.workspace)
