"""Several checkpoints of one model become their average, tensor by tensor: as teams do at the end of a phase.

The FP32 masters are averaged where a checkpoint has them, else its weights. In memory are one tensor of FP32 and the same
of one checkpoint. The result holds weights only: it exports, is evaluated, and a run starts from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.conversion import Conversion
from megatron_native.checkpoint.export_hf import CheckpointWeights
from megatron_native.checkpoint.torch_dist import TorchDistWriter, read_common
from megatron_native.checkpoint.vocabulary import VOCABULARY_FILE
from megatron_native.data.tokenizers import load_tokenizer
from megatron_native.errors import UserError
from megatron_native.manifest import already_done, build_manifest, file_digest, file_entry, write_json
from megatron_native.models.families import model_pieces
from megatron_native.models.weight_map import Piece, extra_state_objects
from megatron_native.progress import progress

STAGE = "average"
PACKAGES = ("torch",)
Method = Literal["uniform", "ema"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MASTER = "optimizer.state.param."
_TOKENIZER_FORMS = {"tokenizer.json": "HuggingFaceTokenizer", "tokenizer.model": "SentencePieceTokenizer"}
_BLOCK_VALUES = 1 << 24


@dataclass(frozen=True)
class AverageResult:
    """What an averaging did."""

    checkpoint: Path
    weights: tuple[float, ...]
    """The share of each checkpoint; they sum to one."""
    masters: tuple[bool, ...]
    """Whether a checkpoint's FP32 masters were averaged, or its weights."""
    tensors: int
    bytes: int
    skipped: bool
    """The average was there already, made from the same checkpoints in the same way."""


def shares(
    count: int, method: Method = "uniform", decay: float = 0.9, weights: Sequence[float] | None = None
) -> list[float]:
    """The share of each of `count` checkpoints, oldest first; they sum to one.

    `uniform`: 1 / n each. `ema`: the exponential moving average that begins with the first, e = decay · e + (1 − decay) · c.
    `weights` are used instead where given, in proportion.

    Raises:
        UserError: a decay outside [0, 1), or weights that are too few, negative, or all zero.
    """
    if weights is not None:
        if len(weights) != count:
            raise UserError(f"--weights has {len(weights)} numbers for {count} checkpoints; give one for each.")
        wrong = next((weight for weight in weights if not math.isfinite(weight) or weight < 0), None)
        if wrong is not None or not sum(weights):
            raise UserError(
                f"--weights has {wrong if wrong is not None else 'only zeros'}; give numbers of zero or more."
            )
        return [weight / sum(weights) for weight in weights]
    if method == "uniform":
        return [1 / count] * count
    if not 0 <= decay < 1:
        raise UserError(f"--decay is {decay}; it must be at least 0 and below 1, such as 0.9.")
    return [decay ** (count - 1)] + [(1 - decay) * decay ** (count - 1 - at) for at in range(1, count)]


def average(
    checkpoints: Sequence[Path],
    output: Path,
    *,
    method: Method = "uniform",
    decay: float = 0.9,
    weights: Sequence[float] | None = None,
    dtype: str | None = None,
) -> AverageResult:
    """Write the average of `checkpoints` as a checkpoint at `output`.

    Args:
        checkpoints: at least two of one model, oldest first, of whatever layout.
        output: the folder; it must not exist, or be the result of the same averaging.
        method: see `shares`, as for `decay` and `weights`.
        dtype: one of `DTYPES` for every tensor; by default that of the weights of the last checkpoint.

    Raises:
        UserError: a damaged or incomplete checkpoint, checkpoints of different models, too little disk, or an output that
            holds something else.
    """
    folders, output = [Path(path).absolute() for path in checkpoints], Path(output).absolute()
    if len(folders) < 2 or len({path.resolve() for path in folders}) < len(folders):
        raise UserError(
            "an average needs at least two checkpoints, each given once; --weights makes one count for more."
        )
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype is '{dtype}'; it must be one of {', '.join(DTYPES)}.")
    parts = shares(len(folders), method, decay, weights)
    sources = [CheckpointWeights(folder) for folder in folders]
    for other in sources[1:]:
        _refuse_other_model(sources[0], other)
        _refuse_other_tokens(folders[0], other.checkpoint)
        _refuse_other_tokenizer(folders[0], other.checkpoint)
    pieces = model_pieces(sources[0].config)
    for source in sources:
        _refuse_missing(source, pieces)
    masters = tuple(all(_MASTER + piece.key in source.reader.tensors for piece in pieces) for source in sources)
    inputs = [file_entry(folder / layout.CHECKSUMS_FILE, output) for folder in folders]
    order = [entry["xxh3_128"] for entry in inputs]
    parameters = {"method": method if weights is None else "weights", "shares": parts, "dtype": dtype, "order": order}
    kinds = {piece.key: DTYPES[dtype] if dtype else sources[-1].stored_dtype(piece) for piece in pieces}
    total = sum(torch.Size(piece.shape).numel() * kinds[piece.key].itemsize for piece in pieces)
    result = AverageResult(output, tuple(parts), masters, len(kinds), total, skipped=True)
    if already_done(output / layout.MANIFEST_FILE, STAGE, parameters, inputs):
        layout.check_complete(output)
        return result
    with Conversion(output, STAGE, what="the average", needed_bytes=total) as conversion:
        partial = conversion.partial
        writer = TorchDistWriter(partial)
        with progress("average", total=total, unit="B") as bar:
            for piece in pieces:
                box = _mean(piece, sources, masters, parts).to(kinds[piece.key])
                writer.write(piece.key, piece.global_shape, piece.offset, box)
                bar.advance(box.nbytes)
        for name in extra_state_objects(sources[0].config):
            writer.write_object(name, None)
        writer.finish()
        layout.copy_run_files(folders[-1], partial)
        (partial / layout.REFERENCE_LOGITS_FILE).unlink(missing_ok=True)  # another model's by now
        outputs = [
            {"path": f"../{name}", "bytes": (partial / name).stat().st_size, "xxh3_128": digest}
            for name, digest in writer.digests.items()
        ]
        kinds_averaged = ["masters" if own else "weights" for own in masters]
        counts = {"read": len(kinds), "kept": len(kinds), "dropped": {}, "quarantined": {}, "bytes": total}
        lineage = [
            {"checkpoint": str(folder), **_position(folder), "share": share, "averaged": averaged}
            for folder, share, averaged in zip(folders, parts, kinds_averaged, strict=True)
        ]
        manifest = build_manifest(STAGE, parameters, inputs, outputs, counts, PACKAGES, lineage=lineage)
        write_json(partial / layout.MANIFEST_FILE, manifest)
        of = [{**part, "checkpoint": folder.name} for part, folder in zip(lineage, folders, strict=True)]
        layout.write_lineage(partial, {"by": STAGE, "method": parameters["method"], "of": of}, folders[-1])
        layout.write_checksums(partial, known=writer.digests)
        conversion.finish()
    return replace(result, skipped=False)


