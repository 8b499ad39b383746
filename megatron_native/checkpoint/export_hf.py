"""Checkpoint → Hugging Face folder, from the checkpoint alone: no GPU, no model built, no source folder.

Each Hugging Face tensor is cut out of megatron-core's global tensors and written straight into its place in a
safetensors shard; an imported checkpoint comes back bit for bit. Vocabulary padding never leaves. The folder is built
beside its place and renamed there when whole.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.conversion import Conversion, block_buffer, check_workers
from megatron_native.checkpoint.disk_errors import said_of_disk
from megatron_native.checkpoint.model_card import CARD, VERIFICATION, describe_export, verify_export, write_card
from megatron_native.checkpoint.row_runs import part_of_box, tensor_runs
from megatron_native.checkpoint.safetensors_files import (
    CONFIG_DTYPES,
    DTYPE_NAMES,
    DTYPES,
    Shard,
    ShardWriter,
    TensorSpec,
    plan_shards,
    tensor_bytes,
    write_index,
)
from megatron_native.checkpoint.torch_dist import TorchDistReader
from megatron_native.checkpoint.vocabulary import OUTPUT as TIED_OUTPUT
from megatron_native.config.model import ModelConfig
from megatron_native.errors import UserError
from megatron_native.manifest import already_done, build_manifest, file_entry, read_manifest, write_json
from megatron_native.models.families import export_config, model_pieces
from megatron_native.models.weight_map import Piece
from megatron_native.progress import progress

STAGE = "export-hf"
PACKAGES = ("torch", "safetensors")
MANIFEST = "manifest.json"
DEFAULT_SHARD_BYTES = 5_000_000_000
EMBEDDING_KEY = "embedding.word_embeddings.weight"
_NOT_WEIGHTS = re.compile(r"^(chained_\d+\.)?optimizer\.|_extra_state(/|$)|^(rng_state|rerun_state)")


@dataclass(frozen=True)
class ExportResult:
    """What an export did."""

    folder: Path
    tensors: int
    bytes: int
    files: int
    skipped: bool
    """The folder was there already, made from the same checkpoint with the same settings."""
    verified_in_place: bool = False
    """It had been made without a verification, and has one now."""


class CheckpointWeights:
    """The Hugging Face tensors of a checkpoint, by piece: what an export writes and a verification compares."""

    def __init__(self, checkpoint: Path, full_check: bool = False) -> None:
        """Reads metadata, and with `full_check` every file once to compare its digest.

        Raises `UserError` for a checkpoint that is damaged, cut short, or has weights that its model does not.
        """
        layout.check_complete(checkpoint, full=full_check)
        self.checkpoint = checkpoint
        self.config: ModelConfig = layout.read_model_config(checkpoint)
        self.hf_config = layout.read_json(checkpoint / layout.HF_CONFIG_FILE)
        recorded = layout.read_json(checkpoint / layout.HF_TENSORS_FILE) or {}
        self.imported: dict[str, dict[str, Any]] = recorded.get("tensors", {})
        """What the imported tensors were (dtype, shape, digest by name); empty where nothing was imported."""
        self.reader = TorchDistReader(checkpoint)
        self.pieces = self._pieces()

    def _pieces(self) -> list[Piece]:
        pieces = model_pieces(self.config)
        known = {piece.key for piece in pieces}
        strange = sorted(key for key in self.reader.tensors if key not in known and not _NOT_WEIGHTS.search(key))
        if strange:
            raise UserError(
                f"{self.checkpoint} holds {len(strange)} tensors that a {self.config.family} model of run/model.json does "
                f"not have, such as '{strange[0]}'; leaving them out would export another model."
            )
        if TIED_OUTPUT in self.imported and self.config.tie_word_embeddings:
            embedding = next(piece for piece in pieces if piece.key == EMBEDDING_KEY)
            pieces.append(
                Piece(EMBEDDING_KEY, embedding.global_shape, embedding.offset, embedding.shape, (TIED_OUTPUT,),
                      embedding.hf_shapes)
            )  # fmt: skip
        return pieces

    def read(self, piece: Piece) -> tuple[torch.Tensor, ...]:
        """A piece's Hugging Face tensors, in the dtype that the checkpoint holds."""
        return piece.to_hf(self.reader.read(piece.key, piece.offset, piece.shape))

    def stream(self, piece: Piece, first: int, rows: int, dtype: torch.dtype) -> Iterator[memoryview]:
        """The bytes of rows of a piece's box in `dtype`, in blocks that are each valid until the next."""
        offset, shape = part_of_box(piece, first, rows)
        stored = self.stored_dtype(piece)
        for block in self.reader.stream(piece.key, offset, shape, block_buffer()):
            yield block if dtype == stored else tensor_bytes(torch.frombuffer(block, dtype=stored).to(dtype))

    def stored_dtype(self, piece: Piece) -> torch.dtype:
        """The dtype of a piece in the checkpoint."""
        if piece.key not in self.reader.tensors:
            raise UserError(f"{self.checkpoint} has no tensor '{piece.key}'; it is a checkpoint of another model.")
        return self.reader.tensors[piece.key].dtype

    def natural_dtype(self, name: str, piece: Piece) -> torch.dtype:
        """The dtype a tensor goes out in unless told otherwise: as imported, else config.json's, else as stored."""
        if name in self.imported:
            return DTYPES[self.imported[name]["dtype"]]
        stated = (self.hf_config or {}).get("dtype") or (self.hf_config or {}).get("torch_dtype")
        return CONFIG_DTYPES.get(str(stated), self.stored_dtype(piece))


