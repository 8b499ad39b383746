"""The weight names of a family as a table: Hugging Face tensors ⇄ megatron-core's global tensors.

megatron-core saves all layers of one weight as one global tensor with the layers stacked in front, so a rule for a
layer's weight covers every layer. `pieces` spells the rules out for a model: one `Piece` is the smallest unit that
moves on its own, some Hugging Face tensors on one side and one box of a global tensor on the other.

The global layout (megatron-core 0.16, the same for its local and its Transformer Engine specs):

* `…linear_qkv.weight` is [layers, rows, hidden]; the rows go group by group (one group a key/value head), in each
  group its query heads, then its key head, then its value head. Biases likewise, [layers, rows].
* `…linear_fc1.weight` is [layers, 2 · ffn, hidden]: first all gate rows, then all up rows, whatever the tensor
  parallel size (`apply_swiglu_sharded_factory`).
* everything else is the Hugging Face tensor itself, stacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from megatron_native.config.model import ModelConfig

if TYPE_CHECKING:
    import torch

Transform = Literal["direct", "qkv", "gate_up"]
LAYER = "{layer}"
VOCABULARY_KEYS = frozenset({"embedding.word_embeddings.weight", "output_layer.weight"})
"""Global tensors whose axis 0 is the vocabulary: tensor parallelism may pad them, exports never carry the padding."""


@dataclass(frozen=True)
class WeightRule:
    """One line of a family's table."""

    key: str
    """megatron-core's global key."""
    hf_names: tuple[str, ...]
    """The Hugging Face tensors it is made of, `{layer}` standing for the layer's number."""
    transform: Transform = "direct"
    shape: tuple[str, ...] = ()
    """Axes of one layer's tensor, by name (see `axis_sizes`)."""
    unless_tied: bool = False
    """Absent when the embedding doubles as the output layer."""


@dataclass(frozen=True)
class Piece:
    """Hugging Face tensors on one side, one box of a global tensor on the other."""

    key: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    """Where the box begins in the global tensor."""
    shape: tuple[int, ...]
    """The box's extent; a stacked weight has 1 in front."""
    hf_names: tuple[str, ...]
    hf_shapes: tuple[tuple[int, ...], ...]
    transform: Transform = "direct"
    num_query_groups: int = 1

    def to_megatron(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The box's contents from the Hugging Face tensors, in the order of `hf_names`; no value is changed."""
        import torch

        if self.transform == "qkv":
            grouped = [tensor.reshape(self.num_query_groups, -1, *tensor.shape[1:]) for tensor in tensors]
            return torch.cat(grouped, dim=1).reshape(self.shape)
        (tensor,) = tensors
        return tensor.reshape(self.shape)

    def to_hf(self, box: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The Hugging Face tensors, contiguous and in the order of `hf_names`, from the box's contents."""
        if self.transform == "qkv":
            rows = [shape[0] // self.num_query_groups for shape in self.hf_shapes]
            grouped = box.reshape(self.num_query_groups, sum(rows), *self.hf_shapes[0][1:])
            parts = grouped.split(rows, dim=1)
            return tuple(part.reshape(shape).contiguous() for part, shape in zip(parts, self.hf_shapes, strict=True))
        return (box.reshape(self.hf_shapes[0]).contiguous(),)


def axis_sizes(config: ModelConfig) -> dict[str, int]:
    """The axis names that rules may use, with their sizes for this model."""
    query = config.num_attention_heads * config.kv_channels
    key_value = config.num_query_groups * config.kv_channels
    return {
        "vocab": config.vocab_size,
        "head": config.kv_channels,
        "hidden": config.hidden_size,
        "ffn": config.ffn_hidden_size,
        "query": query,
        "key_value": key_value,
        "qkv": query + 2 * key_value,
    }


def pieces(rules: Sequence[WeightRule], config: ModelConfig) -> list[Piece]:
    """Every piece of a model, in the order of the table and then of the layers.

    `vocab_size` is the Hugging Face one: a trained checkpoint's padded rows lie outside every piece.
    """
    result: list[Piece] = []
    for rule in rules:
        if rule.unless_tied and config.tie_word_embeddings:
            continue
        stacked = any(LAYER in name for name in rule.hf_names)
        for layer in range(config.num_layers) if stacked else [None]:
            result.extend(_pieces_of(rule, config, layer))
    return result


def _pieces_of(rule: WeightRule, config: ModelConfig, layer: int | None) -> list[Piece]:
    sizes = axis_sizes(config)
    box = tuple(sizes[axis] for axis in rule.shape)
    names = tuple(name.replace(LAYER, str(layer)) for name in rule.hf_names)
    before: tuple[int, ...] = () if layer is None else (layer,)
    front: tuple[int, ...] = () if layer is None else (1,)
    stack: tuple[int, ...] = () if layer is None else (config.num_layers,)
    rest = (0,) * (len(box) - 1)
    if rule.transform == "gate_up":
        global_shape = (*stack, 2 * box[0], *box[1:])
        return [
            Piece(rule.key, global_shape, (*before, half * box[0], *rest), (*front, *box), (name,), (box,))
            for half, name in enumerate(names)
        ]
    if rule.transform == "qkv":
        rows = (sizes["query"], sizes["key_value"], sizes["key_value"])
        hf_shapes = tuple((count, *box[1:]) for count in rows)
    else:
        hf_shapes = (box,)
    return [
        Piece(
            key=rule.key,
            global_shape=(*stack, *box),
            offset=(*before, 0, *rest),
            shape=(*front, *box),
            hf_names=names,
            hf_shapes=hf_shapes,
            transform=rule.transform,
            num_query_groups=config.num_query_groups,
        )
    ]


_EXTRA_STATE_MODULES = (
    "decoder.layers.self_attention.core_attention",
    "decoder.layers.self_attention.linear_qkv",
    "decoder.layers.self_attention.linear_proj",
    "decoder.layers.self_attention.q_layernorm",
    "decoder.layers.self_attention.k_layernorm",
    "decoder.layers.mlp.linear_fc1",
    "decoder.layers.mlp.linear_fc2",
)
"""Modules whose `_extra_state` (Transformer Engine's FP8 scales) a model asks for when it loads; an import has none
to give and says so with an empty one a layer. What a model does not ask for is not read."""


def extra_state_objects(config: ModelConfig) -> list[str]:
    """Names of the `_extra_state` objects that a model asks its checkpoint for, Transformer Engine's norms among them."""
    layers = range(config.num_layers)
    stacked = [
        f"{module}._extra_state/shard_{n}_{config.num_layers}" for module in _EXTRA_STATE_MODULES for n in layers
    ]
    return [*stacked, "decoder.final_layernorm._extra_state/shard_0_1"]
