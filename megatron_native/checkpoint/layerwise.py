"""Logits of a model one layer in memory at a time, so that 70B parameters are run in FP32 on a machine with 24 GB.

Two sides go through the same steps: embeddings of the ids that occur, every decoder layer over all texts before the next
one is read, the final norm, and the output layer in blocks of the vocabulary. `TransformersLayers` runs transformers' own
modules on a Hugging Face folder; `training/layers.py` runs megatron-core's on a checkpoint. `compare_layers` sends both
through their layers in step and says after which one they part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from megatron_native.checkpoint.layout import in_one_line
from megatron_native.checkpoint.reference_logits import LogitComparison, available_memory, compare_full_logits
from megatron_native.checkpoint.safetensors_files import DTYPES, HfWeights
from megatron_native.errors import UserError
from megatron_native.models.families import read_hf_config, to_model_config
from megatron_native.progress import progress

OUTPUT_ROWS = 8192
"""Rows of the output layer that are in memory in FP32 at a time."""
_EMBEDDING, _OUTPUT, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_LAYER = "model.layers.{layer}."

Texts = dict[str, Tensor]
"""By the text's name: ids [n], hidden states [n, hidden] or logits [n, vocabulary]."""


class LayeredModel(Protocol):
    """A model whose steps are asked for one after another; what a step needs is read in it and dropped after it."""

    name: str
    num_layers: int

    def embed(self, inputs: Mapping[str, Tensor]) -> Texts:
        """Ids [n] of each text → hidden states [n, hidden] in FP32 on the CPU."""
        ...

    def run_layer(self, layer: int, hidden: Texts) -> Texts:
        """Hidden states [n, hidden] before a layer → those after it."""
        ...

    def logits(self, hidden: Texts) -> Texts:
        """Hidden states after the last layer → logits [n, vocabulary] in FP32 on the CPU."""
        ...


@dataclass(frozen=True)
class LayerDifference:
    """How far two models' hidden states are apart after a layer, over all positions of all texts."""

    layer: int
    """Layers that were run: 0 is what the embedding gives."""
    max_abs_difference: float
    """inf for a NaN."""
    relative_difference: float
    """‖Δ‖ / ‖expected‖ over all values; inf for a NaN."""


def run_layers(model: LayeredModel, inputs: Mapping[str, Tensor]) -> Texts:
    """Logits [n, vocabulary] in FP32 for each text of ids [n]."""
    with torch.inference_mode(), progress(f"{model.name}, layer by layer", model.num_layers, "layers") as bar:
        hidden = model.embed(inputs)
        for layer in range(model.num_layers):
            hidden = model.run_layer(layer, hidden)
            bar.advance()
        return model.logits(hidden)


def compare_layers(
    expected: LayeredModel, found: LayeredModel, inputs: Mapping[str, Tensor]
) -> tuple[LogitComparison, list[LayerDifference]]:
    """Send both models through their layers in step: how their logits compare, and their hidden states after each layer.

    Each goes on from its own hidden states, so the differences are those of the whole models.
    """
    with torch.inference_mode(), progress("compare layer by layer", expected.num_layers, "layers") as bar:
        one, other = expected.embed(inputs), found.embed(inputs)
        differences = [_difference(0, one, other)]
        for layer in range(expected.num_layers):
            one, other = expected.run_layer(layer, one), found.run_layer(layer, other)
            differences.append(_difference(layer + 1, one, other))
            bar.advance()
        return compare_full_logits(expected.logits(one), found.logits(other)), differences


def _difference(layer: int, expected: Texts, found: Texts) -> LayerDifference:
    largest, squares, size = 0.0, 0.0, 0.0
    for name, states in expected.items():
        delta = (found[name] - states).double()
        largest = max(largest, float(delta.abs().max().nan_to_num(nan=math.inf)))
        squares += float(delta.square().sum())
        size += float(states.double().square().sum())
    relative = math.sqrt(squares / size) if math.isfinite(squares) and size else math.inf
    return LayerDifference(layer, largest, relative)


class _Recorder(nn.Module):
    """Stands where the layers were and keeps what the first of them is called with."""

    def forward(self, hidden: Tensor, **keywords: Any) -> Tensor:
        self.hidden, self.keywords = hidden, keywords
        return hidden


