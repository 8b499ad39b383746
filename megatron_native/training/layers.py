"""A checkpoint's model through megatron-core's own layers, one in memory at a time (`checkpoint/layerwise.py`).

The layer is a pipeline stage in the middle of a model, as training builds it: layer spec, rotary frequencies and attention
are those of a run. The next layer's weights are read into the same module, from the boxes of the checkpoint's global
tensors, by the keys that megatron-core itself gives them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.spec_utils import build_module
from torch import Tensor

from megatron_native.checkpoint.export_hf import CheckpointWeights
from megatron_native.checkpoint.layerwise import Texts, output_in_blocks
from megatron_native.config.megatron import has_transformer_engine, megatron_configs, resolve_layer_spec
from megatron_native.config.run import RunConfig
from megatron_native.models.families import model_pieces
from megatron_native.models.gpt import build_language_model
from megatron_native.models.specs import block_spec
from megatron_native.models.weight_map import Piece
from megatron_native.platform import Platform
from megatron_native.training.sharded_state import content

_STACKED = "decoder.layers."
_EMBEDDING, _OUTPUT, _NORM = "embedding.word_embeddings.weight", "output_layer.weight", "decoder.final_layernorm.weight"


class MegatronLayers:
    """A `LayeredModel` of a checkpoint; parallel state of one process must be initialised."""

    name = "megatron-core"

    def __init__(self, checkpoint: Path, run: RunConfig, platform: Platform) -> None:
        """Builds one layer, random as yet, on the platform's device, in the precision of `run`.

        Raises:
            UserError: the checkpoint is damaged, or has weights that its model does not.
        """
        self._weights = CheckpointWeights(checkpoint)
        self.config = self._weights.config
        self.num_layers = self.config.num_layers
        self._device = platform.device
        spec = resolve_layer_spec(run, platform.name, has_transformer_engine())
        one_layer = self.config.model_copy(update={"num_layers": 1})
        self._megatron = megatron_configs(run, one_layer, platform.name, spec).transformer
        self._megatron.perform_initialization = False  # every weight is read
        model: Any = build_language_model(self._megatron, one_layer, spec, run.data.seq_length, middle=True)
        self._stage = model.to(platform.device).eval()
        self._norm_module = block_spec(self._megatron, spec, None).layer_norm
        self._pieces: dict[int | None, list[Piece]] = defaultdict(list)
        for piece in model_pieces(self.config):
            self._pieces[piece.offset[0] if piece.key.startswith(_STACKED) else None].append(piece)

    def embed(self, inputs: Mapping[str, Tensor]) -> Texts:
        """See `LayeredModel`."""
        rows = self._read_whole(_EMBEDDING)
        return {name: rows[ids].to(self._megatron.params_dtype).float() for name, ids in inputs.items()}

    def run_layer(self, layer: int, hidden: Texts) -> Texts:
        """See `LayeredModel`."""
        self._fill(layer)
        result = {}
        for name, states in hidden.items():
            self._stage.set_input_tensor(states.to(self._device, self._megatron.params_dtype)[:, None])
            positions = torch.arange(len(states), device=self._device)[None]
            result[name] = self._stage(positions, positions, None)[:, 0].float().cpu()
        return result

    def logits(self, hidden: Texts) -> Texts:
        """See `LayeredModel`."""
        norm: Any = build_module(
            self._norm_module,
            config=self._megatron,
            hidden_size=self.config.hidden_size,
            eps=self.config.norm_epsilon,
        ).to(self._device)
        norm.weight.data.copy_(self._read_whole(_NORM))
        normed = {
            name: norm(states.to(self._device, self._megatron.params_dtype)).float().cpu()
            for name, states in hidden.items()
        }
        return output_in_blocks(normed, self._read_whole(_EMBEDDING if self.config.tie_word_embeddings else _OUTPUT))

    def _fill(self, layer: int) -> None:
        """Read a layer's weights into the one module; each of its weights has to get all of its values."""
        targets = self._targets()
        missing = {key: weight.numel() for key, weight in targets.items()}
        for piece in self._pieces[layer]:
            box = self._weights.reader.read(piece.key, piece.offset, piece.shape)[0]
            where = tuple(slice(start, start + extent) for start, extent in zip(piece.offset[1:], box.shape))
            targets[piece.key][where].copy_(box)
            missing[piece.key] -= box.numel()
        short = sorted(key for key, values in missing.items() if values)
        if short:
            raise RuntimeError(f"layer {layer}: the table of the {self.config.family} family does not fill {short}")

    def _targets(self) -> dict[str, Tensor]:
        """The layer's parameters by megatron-core's global keys."""
        state = self._stage.sharded_state_dict(metadata=content())
        return {
            entry.key: entry.data.detach()
            for entry in nested_values(state)
            if isinstance(entry, (ShardedTensor, ShardedTensorFactory))
        }

    def _read_whole(self, key: str) -> Tensor:
        """A tensor that is no layer's, without the rows of vocabulary padding."""
        (piece,) = (piece for piece in self._pieces[None] if piece.key == key)
        return self._weights.reader.read(piece.key, piece.offset, piece.shape)
