"""Does a Hugging Face folder hold exactly what a checkpoint holds? Names, shapes, dtypes, bits, then logits.

Tensors are compared one by one by the digest of their bytes, with only one piece of the model in memory. Logits of the
folder, computed by transformers in FP32 on the CPU, are compared with those recorded at import; they are judged only
where the weights are still the imported ones, since training changes them on purpose. On request the checkpoint is run
through megatron-core too and compared with the folder under transformers, which holds at any step of training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.export_hf import CheckpointWeights
from megatron_native.checkpoint.import_hf import DERIVED_SUFFIX
from megatron_native.checkpoint.layerwise import LayerDifference
from megatron_native.checkpoint.reference_logits import (
    LogitComparison,
    compare_logits,
    load_reference_logits,
    run_transformers,
)
from megatron_native.checkpoint.safetensors_files import DTYPE_NAMES, DTYPES, HfWeights, tensor_digest
from megatron_native.checkpoint.vocabulary import ROW_TENSORS, AddedVocabulary, read_added_vocabulary
from megatron_native.manifest import json_value, software_versions
from megatron_native.models.families import read_hf_config, to_model_config
from megatron_native.progress import progress

LOGIT_TOLERANCE = 1e-3
"""Largest |Δ| of an unchanged model's FP32 logits: the same code on the same weights, on another machine or version."""
HIDDEN_TOLERANCE = 1e-4
"""Relative difference of hidden states in FP32 above which two models are said to have parted."""
REPORT_FORMAT = "megatron-native/verification/1"
_PACKAGES = ("megatron-core", "safetensors", "torch", "transformers")


