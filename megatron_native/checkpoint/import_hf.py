"""Hugging Face folder → checkpoint: names and layout change, no bit of any weight does.

Weights stream block by block from safetensors into megatron-core's torch_dist format, in the dtype that they have
(`import_tensors.py`); tokenizer, configuration and the logits of fixed texts travel along. The checkpoint is built
beside its place and renamed there when whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.conversion import Conversion, check_workers, file_digests
from megatron_native.checkpoint.import_tensors import boxes_of, convert, plan_import
from megatron_native.checkpoint.model_card import base_model_record
from megatron_native.checkpoint.reference_logits import record_reference_logits
from megatron_native.checkpoint.safetensors_files import HfWeights, tensor_digest
from megatron_native.checkpoint.torch_dist import DEFAULT_FILE_BYTES, TorchDistWriter, write_metadata
from megatron_native.checkpoint.vocabulary import EMBEDDING, ExtensionSettings, carried_record, extended_folder
from megatron_native.checkpoint.vocabulary import FILE_NAME as VOCABULARY
from megatron_native.checkpoint.vocabulary import OUTPUT as TIED_OUTPUT
from megatron_native.config.model import ModelConfig
from megatron_native.errors import UserError
from megatron_native.manifest import already_done, build_manifest, file_digest, file_entry, write_json
from megatron_native.models.families import model_pieces, read_hf_config, to_model_config
from megatron_native.models.weight_map import Piece, extra_state_objects
from megatron_native.progress import progress

STAGE = "import-hf"
PACKAGES = ("torch", "megatron-core", "transformers", "safetensors")
DERIVED_SUFFIX = ".rotary_emb.inv_freq"
"""LLaMA-2's folders carry the rotary frequencies as tensors; they follow from config.json and are not converted."""


@dataclass(frozen=True)
class ImportResult:
    """What an import did."""

    checkpoint: Path
    tensors: int
    bytes: int
    skipped: bool
    """The checkpoint was there already, made from the same files."""
    not_carried: tuple[str, ...] = ()
    """Files of the Hugging Face folder that are neither weights, configuration nor tokenizer."""


