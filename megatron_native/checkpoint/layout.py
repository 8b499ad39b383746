"""The folder of a checkpoint: what lies where, and whether all of it is there.

    CKPT/
      .metadata  *.distcp  common.pt  metadata.json      megatron-core's torch_dist format
      run/
        model.json                     the model's shape (`ModelConfig`)
        hf/config.json                 as it came; also generation_config.json where there was one
        hf/tensors.json                what the imported tensors were: names, dtypes, shapes, digests
        hf/base_model.json             the imported model's name, licence and languages
        hf/vocabulary.json             tokens that the import added (`vocabulary.py`)
        lineage.json                   what training did (`training/lineage.py`)
        tokenizer/                     every tokenizer file and chat template, as they came
        reference_logits.safetensors   logits of the imported model on fixed texts (`reference_logits.py`)
        manifest.json                  what made this checkpoint, from what
        checksums.json                 size and xxh3_128 of every other file; written last

`checksums.json` is written last, so a folder without it was cut short.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_native.config.model import ModelConfig
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest, write_json

RUN = "run"
MODEL_FILE = f"{RUN}/model.json"
HF_FOLDER = f"{RUN}/hf"
HF_CONFIG_FILE = f"{HF_FOLDER}/config.json"
HF_TENSORS_FILE = f"{HF_FOLDER}/tensors.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FOLDER = f"{RUN}/tokenizer"
REFERENCE_LOGITS_FILE = f"{RUN}/reference_logits.safetensors"
MANIFEST_FILE = f"{RUN}/manifest.json"
LINEAGE_FILE = f"{RUN}/lineage.json"
BASE_MODEL_FILE = f"{HF_FOLDER}/base_model.json"
CHECKSUMS_FILE = f"{RUN}/checksums.json"
LINEAGE_FORMAT = "megatron-native/lineage/1"
CHECKSUMS_FORMAT = "megatron-native/checksums/1"
TENSORS_FORMAT = "megatron-native/hf-tensors/1"
FINISHED_FOLDER = ".finished"
"""In a partial folder: a record of every file that a conversion has finished; no part of what is converted."""

_TRAVELLING = (MODEL_FILE, HF_FOLDER, TOKENIZER_FOLDER, REFERENCE_LOGITS_FILE)
_TOKENIZER_NAMES = frozenset({
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json", "spiece.model",
    "sentencepiece.bpe.model", "additional_chat_templates",
})  # fmt: skip


def in_one_line(error: BaseException) -> str:
    """What an exception of a library says, fit for the middle of a sentence: no line breaks, not too long."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 300 else said[:300] + "…"


def is_tokenizer_file(name: str) -> bool:
    """Whether a file or folder of a Hugging Face folder belongs to its tokenizer or chat templates."""
    return name in _TOKENIZER_NAMES or name.endswith(".tiktoken")


def partial_path(output: Path) -> Path:
    """Where `output` is built before it is renamed into place: beside it, so that the rename is one step."""
    return output.with_name(output.name + ".partial")


def start_partial(output: Path) -> Path:
    """An empty folder to build `output` in; what an interrupted run left there is removed first."""
    partial = partial_path(output)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def finish_partial(partial: Path, output: Path) -> None:
    """Flush every file and folder of `partial` to the disk, then rename it to `output` in one step, and flush that."""
    for path in (*partial.rglob("*"), partial):
        flush_to_disk(path)
    if output.is_dir():
        output.rmdir()  # only an empty folder gets this far
    os.replace(partial, output)
    flush_to_disk(output.parent)


def remove_records(output: Path) -> None:
    """Remove a conversion's records of its files, which nobody needs once `output` is whole."""
    if (output / FINISHED_FOLDER).is_dir():
        shutil.rmtree(output / FINISHED_FOLDER)


def files_of(folder: Path) -> list[Path]:
    """Every file of a folder and its sub-folders, in order, without a conversion's records."""
    records = folder / FINISHED_FOLDER
    return sorted(path for path in folder.rglob("*") if path.is_file() and records not in path.parents)