@dataclass
class Verification:
    """What a comparison found; `passed` is the verdict."""

    checkpoint: str
    folder: str
    tensors: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    """Tensors that the checkpoint has and the folder lacks."""
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    """Tensors whose shapes differ."""
    converted: dict[str, int] = field(default_factory=dict)
    """Dtype changes on the way ("F32 → BF16") with the number of tensors; compared after that conversion."""
    different: list[str] = field(default_factory=list)
    """Tensors whose bits differ."""
    settings: list[str] = field(default_factory=list)
    """Fields of the model's shape in which config.json and the checkpoint differ."""
    unchanged_since_import: bool = False
    """Every tensor has the digest recorded at import."""
    logits: LogitComparison | None = None
    logits_note: str = ""
    megatron_logits: LogitComparison | None = None
    """The checkpoint under megatron-core against the folder under transformers."""
    megatron_layers: list[LayerDifference] = field(default_factory=list)
    """Their hidden states after each layer, where they were run layer by layer."""
    megatron_note: str = ""
    new_rows: str = ""
    """Rows of tokens that the import added; against the folder without them, the old rows are compared."""

    @property
    def weights_equal(self) -> bool:
        """Whether names, shapes and bits agree."""
        return not (self.missing or self.unexpected or self.shapes or self.different)

    @property
    def passed(self) -> bool:
        """Weights and settings agree, an unchanged model's logits are the recorded ones, and megatron-core's transformers'."""
        logits_ok = (
            self.logits is None
            or not self.unchanged_since_import
            or (self.logits.max_abs_difference <= LOGIT_TOLERANCE and self.logits.top1_agreement == 1.0)
        )
        megatron_ok = self.megatron_logits is None or self.megatron_logits.max_abs_difference <= LOGIT_TOLERANCE
        return self.weights_equal and not self.settings and logits_ok and megatron_ok

    @property
    def parted_after(self) -> int | None:
        """The first layer after which hidden states differ by more than `HIDDEN_TOLERANCE`; 0 is the embedding."""
        beyond = (found.layer for found in self.megatron_layers if found.relative_difference > HIDDEN_TOLERANCE)
        return next(beyond, None)

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and `--report`: the findings, the verdict, and the versions that came to it."""
        findings = {**asdict(self), "weights_equal": self.weights_equal, "passed": self.passed}
        return {
            "format": REPORT_FORMAT,
            **json_value(findings),
            "versions": software_versions(_PACKAGES),
        }


def verify_hf(
    checkpoint: Path,
    hf_folder: Path,
    *,
    logits: bool = True,
    megatron: bool = False,
    layer_by_layer: bool | None = None,
) -> Verification:
    """Compare `checkpoint` with `hf_folder`, and the folder's logits with the recorded ones.

    Args:
        checkpoint: any complete checkpoint, imported or trained.
        hf_folder: the Hugging Face folder that should hold the same.
        logits: compute the folder's logits under transformers and compare them with those recorded at import.
        megatron: also run the checkpoint through megatron-core and compare its logits with the folder's.
        layer_by_layer: one layer in memory at a time; by default where memory does not suffice for the whole model.

    Raises `UserError` for a damaged checkpoint or folder; differences are not errors but findings.
    """
    weights = CheckpointWeights(Path(checkpoint), full_check=True)
    found = HfWeights(Path(hf_folder))
    result = Verification(str(checkpoint), str(hf_folder))
    shape = to_model_config(read_hf_config(Path(hf_folder))).model_dump()
    added = read_added_vocabulary(Path(checkpoint))
    from_base = added is not None and added.is_base(Path(hf_folder), shape["vocab_size"])
    if added is not None:
        result.new_rows = added.described
    result.settings = [
        f"{name}: {value!r} in run/model.json, {shape[name]!r} in config.json"
        for name, value in weights.config.model_dump().items()
        if shape[name] != value and not (from_base and name == "vocab_size")
    ]
    _compare_weights(weights, found, result, added if from_base else None)
    references = Path(checkpoint) / layout.REFERENCE_LOGITS_FILE
    if not references.exists():
        result.logits_note = "none were recorded at import"
    elif from_base:
        result.logits_note = "not compared: those recorded are of the extended model"
    elif logits and result.weights_equal:
        texts = load_reference_logits(references)
        inputs = {text.name: text.ids for text in texts}
        result.logits = compare_logits(texts, run_transformers(Path(hf_folder), inputs, layer_by_layer))
        if not result.unchanged_since_import:
            result.logits_note = "the weights are no longer the imported ones: shown, not judged"
    else:
        result.logits_note = "not compared: the weights differ" if logits else "not asked for"
    if megatron and (result.missing or result.shapes):
        result.megatron_note = "not compared: the folder is not a whole model of this shape"
    elif megatron and from_base:
        result.megatron_note = "not compared: the folder is the model before its new tokens"
    elif megatron:
        from megatron_native.training.forward import compare_with_transformers

        result.megatron_logits, result.megatron_layers = compare_with_transformers(
            Path(checkpoint), Path(hf_folder), layer_by_layer
        )
    return result


def _compare_weights(
    weights: CheckpointWeights, found: HfWeights, result: Verification, added: AddedVocabulary | None
) -> None:
    expected = {name for piece in weights.pieces for name in piece.hf_names}
    result.missing = sorted(expected - found.specs.keys())
    result.unexpected = sorted(name for name in found.specs.keys() - expected if not name.endswith(DERIVED_SUFFIX))
    imported = bool(weights.imported)
    with progress("verify", total=sum(spec.bytes for spec in found.specs.values()), unit="B") as bar:
        for piece in weights.pieces:
            stored = DTYPE_NAMES[weights.stored_dtype(piece)]
            for name, shape, tensor in zip(piece.hf_names, piece.hf_shapes, weights.read(piece), strict=True):
                if name not in found.specs:
                    continue
                spec = found.specs[name]
                result.tensors += 1
                result.bytes += spec.bytes
                bar.advance(spec.bytes)
                theirs = found.read(name)
                if added is not None and name in ROW_TENSORS:
                    shape, tensor, theirs = spec.shape, added.old_rows(tensor), added.old_rows(theirs)
                if spec.shape != shape:
                    result.shapes.append(f"{name}: {list(shape)} in the checkpoint, {list(spec.shape)} in the folder")
                    continue
                if spec.dtype != stored:
                    change = f"{stored} → {spec.dtype}"
                    result.converted[change] = result.converted.get(change, 0) + 1
                digest = tensor_digest(theirs)
                if digest != tensor_digest(tensor.to(DTYPES[spec.dtype])):
                    result.different.append(name)
                imported = imported and weights.imported.get(name, {}).get("xxh3_128") == digest
    result.unchanged_since_import = imported and result.weights_equal
