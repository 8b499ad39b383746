"""A Megatron-LM checkpoint becomes one of this project: weights, optimizer, iteration and consumed samples.

Names and shapes are checked against the model of a Hugging Face `config.json`. Where the files can stay as they are, they
are linked and only what points into them is written anew; else every tensor is streamed into this project's layout. The
checkpoint is built beside its place and renamed there when whole. It exports, and a run goes on from it.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, StorageMeta

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.conversion import FREE_SPACE_MARGIN, Conversion
from megatron_native.checkpoint.import_hf import carried_files, copy_carried_files
from megatron_native.checkpoint.megatron_common import refuse_other_model
from megatron_native.checkpoint.megatron_lm import STATES, MegatronLmCheckpoint, find_checkpoint
from megatron_native.checkpoint.torch_dist import BACKENDS, METADATA_VERSION, TorchDistWriter
from megatron_native.config.model import ModelConfig
from megatron_native.data.ledger import Elsewhere, Ledger
from megatron_native.errors import UserError
from megatron_native.manifest import already_done, build_manifest, file_digest, file_entry, write_json
from megatron_native.models.families import model_pieces, read_hf_config, to_model_config
from megatron_native.models.weight_map import Piece, extra_state_objects
from megatron_native.progress import progress

STAGE = "adopt"
PACKAGES = ("torch", "megatron-core")
SHARDING = "fully_reshardable"
_OBJECTS_FILE = "adopted_objects.distcp"
_GROUP_IDENTITY = ("wd_mult", "lr_mult", "is_expert_parallel", "is_decoupled_lr")
"""megatron-core finds a parameter group of a checkpoint by these."""


@dataclass(frozen=True)
class AdoptResult:
    """What an adoption did."""

    checkpoint: Path
    source: Path
    """The iteration that was adopted."""
    tensors: int
    bytes: int
    """Of weights and optimizer state."""
    linked: bool
    """The tensors' files stayed as they were."""
    weights_only: bool
    elsewhere: Elsewhere | None
    """How far the old run was; None where only weights were taken."""
    skipped: bool
    """The checkpoint was there already, made from the same one."""


def adopt(checkpoint: Path, hf_folder: Path, output: Path, *, weights_only: bool = False) -> AdoptResult:
    """Make a checkpoint of this project at `output`.

    Args:
        checkpoint: a Megatron-LM checkpoint in the torch_dist format: the folder of `--save`, whose latest iteration is
            taken, or one `iter_XXXXXXX` in it.
        hf_folder: the model's `config.json`; tokenizer files and `generation_config.json` there travel along.
        output: the checkpoint's folder; it must not exist, or be the result of the same adoption.
        weights_only: leave optimizer, iteration and consumed samples; a run starts from it like from an import.

    Raises:
        UserError: a damaged or hostile checkpoint, another model's, optimizer state of a form that can't be read here,
            too little disk, or an output that holds something else.
    """
    source, hf_folder, output = find_checkpoint(checkpoint), Path(hf_folder).absolute(), Path(output).absolute()
    config = to_model_config(read_hf_config(hf_folder))
    pieces = model_pieces(config)
    old = MegatronLmCheckpoint(source, pieces)
    refuse_other_model(old.arguments, config, source)
    elsewhere = None if weights_only else _elsewhere(old)
    groups = [] if weights_only else _parameter_groups(old, pieces)
    carried = carried_files(hf_folder)
    parameters = {"weights_only": weights_only}
    described = [source / name for name in (".metadata", "common.pt", "metadata.json")]
    inputs = [file_entry(path, source) for path in described] + [file_entry(path, hf_folder) for path in carried]
    tensors, total = _amount(old, pieces, weights_only)
    linked = not weights_only and old.stacked and old.optimizer_form == "resharded"
    result = AdoptResult(output, source, tensors, total, linked, weights_only, elsewhere, skipped=True)
    if already_done(output / layout.MANIFEST_FILE, STAGE, parameters, inputs):
        layout.check_complete(output)
        return result
    with Conversion(output, STAGE, what="the checkpoint", needed_bytes=None if linked else total) as conversion:
        partial = conversion.partial
        common = {} if elsewhere is None else _common(elsewhere, groups)
        with progress("adopt", total=total, unit="B") as bar:
            if linked:
                digests = _link(old, pieces, partial, config, common, bar)
            else:
                digests = _rewrite(old, pieces, partial, config, common, weights_only, bar)
        layout.write_model_config(partial, config)
        copy_carried_files(hf_folder, partial, carried)
        if elsewhere is not None:
            (partial / layout.RUN / "ledger.json").write_text(Ledger(0, elsewhere=elsewhere).dumps(), encoding="utf-8")
        outputs = [
            {"path": f"../{name}", "bytes": (partial / name).stat().st_size, "xxh3_128": digest}
            for name, digest in sorted(digests.items())
        ]
        counts = {"read": tensors, "kept": tensors, "dropped": {}, "quarantined": {}, "bytes": total}
        iteration = old.common.get("iteration")
        lineage = {"source": str(source), "iteration": iteration, "optimizer": old.optimizer_form, "linked": linked}
        manifest = build_manifest(STAGE, parameters, inputs, outputs, counts, PACKAGES, lineage=lineage)
        write_json(partial / layout.MANIFEST_FILE, manifest)
        made: dict[str, Any] = {"by": STAGE, "iteration": iteration, "weights_only": weights_only}
        if elsewhere is not None:
            made |= {"samples": elsewhere.samples, "tokens": elsewhere.tokens}
        layout.write_lineage(partial, made)
        layout.write_checksums(partial, known=digests)
        conversion.finish()
    return dataclasses.replace(result, skipped=False)