def import_hf(
    hf_folder: Path,
    output: Path,
    *,
    reference_logits: bool = True,
    max_file_bytes: int | None = None,
    workers: int | None = None,
    add_tokens: ExtensionSettings | None = None,
) -> ImportResult:
    """Convert `hf_folder` to a checkpoint at `output`.

    Args:
        hf_folder: config.json, safetensors (one file or shards with an index), tokenizer files.
        output: the checkpoint's folder; it must not exist, or be the result of the same import.
        reference_logits: record logits of fixed texts by running the model through transformers, in FP32 on the CPU.
        max_file_bytes: a `.distcp` file ends before it grows past this (2 GiB); a larger tensor has one of its own.
        workers: threads, each of which converts a shard; as many as there are processors by default. The result is the
            same with any number.
        add_tokens: tokens to extend the vocabulary by (`vocabulary.py`).

    An import that was broken off is taken up again: files that are finished in `OUTPUT.partial` are kept.

    Raises:
        UserError: an unsupported or damaged folder, tensors that the model does not know or lacks, shapes or dtypes
            that don't fit, too little disk or memory, or an output that holds something else.
    """
    hf_folder, output = Path(hf_folder).absolute(), Path(output).absolute()
    workers = check_workers(workers)
    if max_file_bytes is not None and max_file_bytes <= 0:
        raise UserError(f"the size of a file is {max_file_bytes} bytes; it must be above zero.")
    if add_tokens is not None:
        with extended_folder(hf_folder, add_tokens, output) as extended:
            return import_hf(
                extended, output, reference_logits=reference_logits, max_file_bytes=max_file_bytes, workers=workers
            )
    source_config = read_hf_config(hf_folder)
    config = to_model_config(source_config)
    weights = HfWeights(hf_folder)
    pieces = model_pieces(config)
    tied_copy, derived = check_names(weights, pieces, config)
    check_dtypes(weights, pieces)
    carried = carried_files(hf_folder)
    parameters: dict[str, Any] = {"reference_logits": reference_logits}
    if max_file_bytes is not None:
        parameters["max_file_bytes"] = max_file_bytes
    sources = [*weights.files, *carried]
    total = sum(spec.bytes for spec in weights.specs.values())
    manifest_file = output / layout.MANIFEST_FILE
    if manifest_file.exists() and already_done(manifest_file, STAGE, parameters, _inputs(sources, hf_folder, workers)):
        layout.check_complete(output)
        layout.remove_records(output)
        return ImportResult(output, len(weights.specs), total, skipped=True)
    plans = plan_import(weights, pieces, max_file_bytes or DEFAULT_FILE_BYTES)
    kept = total - sum(weights.specs[name].bytes for name in derived)
    identity = _identity(parameters, sources)
    with Conversion(output, STAGE, identity, what="the checkpoint", needed_bytes=kept) as conversion:
        partial = conversion.partial
        digests, tensors, shards = convert(conversion, weights, plans, workers)
        objects = TorchDistWriter(partial, first_file=len(digests))
        for name in extra_state_objects(config):
            objects.write_object(name, None)
        objects.close()
        digests |= objects.digests
        write_metadata(partial, boxes_of(plans, pieces), objects.objects)
        records = {
            name: {"dtype": weights.specs[name].dtype, "shape": list(weights.specs[name].shape), "xxh3_128": tensors[name]}
            for piece in pieces for name in piece.hf_names
        }  # fmt: skip
        if tied_copy:
            records[TIED_OUTPUT] = dict(records[EMBEDDING])
        layout.write_model_config(partial, config)
        copy_carried_files(hf_folder, partial, carried)
        write_json(partial / layout.HF_TENSORS_FILE, {"format": layout.TENSORS_FORMAT, "tensors": records})
        write_json(partial / layout.BASE_MODEL_FILE, base_model_record(hf_folder))
        if reference_logits:
            tokenizer = partial / layout.TOKENIZER_FOLDER
            record_reference_logits(
                hf_folder,
                tokenizer if tokenizer.is_dir() else None,
                partial / layout.REFERENCE_LOGITS_FILE,
                config.vocab_size,
                config.max_position_embeddings,
            )
        inputs = [
            {"path": str(path.relative_to(hf_folder)), "bytes": path.stat().st_size, "xxh3_128": digest}
            for path, digest in zip(weights.files, shards, strict=True)
        ]
        inputs += [file_entry(path, hf_folder) for path in carried]
        outputs = [
            {"path": f"../{name}", "bytes": (partial / name).stat().st_size, "xxh3_128": digest}
            for name, digest in digests.items()
        ]
        counts = {
            "read": len(weights.specs),
            "kept": len(records),
            "dropped": {"derived rotary frequencies": len(derived)} if derived else {},
            "quarantined": {},
            "bytes": total,
        }
        manifest = build_manifest(STAGE, parameters, inputs, outputs, counts, PACKAGES)
        write_json(partial / layout.MANIFEST_FILE, manifest)
        layout.write_checksums(partial, known=digests)
        conversion.finish()
    sources_read = {path.name for path in sources}
    rest = sorted(path.name for path in hf_folder.iterdir() if path.name not in sources_read | {"source.json"})
    not_carried = tuple(
        name for name in rest if not layout.is_tokenizer_file(name) and not name.endswith(".safetensors.index.json")
    )
    return ImportResult(output, len(records), total, skipped=False, not_carried=not_carried)


