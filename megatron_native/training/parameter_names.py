"""What a parameter of this process is called in the whole model, and which part of the model it belongs to.

A pipeline stage counts its layers from 0; a message or a figure about the model must not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from torch.nn import Parameter

Group = Literal["embedding", "attention", "mlp", "norms", "output"]
GROUPS: tuple[Group, ...] = ("embedding", "attention", "mlp", "norms", "output")

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")


def named_parameters(modules: Sequence[Any]) -> dict[Parameter, str]:
    """Every parameter of unwrapped model chunks with its name, layers counted from 0 through the whole model."""
    names: dict[Parameter, str] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            match = _LAYER.match(name)
            if match:
                layer = module.decoder.layers[int(match[1])].layer_number - 1
                name = f"decoder.layers.{layer}.{name[match.end() :]}"
            names[parameter] = name
    return names


def group_of(name: str) -> Group:
    """The part of the model that the parameter `name` belongs to.

    Transformer Engine keeps a norm's weight in the matrix after it (`linear_qkv.layer_norm_weight`); it is a norm here.

    Raises:
        ValueError: the name is of no known part, so that none is left out of a figure without a word.
    """
    if "layernorm" in name or "layer_norm" in name:
        return "norms"
    if name.startswith("embedding."):
        return "embedding"
    if name.startswith("output_layer."):
        return "output"
    if ".self_attention." in name:
        return "attention"
    if ".mlp." in name:
        return "mlp"
    raise ValueError(f"the parameter {name} belongs to no part of the model known here ({', '.join(GROUPS)})")