class TransformersLayers:
    """A Hugging Face folder's model in transformers' own modules, built without memory and filled a layer at a time."""

    name = "transformers"

    def __init__(self, hf_folder: Path) -> None:
        """Reads the headers of the weights.

        Raises:
            UserError: a family that is not known here, missing tensors, a model that transformers can't build, or less
                free memory than a layer takes.
        """
        import transformers

        hf_config = read_hf_config(hf_folder)
        self.config = to_model_config(hf_config)
        self.num_layers = self.config.num_layers
        self._weights = HfWeights(hf_folder)
        self._keywords: dict[str, dict[str, Any]] = {}
        _check_memory(self._weights)
        try:
            settings = transformers.AutoConfig.from_pretrained(
                hf_folder, local_files_only=True, trust_remote_code=False
            )
            with torch.device("meta"):
                model: Any = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise UserError(
                f"transformers {transformers.__version__} can't build the model of {hf_folder}: {in_one_line(error)}."
            ) from error
        model.eval()
        self._body: Any = model.model
        # Its frequencies are made when it is built, from the configuration alone.
        self._body.rotary_emb = type(self._body.rotary_emb)(config=settings)
        self._body.norm.load_state_dict({"weight": self._read(_NORM).float()}, assign=True)
        self._buffers: dict[str, Tensor] = {}
        self._layers = list(self._body.layers)
        self._recorder = _Recorder()
        self._body.layers = nn.ModuleList([self._recorder])

    def embed(self, inputs: Mapping[str, Tensor]) -> Texts:
        """See `LayeredModel`; also finds out what transformers gives its layers besides the hidden states."""
        rows, hidden = self._read(_EMBEDDING), {}
        for name, ids in inputs.items():
            self._body(inputs_embeds=rows[ids].float()[None], use_cache=False)
            hidden[name] = self._recorder.hidden[0]
            self._keywords[name] = self._recorder.keywords
        return hidden

    def run_layer(self, layer: int, hidden: Texts) -> Texts:
        """See `LayeredModel`."""
        module = self._layers[layer]
        self._fill(module, _LAYER.format(layer=layer))
        return {name: _first(module(states[None], **self._keywords[name]))[0] for name, states in hidden.items()}

    def logits(self, hidden: Texts) -> Texts:
        """See `LayeredModel`."""
        normed = {name: self._body.norm(states) for name, states in hidden.items()}
        return output_in_blocks(normed, self._read(_EMBEDDING if self.config.tie_word_embeddings else _OUTPUT))

    def _fill(self, module: nn.Module, prefix: str) -> None:
        """Give a layer on the meta device its weights in FP32, all of them, in the memory that the layer before it had.

        Allocated anew for each layer, tensors of some megabytes would leave the heap in pieces that never come back.
        """
        for name, described in module.state_dict().items():
            weight = self._read(prefix + name)
            buffer = self._buffers.setdefault(name, torch.empty(0))
            if weight.shape != described.shape:
                raise UserError(
                    f"{self._weights.folder}: '{prefix + name}' has shape {list(weight.shape)}, but config.json makes it "
                    f"{list(described.shape)}; the two don't belong together."
                )
            if buffer.shape != weight.shape:
                buffer = self._buffers[name] = torch.empty(weight.shape)
            buffer.copy_(weight)
        module.load_state_dict({name: self._buffers[name] for name in module.state_dict()}, assign=True)

    def _read(self, name: str) -> Tensor:
        if name not in self._weights.specs:
            raise UserError(
                f"{self._weights.folder} has no tensor '{name}', which its model needs; finish its download."
            )
        return self._weights.read(name)


def _first(result: Any) -> Tensor:
    """A layer's hidden states, which earlier versions of transformers wrap in a tuple."""
    states: Tensor = result[0] if isinstance(result, tuple) else result
    return states


def output_in_blocks(normed: Texts, weight: Tensor) -> Texts:
    """Logits in FP32 from normalised hidden states [n, hidden] and a [vocabulary, hidden] weight of any dtype."""
    vocabulary = weight.shape[0]
    logits = {name: torch.empty(states.shape[0], vocabulary) for name, states in normed.items()}
    for start in range(0, vocabulary, OUTPUT_ROWS):
        block = weight[start : start + OUTPUT_ROWS].float()
        for name, states in normed.items():
            logits[name][:, start : start + len(block)] = states @ block.T
    return logits


def layer_memory(weights: HfWeights) -> int:
    """Bytes that two sides in step take, about: the largest layer of each in FP32, and the largest tensor as it is read."""
    layers: dict[str, int] = {}
    for name, spec in weights.specs.items():
        if name.startswith("model.layers."):
            layer = name.split(".")[2]
            layers[layer] = layers.get(layer, 0) + 4 * (spec.bytes // DTYPES[spec.dtype].itemsize)
    largest = max((spec.bytes for spec in weights.specs.values()), default=0)
    return 2 * max(layers.values(), default=0) + 2 * largest


def _check_memory(weights: HfWeights) -> None:
    needed, available = layer_memory(weights), available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"running {weights.folder} in FP32 a layer at a time needs about {needed / 1e9:.1f} GB of memory, but "
            f"{available / 1e9:.1f} GB are free; use a larger machine, or leave the logits out (--no-reference-logits, "
            "--no-logits)."
        )