def export_hf(
    checkpoint: Path,
    output: Path,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    workers: int | None = None,
    verify: bool = False,
) -> ExportResult:
    """Write `checkpoint` as a Hugging Face folder at `output`.

    Args:
        checkpoint: any complete checkpoint of this project, imported or trained at whatever layout.
        output: the folder; it must not exist, or be the result of the same export.
        dtype: "float32", "bfloat16", … for every tensor; by default each keeps the dtype it was imported in.
        max_shard_bytes: size of a safetensors file, above which another is begun.
        workers: threads, each of which writes a shard; as many as there are processors by default. The result is the
            same with any number.
        verify: compare what was written with the checkpoint, and its logits with the recorded ones (`verification.json`);
            an export that is there already is verified in its place.

    An export that was broken off is taken up again: shards that are finished in `OUTPUT.partial` are kept.

    Raises:
        UserError: a damaged or incomplete checkpoint, an unknown dtype, too little disk, an output that holds
            something else, or one that does not pass its verification.
    """
    checkpoint, output = Path(checkpoint).absolute(), Path(output).absolute()
    workers = check_workers(workers)
    if dtype is not None and dtype not in CONFIG_DTYPES:
        raise UserError(f"--dtype is '{dtype}'; it must be one of {', '.join(CONFIG_DTYPES)}.")
    if max_shard_bytes <= 0:
        raise UserError(f"the size of a shard is {max_shard_bytes} bytes; it must be above zero.")
    weights = CheckpointWeights(checkpoint)
    groups = [_specs(weights, piece, dtype) for piece in weights.pieces]
    shards = plan_shards(groups, max_shard_bytes)
    tensors = sum(len(group) for group in groups)
    total = sum(spec.bytes for group in groups for spec in group)
    parameters: dict[str, Any] = {"dtype": dtype, "max_shard_bytes": max_shard_bytes}
    inputs = [file_entry(checkpoint / layout.CHECKSUMS_FILE, checkpoint)]
    if already_done(output / MANIFEST, STAGE, parameters, inputs):
        layout.remove_records(output)
        verified_now = verify and _verify_in_place(checkpoint, output)
        return ExportResult(output, tensors, total, len(shards), skipped=True, verified_in_place=verified_now)
    identity = {"parameters": parameters, "checkpoint": str(checkpoint), "checksums": inputs[0]["xxh3_128"]}
    with Conversion(output, STAGE, identity, what="the export", needed_bytes=total) as conversion:
        partial = conversion.partial
        with progress("export", total=total, unit="B") as bar:
            write = functools.partial(
                _write_shard,
                conversion,
                weights,
                {piece.hf_names[0]: piece for piece in weights.pieces},
                functools.partial(conversion.advance, bar),
            )
            conversion.run([functools.partial(write, shard) for shard in shards], workers)
        write_index(partial, shards)
        _copy_companions(checkpoint, partial)
        main_dtype = dtype or _main_dtype(groups)
        write_json(partial / "config.json", export_config(weights.hf_config, weights.config, main_dtype))
        try:
            describe_export(checkpoint, partial, verify)
        except UserError:
            conversion.distrust()
            raise
        written = {partial / shard.file: conversion.record(shard.file) for shard in shards}
        outputs = [
            {"path": path.name, **(written[path] or {})} if path in written else file_entry(path, partial)
            for path in layout.files_of(partial)
            if path != partial / MANIFEST
        ]
        counts = {"read": tensors, "kept": tensors, "dropped": {}, "quarantined": {}, "bytes": total}
        write_json(partial / MANIFEST, build_manifest(STAGE, parameters, inputs, outputs, counts, PACKAGES))
        conversion.finish()
    return ExportResult(output, tensors, total, len(shards), skipped=False)