def _elsewhere(old: MegatronLmCheckpoint) -> Elsewhere:
    """How far the old run was, from what it saved; `UserError` names what it did not save."""
    arguments, scheduler = old.arguments, old.common.get("opt_param_scheduler") or {}
    found: dict[str, Any] = {
        "iteration": old.common.get("iteration", arguments.get("iteration")),
        "consumed_train_samples": arguments.get("consumed_train_samples", scheduler.get("num_steps")),
        "seq_length": arguments.get("seq_length"),
    }
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UserError(
                f"{old.folder / 'common.pt'} gives {name} = {value!r}, so it can't be told how far the run was; adopt its "
                "weights alone with --weights-only."
            )
    step, samples, length = found["iteration"], found["consumed_train_samples"], found["seq_length"]
    return Elsewhere(str(old.folder), step, samples, samples * length)


def _parameter_groups(old: MegatronLmCheckpoint, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """The old optimizer's groups with one for matrices and one for what does not decay, and a step in each.

    Raises:
        UserError: the optimizer state is missing, or of a form that can't be read here.
    """
    form = old.optimizer_form
    if form == "none":
        raise UserError(f"{old.folder} was saved without optimizer state (--no-save-optim); give --weights-only.")
    if form == "chained":
        raise UserError(
            f"{old.folder} holds the state of several optimizers (chained_0, chained_1, …), as with experts or decoupled "
            "learning rates; only one AdamW over all weights is adopted. Give --weights-only to do without it."
        )
    if form == "gathered":
        raise UserError(
            f"{old.folder} holds optimizer state gathered into one object a rank (dp_zero_gather_scatter). "
            "Load it once with the Megatron-LM that wrote it, in the same layout, and save it with "
            "--dist-ckpt-optim-fully-reshardable; or give --weights-only to do without the optimizer."
        )
    old.check_states(pieces)
    groups = old.parameter_groups()
    steps = {group["step"] for group in groups if group["step"] is not None}
    if len(steps) > 1:
        raise UserError(f"{old.folder} has parameter groups at different steps ({sorted(steps)}); give --weights-only.")
    step = int(steps.pop()) if steps else int(old.common.get("iteration", 0))
    by_identity = {}
    for group in groups:
        identity = tuple(group.get(name, group.get(f"pre_{name}")) for name in _GROUP_IDENTITY)
        by_identity[identity] = {**group, "step": step}
    for decay in (1.0, 0.0):
        by_identity.setdefault((decay, 1.0, False, False), {**groups[0], "step": step} | dict(zip(
            _GROUP_IDENTITY, (decay, 1.0, False, False), strict=True
        )))  # fmt: skip
    return list(by_identity.values())


def _common(elsewhere: Elsewhere, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """What is not a tensor, as a run here saves it."""
    position = {
        "step": elsewhere.steps,
        "consumed_samples": elsewhere.samples,
        "consumed_tokens": elsewhere.tokens,
        "schedule_steps": elsewhere.steps,
    }
    return {
        "progress": {"position": position, "adopted": elsewhere.source},
        "optimizer": {"optimizer": {"param_groups": groups}, "param_state_sharding_type": SHARDING},
        "content_metadata": {"distrib_optim_sharding_type": SHARDING},
    }


def _amount(old: MegatronLmCheckpoint, pieces: Sequence[Piece], weights_only: bool) -> tuple[int, int]:
    """Global tensors and bytes of what is adopted, without vocabulary padding."""
    sizes = 0
    for piece in pieces:
        values = torch.Size(piece.shape).numel()
        dtype = old.reader.tensors[old.weight_key(piece)].dtype
        sizes += values * (dtype.itemsize + (0 if weights_only else 4 * len(STATES)))
    keys = len({piece.key for piece in pieces})
    return keys * (1 if weights_only else 1 + len(STATES)), sizes


def _rewrite(
    old: MegatronLmCheckpoint,
    pieces: Sequence[Piece],
    partial: Path,
    config: ModelConfig,
    common: dict[str, Any],
    weights_only: bool,
    bar: Any,
) -> dict[str, str]:
    """Stream every piece of weights and state into new files, vocabulary padding left out; their digests."""
    writer = TorchDistWriter(partial)
    for piece in pieces:
        box = old.read_weight(piece)
        writer.write(piece.key, piece.global_shape, piece.offset, box)
        bar.advance(box.nbytes)
    for state in () if weights_only else STATES:
        for piece in pieces:
            box = old.read_state(state, piece)
            writer.write(f"optimizer.state.{state}.{piece.key}", piece.global_shape, piece.offset, box)
            bar.advance(box.nbytes)
    for name in extra_state_objects(config):
        writer.write_object(name, None)
    writer.finish(common)
    return dict(writer.digests)


def _link(
    old: MegatronLmCheckpoint,
    pieces: Sequence[Piece],
    partial: Path,
    config: ModelConfig,
    common: dict[str, Any],
    bar: Any,
) -> dict[str, str]:
    """Put the tensors' files into `partial` unchanged, with metadata that names weights and state only; their digests.

    Random states and Transformer Engine's extra states, which loading would unpickle, stay behind.
    """
    source, metadata = old.folder, old.reader.metadata
    keys = {key for piece in pieces for key in (piece.key, *(f"optimizer.state.{s}.{piece.key}" for s in STATES))}
    entries = {key: entry for key, entry in metadata.state_dict_metadata.items() if key in keys}
    storage = {index: info for index, info in metadata.storage_data.items() if index.fqn in keys}
    names = sorted({info.relative_path for info in storage.values()})
    outside = next((name for name in names if Path(name).name != name), None)
    if outside is not None:
        raise UserError(f"{source}: .metadata points outside the checkpoint, to '{outside}'.")
    missing = next((name for name in names if not (source / name).is_file()), None)
    if missing is not None:
        raise UserError(f"{source} was cut short: {missing} is missing.")
    sizes = {name: (source / name).stat().st_size for name in names}
    for info in storage.values():
        if info.offset + info.length > sizes[info.relative_path]:
            raise UserError(f"{source / info.relative_path} was cut short: it has {sizes[info.relative_path]} bytes.")
    bar.total = sum(sizes.values())
    digests = {}
    for number, name in enumerate(names):
        try:
            os.link(source / name, partial / name)
        except OSError:  # another disk, or files of another user
            if number == 0:
                layout.check_free_space(partial, sum(sizes.values()) + FREE_SPACE_MARGIN, "the checkpoint")
            shutil.copyfile(source / name, partial / name)
        digests[name] = file_digest(partial / name)
        bar.advance(sizes[name])
    with open(partial / _OBJECTS_FILE, "wb") as file:
        for name in extra_state_objects(config):
            start = file.tell()
            torch.save([None], file)
            entries[name] = BytesStorageMetadata()
            storage[MetadataIndex(name)] = _StorageInfo(_OBJECTS_FILE, start, file.tell() - start)
    new = Metadata(entries, storage_data=storage, storage_meta=StorageMeta(), version=METADATA_VERSION)
    (partial / ".metadata").write_bytes(pickle.dumps(new))
    torch.save(common, partial / "common.pt")
    write_json(partial / "metadata.json", BACKENDS)
    return digests
