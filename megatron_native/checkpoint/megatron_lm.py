"""A Megatron-LM checkpoint in the `torch_dist` format, read a box at a time in this project's names.

Megatron-LM names weights as megatron-core does here, with two liberties: layers may lie each under a key of its own
(`decoder.layers.7.…`) instead of stacked, and the vocabulary is padded. Its optimizer state comes in several forms:

* `resharded`: `optimizer.state.{param,exp_avg,exp_avg_sq}.KEY`, each like its weight (`--dist-ckpt-optim-fully-reshardable`);
* `whole`: the same with `fp32_param`, as an optimizer saves that is not distributed; without it where weights are FP32;
* `flattened`: as `whole`, but a weight [X, Y] cut into blocks [x, y] is stored as [X / x, Y / y, x · y]
  (`fully_sharded_model_space`, the distributed optimizer of megatron-core up to 0.14);
* `buckets`: flat buffers whose order depends on the layout of the run (`dp_reshardable`, the default of newer ones; see
  `megatron_buckets.py`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.megatron_buckets import BucketLayout, matching_layout, unknown_order
from megatron_native.checkpoint.megatron_common import arguments_of, read_megatron_common
from megatron_native.checkpoint.torch_dist import TorchDistReader
from megatron_native.errors import UserError
from megatron_native.models.weight_map import VOCABULARY_KEYS, Piece

TRACKER = "latest_checkpointed_iteration.txt"
STATES = ("param", "exp_avg", "exp_avg_sq")
OptimizerForm = Literal["none", "resharded", "whole", "flattened", "buckets", "gathered", "chained"]

_LAYERS = "decoder.layers."
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_OPTIMIZER = re.compile(r"^(chained_\d+\.)?optimizer\.")
_BUFFERS = re.compile(r"^optimizer\.distributed\.dp_group_idx_\d+\.(gbuf_idx_|param_state)")
_GROUPS_OBJECT = "optimizer.distributed.dp_group_idx_0.optimizer/shard_0_1"


def find_checkpoint(folder: Path) -> Path:
    """The folder with the tensors: `folder` itself, or the iteration that its `latest_checkpointed_iteration.txt` names.

    Raises:
        UserError: there is neither.
    """
    folder = Path(folder).absolute()
    if (folder / "metadata.json").is_file():
        return folder
    tracker = folder / TRACKER
    if not tracker.is_file():
        raise UserError(
            f"{folder} is no Megatron-LM checkpoint of the torch_dist format: it has neither metadata.json nor {TRACKER}. "
            "Give the folder of --save, or one iter_XXXXXXX in it; a checkpoint with mp_rank_XX folders has to be saved "
            "once more by the Megatron-LM that wrote it, with --ckpt-format torch_dist."
        )
    said = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if said != "release" and not said.isdigit():
        raise UserError(f"{tracker} says '{said[:40]}', which is no iteration; give the folder iter_XXXXXXX itself.")
    found = folder / ("release" if said == "release" else f"iter_{int(said):07d}")
    if not (found / "metadata.json").is_file():
        raise UserError(f"{tracker} names {found.name}, and {found} has no metadata.json: it is gone or was cut short.")
    return found


class MegatronLmCheckpoint:
    """Boxes of weights and optimizer state of a Megatron-LM checkpoint, under this project's stacked keys.

    Args:
        folder: what `find_checkpoint` gives.
        pieces: every weight of the model that it should be.

    Raises:
        UserError: damaged or hostile files; weights that the model lacks or has not, or has in another shape.
    """

    def __init__(self, folder: Path, pieces: Sequence[Piece]) -> None:
        self.folder = folder
        self.common = read_megatron_common(folder)
        self.arguments: dict[str, Any] = arguments_of(self.common)
        self.reader = TorchDistReader(folder)
        self.stacked = not any(re.match(rf"{re.escape(_LAYERS)}\d+\.", key) for key in self.reader.tensors)
        self._check_weights(pieces)
        self.optimizer_form: OptimizerForm = self._optimizer_form()
        self._buckets: BucketLayout | None = None

    def weight_key(self, piece: Piece) -> str:
        """The key that a piece of a weight lies under here."""
        if self.stacked or not piece.key.startswith(_LAYERS):
            return piece.key
        return f"{_LAYERS}{piece.offset[0]}.{piece.key.removeprefix(_LAYERS)}"

    def read_weight(self, piece: Piece) -> torch.Tensor:
        """A piece of a weight, in the dtype that it was saved in."""
        return self._read(self.weight_key(piece), piece)

    def read_state(self, state: str, piece: Piece) -> torch.Tensor:
        """The same piece of a state of the optimizer (one of `STATES`), in FP32; an FP32 weight is its own master."""
        if self._buckets is not None:
            return self._read_buckets(self._buckets, state, piece)
        key = self._state_key(state, piece)
        if state == "param" and key not in self.reader.tensors and self.optimizer_form == "whole":
            return self.read_weight(piece).float()
        if self.optimizer_form == "flattened":
            return self._read_flattened(key, piece).float()
        return self._read(key, piece).float()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the old optimizer, without their parameters: settings and steps.

        Raises:
            UserError: it saved none that can be read.
        """
        value: Any = self.common.get("optimizer")
        if self.optimizer_form in ("flattened", "buckets"):
            value = self._read_object(_GROUPS_OBJECT)
        if isinstance(value, Mapping) and "param_groups" not in value:
            value = value.get("optimizer")
        saved = value.get("param_groups") if isinstance(value, Mapping) else None
        if not isinstance(saved, list) or not saved or not all(isinstance(group, Mapping) for group in saved):
            raise UserError(
                f"{self.folder} holds optimizer state without the parameter groups that belong to it, so the optimizer "
                "can't go on; adopt its weights alone with --weights-only."
            )
        state = value.get("state")
        common_step = state.get("common_step") if isinstance(state, Mapping) else None
        groups = []
        for group in saved:
            plain = {name: setting for name, setting in group.items() if name != "params"}
            step = plain.get("step", common_step)
            plain["step"] = step.item() if isinstance(step, torch.Tensor) else step
            groups.append(plain)
        return groups

    def rows(self, piece: Piece) -> int:
        """Rows of the tensor that a piece belongs to, vocabulary padding included."""
        return self.reader.tensors[self.weight_key(piece)].shape[0]

    def _read(self, key: str, piece: Piece) -> torch.Tensor:
        if self.weight_key(piece) == piece.key:
            return self.reader.read(key, piece.offset, piece.shape)
        return self.reader.read(key, piece.offset[1:], piece.shape[1:]).reshape(piece.shape)

    def _read_flattened(self, key: str, piece: Piece) -> torch.Tensor:
        """A box out of blocks that were stored flat, read block by block."""
        unstack = self.weight_key(piece) != piece.key
        offset, shape = (piece.offset[1:], piece.shape[1:]) if unstack else (piece.offset, piece.shape)
        whole = self.reader.tensors[self.weight_key(piece)].shape
        *blocks, _ = self.reader.tensors[key].shape
        block = tuple(size // count for size, count in zip(whole, blocks, strict=True))
        result = torch.empty(shape)
        spans = [
            range(start // size, (start + extent - 1) // size + 1)
            for start, extent, size in zip(offset, shape, block, strict=True)
        ]
        for place in product(*spans):
            flat = self.reader.read(key, (*place, 0), (*(1 for _ in place), prod(block)))
            into, out_of = [], []
            for at, size, start, extent in zip(place, block, offset, shape, strict=True):
                first, last = max(at * size, start), min((at + 1) * size, start + extent)
                into.append(slice(first - start, last - start))
                out_of.append(slice(first - at * size, last - at * size))
            result[tuple(into)] = flat.reshape(block)[tuple(out_of)]
        return result.reshape(piece.shape)

    def _read_buckets(self, buckets: BucketLayout, state: str, piece: Piece) -> torch.Tensor:
        """A box out of flat buffers; masters are compared with their weights, so that no wrong order is believed."""
        box = buckets.read(state, piece)
        if state == "param":
            weight = self.read_weight(piece)
            if not torch.equal(box.to(weight.dtype), weight):
                raise unknown_order(
                    self.reader, f"what lies where the masters of '{piece.key}' belong is not its weights"
                )
        return box

    def _bucket_layout(self, pieces: Sequence[Piece]) -> BucketLayout:
        shapes = {}
        for piece in pieces:
            whole = self.reader.tensors[self.weight_key(piece)].shape
            stacked = piece.key.startswith(_LAYERS) and self.weight_key(piece) == piece.key
            shapes[piece.key] = whole[1:] if stacked else whole
        layers = max((piece.offset[0] for piece in pieces if piece.key.startswith(_LAYERS)), default=-1) + 1
        tied = "output_layer.weight" not in shapes
        found = matching_layout(
            lambda modules: BucketLayout(self.reader, self.arguments, shapes, layers, tied, modules),
            pieces,
            self.read_weight,
        )
        if found is None:
            raise unknown_order(self.reader, "the masters found are not those of the weights")
        return found

    def _state_key(self, state: str, piece: Piece) -> str:
        name = "fp32_param" if state == "param" and self.optimizer_form != "resharded" else state
        return f"optimizer.state.{name}.{self.weight_key(piece)}"

    def _check_weights(self, pieces: Sequence[Piece]) -> None:
        tensors = self.reader.tensors
        known = {self.weight_key(piece) for piece in pieces}
        strange = sorted(key for key in tensors if key not in known and not _OPTIMIZER.match(key))
        missing = sorted(known - tensors.keys())
        if strange or missing:
            which = f"has no '{missing[0]}'" if missing else f"has '{strange[0]}' ({len(strange)} such tensors)"
            raise UserError(
                f"{self.folder} {which}, unlike the model of config.json: the two don't belong together, or the model "
                "is of a kind that is not supported."
            )
        for piece in pieces:
            info = tensors[self.weight_key(piece)]
            shape = piece.global_shape if self.weight_key(piece) == piece.key else piece.global_shape[1:]
            padded = piece.key in VOCABULARY_KEYS and info.shape[:1] >= shape[:1]
            if info.shape[1:] != shape[1:] or (info.shape != shape and not padded):
                raise UserError(
                    f"{self.folder}: '{self.weight_key(piece)}' has shape {list(info.shape)}, and config.json makes it "
                    f"{list(shape)}; the two don't belong together."
                )
            if info.dtype not in _FLOATS:
                raise UserError(
                    f"{self.folder}: '{self.weight_key(piece)}' is stored as {info.dtype}; only FP32, BF16 and FP16 weights "
                    "are adopted. Save it once from Megatron-LM without FP8 parameters."
                )

    def _optimizer_form(self) -> OptimizerForm:
        names = [*self.reader.tensors, *self.reader.objects]
        if any(name.startswith("chained_") for name in names):
            return "chained"
        if buffers := next((match for name in names if (match := _BUFFERS.match(name))), None):
            return "buckets" if buffers[1] == "gbuf_idx_" else "gathered"
        weights = [key for key in self.reader.tensors if not _OPTIMIZER.match(key)]
        if not any(f"optimizer.state.exp_avg.{key}" in self.reader.tensors for key in weights):
            return "none"
        if any(f"optimizer.state.param.{key}" in self.reader.tensors for key in weights):
            return "resharded"
        moment = f"optimizer.state.exp_avg.{weights[0]}"
        there, here = self.reader.tensors[moment].shape, self.reader.tensors[weights[0]].shape
        return "whole" if there == here else "flattened"

    def check_states(self, pieces: Sequence[Piece]) -> None:
        """Raise `UserError` where a state of the optimizer is missing or has another shape than its weight."""
        if self.optimizer_form == "buckets":
            self._buckets = self._bucket_layout(pieces)
            return
        for piece in pieces:
            weight = self.reader.tensors[self.weight_key(piece)]
            for state in STATES:
                key = self._state_key(state, piece)
                info = self.reader.tensors.get(key)
                if (
                    info is None
                    and state == "param"
                    and self.optimizer_form == "whole"
                    and weight.dtype == torch.float32
                ):
                    continue
                if info is None:
                    raise UserError(
                        f"{self.folder} has no '{key}': its optimizer state is not whole; give --weights-only."
                    )
                fits = info.shape == weight.shape
                if self.optimizer_form == "flattened":
                    blocks = info.shape[:-1]
                    fits = (
                        len(blocks) == len(weight.shape)
                        and all(count and not size % count for size, count in zip(weight.shape, blocks, strict=True))
                        and prod(info.shape) == prod(weight.shape)
                    )
                if not fits:
                    raise UserError(
                        f"{self.folder}: '{key}' has shape {list(info.shape)}, which does not fit its weight of "
                        f"{list(weight.shape)}; give --weights-only to do without the optimizer."
                    )

    def _read_object(self, key: str) -> Any:
        """A sharded object of plain values; None where there is none. `UserError` where it is anything else."""
        location = next((info for index, info in self.reader.metadata.storage_data.items() if index.fqn == key), None)
        if location is None:
            return None
        path = self.folder / Path(location.relative_path).name
        try:
            with open(path, "rb") as file:
                file.seek(location.offset)
                value = torch.load(io.BytesIO(file.read(location.length)), map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(
                f"{path}: the object '{key}' is damaged or holds more than plain values ({layout.in_one_line(error)}); it "
                "was not loaded. Give --weights-only to do without the optimizer."
            ) from error
        return value[0] if isinstance(value, list) and len(value) == 1 else value