def check_names(weights: HfWeights, pieces: list[Piece], config: ModelConfig) -> tuple[bool, list[str]]:
    """Compare the folder's tensors with the model's, by name and shape.

    Returns (whether a tied model carries its output layer as a copy of the embedding, derived tensors to leave out).
    Raises `UserError` naming unknown, missing or misshapen tensors.
    """
    expected = {name: shape for piece in pieces for name, shape in zip(piece.hf_names, piece.hf_shapes, strict=True)}
    derived = [name for name in weights.specs if name.endswith(DERIVED_SUFFIX)]
    unknown = sorted(weights.specs.keys() - expected.keys() - set(derived))
    tied_copy = config.tie_word_embeddings and TIED_OUTPUT in unknown
    if tied_copy:
        unknown.remove(TIED_OUTPUT)
        if tensor_digest(weights.read(TIED_OUTPUT)) != tensor_digest(weights.read(EMBEDDING)):
            raise UserError(
                f"{weights.folder}: config.json ties the embeddings (tie_word_embeddings = true), but {TIED_OUTPUT} differs "
                f"from {EMBEDDING}; one of the two statements is wrong, and choosing would change the model."
            )
    missing = sorted(expected.keys() - weights.specs.keys())
    if unknown or missing:
        raise UserError(
            f"{weights.folder} does not hold the tensors of a {config.family} model of this config.json: "
            + "; ".join(filter(None, [_listed("unknown", unknown), _listed("missing", missing)]))
            + ". Check that config.json and the weights belong together and that the download is whole."
        )
    for name, shape in expected.items():
        found = weights.specs[name].shape
        if found != shape:
            raise UserError(
                f"{weights.folder}: '{name}' has shape {list(found)}, but config.json makes it {list(shape)}; the two don't "
                "belong together."
            )
    return tied_copy, derived


def check_dtypes(weights: HfWeights, pieces: list[Piece]) -> None:
    """Raise `UserError` unless the tensors that become one global tensor share a dtype: none is ever converted."""
    first: dict[str, tuple[str, str]] = {}
    for piece in pieces:
        for name in piece.hf_names:
            dtype = weights.specs[name].dtype
            before, before_name = first.setdefault(piece.key, (dtype, name))
            if dtype != before:
                raise UserError(
                    f"{weights.folder}: '{name}' is {dtype} but '{before_name}' is {before}, and both become part of one "
                    f"tensor ({piece.key}). Save the model in one dtype: model.to(torch.bfloat16).save_pretrained(FOLDER)."
                )


def _identity(parameters: dict[str, Any], sources: list[Path]) -> dict[str, Any]:
    """What a broken-off import must agree on to be taken up again; sizes and times stand for the contents.

    Of an extended folder, which every run makes anew, the record of the new tokens counts by its contents.
    """
    states = [(path, path.stat()) for path in sources if path.name != VOCABULARY]
    return {
        "parameters": parameters,
        "sources": [[str(path), state.st_size, state.st_mtime_ns] for path, state in states],
        "vocabulary": [file_digest(path) for path in sources if path.name == VOCABULARY],
    }


def _inputs(sources: list[Path], hf_folder: Path, workers: int) -> list[dict[str, Any]]:
    """The manifest's inputs, by reading every file."""
    with progress("read source", total=sum(path.stat().st_size for path in sources), unit="B") as bar:
        digests = file_digests(sources, workers, lambda path: bar.advance(path.stat().st_size))
    return [
        {"path": str(path.relative_to(hf_folder)), "bytes": path.stat().st_size, "xxh3_128": digest}
        for path, digest in zip(sources, digests, strict=True)
    ]


def carried_files(hf_folder: Path) -> list[Path]:
    """What travels from a Hugging Face folder beside the weights, folders of templates spelled out.

    Configuration, tokenizer files, and the record of new tokens; another `vocabulary.json` is none.
    """
    names = {"config.json", layout.GENERATION_CONFIG} | ({VOCABULARY} if carried_record(hf_folder) else set())
    result: list[Path] = []
    for path in sorted(hf_folder.iterdir()):
        if path.name in names or layout.is_tokenizer_file(path.name):
            result.extend(sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path])
    return result


def copy_carried_files(hf_folder: Path, checkpoint: Path, carried: Sequence[Path]) -> None:
    """Copy what `carried_files` found to its places in a checkpoint."""
    for path in carried:
        relative = path.relative_to(hf_folder)
        folder = layout.TOKENIZER_FOLDER if layout.is_tokenizer_file(relative.parts[0]) else layout.HF_FOLDER
        target = checkpoint / folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _listed(what: str, names: list[str], shown: int = 5) -> str:
    if not names:
        return ""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{what} {', '.join(names[:shown])}{more}"