def _verify_in_place(checkpoint: Path, folder: Path) -> bool:
    """Verify a finished export, unless that was done; whether it was done now. A card that someone has changed stays.

    Its manifest is written last, so what is broken off is done again.
    """
    manifest = read_manifest(folder / MANIFEST)
    assert manifest is not None
    listed = {entry["path"]: entry for entry in manifest["outputs"]}
    if VERIFICATION in listed:
        return False
    with said_of_disk("the report of the verification", "The export is as it was."):
        report = verify_export(checkpoint, folder, f"delete {folder} and export again.")
        written = [VERIFICATION]
        if (folder / CARD).is_file() and file_entry(folder / CARD, folder) == listed.get(CARD):
            write_card(checkpoint, folder, report)
            written.append(CARD)
        listed |= {name: file_entry(folder / name, folder) for name in written}
        write_json(folder / MANIFEST, {**manifest, "outputs": [listed[name] for name in sorted(listed)]})
    return True


def _write_shard(
    conversion: Conversion,
    weights: CheckpointWeights,
    by_first_name: dict[str, Piece],
    advance: Callable[[int], None],
    shard: Shard,
) -> None:
    """Write one safetensors file and its record, unless both are there."""
    if conversion.record(shard.file):
        advance(sum(spec.bytes for spec in shard.tensors))
        return
    writer = ShardWriter(conversion.partial, shard)
    try:
        for group in _groups(shard, by_first_name):
            piece = by_first_name[group[0].name]
            for spec, stretches in zip(group, tensor_runs(piece), strict=True):
                writer.begin(spec)
                for run in stretches:
                    for block in weights.stream(piece, run.first, run.rows, DTYPES[spec.dtype]):
                        writer.write(block)
                        advance(block.nbytes)
        conversion.finish_file(shard.file, writer.finish())
    finally:
        writer.abandon()


def _specs(weights: CheckpointWeights, piece: Piece, dtype: str | None) -> list[TensorSpec]:
    """What a piece becomes in the export."""
    specs = []
    for name, shape in zip(piece.hf_names, piece.hf_shapes, strict=True):
        target = CONFIG_DTYPES[dtype] if dtype else weights.natural_dtype(name, piece)
        specs.append(TensorSpec(name, DTYPE_NAMES[target], shape))
    return specs


def _groups(shard: Shard, by_first_name: dict[str, Piece]) -> Iterator[list[TensorSpec]]:
    """A shard's tensors, piece by piece."""
    remaining = list(shard.tensors)
    while remaining:
        count = len(by_first_name[remaining[0].name].hf_names)
        yield remaining[:count]
        remaining = remaining[count:]


def _main_dtype(groups: list[list[TensorSpec]]) -> str:
    """The dtype that most bytes of the export have, as config.json names it."""
    sizes: dict[str, int] = {}
    for group in groups:
        for spec in group:
            sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.bytes
    return str(DTYPES[max(sizes, key=lambda name: sizes[name])]).removeprefix("torch.")


def _copy_companions(checkpoint: Path, folder: Path) -> None:
    """Tokenizer files, chat templates and generation_config.json, as they came."""
    if (checkpoint / layout.TOKENIZER_FOLDER).is_dir():
        shutil.copytree(checkpoint / layout.TOKENIZER_FOLDER, folder, dirs_exist_ok=True)
    generation = checkpoint / layout.HF_FOLDER / layout.GENERATION_CONFIG
    if generation.exists():
        shutil.copyfile(generation, folder / layout.GENERATION_CONFIG)