def flush_to_disk(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk; what is neither is left alone.

    Raises:
        OSError: the disk refuses. Some file systems can't flush a folder, which is no error.
    """
    is_folder = path.is_dir()
    if not is_folder and not path.is_file():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not is_folder:
            raise
    finally:
        os.close(descriptor)


def refuse_occupied(output: Path, what: str) -> None:
    """Raise `UserError` when `output` holds something that `what` (such as "import-hf") must not overwrite."""
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        raise UserError(
            f"{output} exists and was not finished by {what} from this input; choose another output, or delete it."
        )


def check_free_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise `UserError` unless the disk of `folder` (or of its nearest existing parent) has `needed_bytes` free."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise UserError(
            f"{what} needs {needed_bytes / 1e9:.2f} GB at {folder}, but only {free / 1e9:.2f} GB are free on that disk; "
            "free some space or choose an output on another disk."
        )


def write_model_config(checkpoint: Path, config: ModelConfig) -> None:
    """Write `run/model.json`."""
    write_json(checkpoint / MODEL_FILE, config.model_dump())


def read_model_config(checkpoint: Path) -> ModelConfig:
    """The model's shape from `run/model.json`; `UserError` where it is missing or not one."""
    path = checkpoint / MODEL_FILE
    try:
        return ModelConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not checkpoint.exists():
            raise UserError(
                f"there is no checkpoint {checkpoint}: `megatron-native import-hf` makes one from a Hugging Face folder."
            ) from None
        raise UserError(f"{checkpoint} has no {MODEL_FILE}, so it is no checkpoint of megatron-native.") from None
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(f"{path} does not describe a model ({error}); take it from another checkpoint.") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object at `path`, or None where there is none; `UserError` when it is something else."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}); restore it from another copy.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is JSON but not an object; restore it from another copy.")
    return value


def copy_run_files(source: Path, target: Path) -> None:
    """Copy what travels from one checkpoint to the next: model.json, hf/, tokenizer/, reference logits.

    With these, and `write_checksums` last, a checkpoint of training exports without the one it started from.
    """
    for name in _TRAVELLING:
        there, here = source / name, target / name
        if there.is_dir():
            shutil.copytree(there, here, dirs_exist_ok=True)
        elif there.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(there, here)


def write_lineage(target: Path, made: Mapping[str, Any], source: Path | None = None) -> None:
    """Write `run/lineage.json` of a checkpoint that no run made: that of `source`, and what was `made` of it."""
    known = (read_json(source / LINEAGE_FILE) if source is not None else None) or {}
    lineage = {"format": LINEAGE_FORMAT, "runs": known.get("runs", []), "made": [*known.get("made", []), dict(made)]}
    write_json(target / LINEAGE_FILE, lineage)


def write_checksums(checkpoint: Path, known: Mapping[str, str] | None = None) -> None:
    """Write `run/checksums.json` over every other file, as the last step of making a checkpoint.

    `known` has digests (xxh3_128, hex) of files hashed while they were written, by path relative to the checkpoint;
    the others are read.
    """
    known = known or {}
    files = {}
    for path in files_of(checkpoint):
        name = path.relative_to(checkpoint).as_posix()
        if name != CHECKSUMS_FILE:
            files[name] = {"bytes": path.stat().st_size, "xxh3_128": known.get(name) or file_digest(path)}
    write_json(checkpoint / CHECKSUMS_FILE, {"format": CHECKSUMS_FORMAT, "files": files})


def check_complete(checkpoint: Path, full: bool = False) -> None:
    """Raise `UserError`, naming the file, unless the checkpoint is all there.

    Sizes are compared; with `full` every file is read and its digest compared too.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint} is not a folder; a checkpoint is a folder with .metadata and {RUN}/ in it.")
    looks_like_one = (checkpoint / "metadata.json").exists() or (checkpoint / RUN).is_dir()
    if not looks_like_one:
        raise UserError(
            f"{checkpoint} holds no checkpoint (no metadata.json, no {RUN}/); give the folder of one, such as "
            "RUN/checkpoints/step_00000100 or what import-hf wrote."
        )
    checksums = read_json(checkpoint / CHECKSUMS_FILE)
    if checksums is None:
        raise UserError(
            f"{checkpoint} was cut short: {CHECKSUMS_FILE}, which is written last, is missing. Use an earlier checkpoint, "
            "or make this one again."
        )
    if checksums.get("format") != CHECKSUMS_FORMAT or not isinstance(checksums.get("files"), dict):
        raise UserError(
            f"{checkpoint / CHECKSUMS_FILE} is not a {CHECKSUMS_FORMAT} file; restore it from another copy."
        )
    for name, entry in checksums["files"].items():
        problem = _file_problem(checkpoint / name, entry, full)
        if problem:
            raise UserError(
                f"{checkpoint} is damaged or was cut short: {name} {problem}. Use an earlier checkpoint, copy this one "
                "again, or make it again."
            )


def _file_problem(path: Path, entry: Mapping[str, Any], full: bool) -> str | None:
    try:
        written, digest = entry["bytes"], entry["xxh3_128"]
    except (TypeError, KeyError):
        return f"has no size and digest in {CHECKSUMS_FILE}"
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    if size != written:
        return f"has {size} bytes where {written} were written"
    if full and (found := file_digest(path)) != digest:
        return f"has changed: its xxh3_128 is {found} where {digest} was written"
    return None