def _mean(
    piece: Piece, sources: Sequence[CheckpointWeights], masters: Sequence[bool], parts: Sequence[float]
) -> torch.Tensor:
    """The weighted mean of one box in FP32, one checkpoint after another; equal values stay as they are, bit for bit."""
    mean: torch.Tensor | None = None
    before = 0.0
    for source, own, share in zip(sources, masters, parts, strict=True):
        before += share
        if not share:
            continue
        box = source.reader.read(_MASTER + piece.key if own else piece.key, piece.offset, piece.shape).reshape(-1)
        if mean is None:
            mean = box.float() if box.dtype != torch.float32 else box
            continue
        for start in range(0, box.numel(), _BLOCK_VALUES):
            part = slice(start, start + _BLOCK_VALUES)
            mean[part].lerp_(box[part].float(), share / before)
    assert mean is not None
    return mean.reshape(piece.shape)


def _refuse_other_model(first: CheckpointWeights, other: CheckpointWeights) -> None:
    there, here = other.config.model_dump(), first.config.model_dump()
    for name, value in here.items():
        if there[name] != value:
            raise UserError(
                f"{other.checkpoint} has {name} = {there[name]!r} and {first.checkpoint} {value!r} ({layout.MODEL_FILE}): an "
                "average of different models is none. Give checkpoints of one model."
            )


def _refuse_other_tokens(first: Path, other: Path) -> None:
    """Rows of different tokens have no mean: compared are the tokens that imports added."""
    added = [(layout.read_json(folder / VOCABULARY_FILE) or {}).get("tokens", []) for folder in (first, other)]
    ids = [{token["id"]: token["bpe"] for token in tokens} for tokens in added]
    if ids[0] != ids[1]:
        raise UserError(
            f"{other} has other new tokens than {first} ({VOCABULARY_FILE}: {len(ids[1])} and {len(ids[0])}): a row would be "
            "the average of two words'. Give checkpoints of one extended vocabulary."
        )


def _refuse_other_tokenizer(first: Path, other: Path) -> None:
    """Refuse another tokenizer, which reads text into other rows; a checkpoint without one can't be compared."""
    here, there = (_tokenizer_file(folder) for folder in (first, other))
    if here is None or there is None or file_digest(here) == file_digest(there):
        return
    ours, theirs = (load_tokenizer(_TOKENIZER_FORMS[path.name], path) for path in (here, there))
    if ours.name == theirs.name and ours.hash == theirs.hash:
        return
    both = range(min(ours.vocab_size, theirs.vocab_size))
    at = next((index for index in both if ours.id_token(index) != theirs.id_token(index)), None)
    if at is not None:
        difference = f"id {at} is {theirs.id_token(at)!r} there and {ours.id_token(at)!r} here"
    elif ours.name != theirs.name:
        return  # the same tokens in another form of file
    elif ours.vocab_size != theirs.vocab_size:
        difference = f"{theirs.vocab_size:,} tokens there and {ours.vocab_size:,} here"
    else:
        difference = f"the same tokens, but {_differing_rules(here, there)} differ"
    raise UserError(
        f"{other} has another tokenizer than {first} ({layout.TOKENIZER_FOLDER}/{there.name}: {difference}): the same "
        "text would be other rows, and what was learned of them has no mean. Give checkpoints of one tokenizer."
    )


def _tokenizer_file(checkpoint: Path) -> Path | None:
    """What a checkpoint's tokenizer is read from; None where it has none, or one of a form that is not read here."""
    paths = (checkpoint / layout.TOKENIZER_FOLDER / name for name in _TOKENIZER_FORMS)
    return next((path for path in paths if path.is_file()), None)


def _differing_rules(ours: Path, theirs: Path) -> str:
    """The parts in which two tokenizers of the same tokens differ."""
    if ours.suffix != ".json":
        return "their scores or settings"
    here, there = (json.loads(path.read_text(encoding="utf-8")) for path in (ours, theirs))
    for content in (here, there):
        content |= content.pop("model", {})
    parts = (here | there).keys() - {"truncation", "padding"}
    return ", ".join(sorted(part for part in parts if here.get(part) != there.get(part)))


def _refuse_missing(source: CheckpointWeights, pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        source.stored_dtype(piece)


def _position(folder: Path) -> dict[str, Any]:
    """How far the run of a checkpoint was; nothing for one that is not a run's."""
    position = read_common(folder).get("progress", {}).get("position", {})
    return {name: position[name] for name in ("step", "consumed_samples", "consumed_tokens") if name in position}
