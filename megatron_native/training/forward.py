"""Logits of a checkpoint through megatron-core itself, on one process: what conversion is checked against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.layerwise import LayerDifference, TransformersLayers, compare_layers
from megatron_native.checkpoint.reference_logits import (
    LogitComparison,
    compare_full_logits,
    fits_in_memory,
    load_reference_logits,
    reference_inputs,
    run_transformers,
)
from megatron_native.config.megatron import has_transformer_engine, megatron_configs, resolve_layer_spec
from megatron_native.config.run import BlendEntry, DataSection, ModelSection, RunConfig, TrainingSection
from megatron_native.models.gpt import build_language_model
from megatron_native.platform import Platform, start_platform, stop_platform
from megatron_native.training.checkpoints import load_model_weights
from megatron_native.training.layers import MegatronLayers
from megatron_native.training.model import initialize_parallel_state

Precision = Literal["fp32", "bf16"]


def checkpoint_logits(
    checkpoint: Path, sequences: Sequence[Sequence[int]], platform: Platform, precision: Precision = "fp32"
) -> list[Tensor]:
    """Logits of the checkpoint's model for each sequence of ids, as megatron-core computes them.

    Needs a platform of one process. Parallel state is initialised here.

    Returns:
        One float32 tensor [length, vocab_size] a sequence, on the CPU.
    """
    model_config = layout.read_model_config(checkpoint)
    run = _run_of(checkpoint, max(len(ids) for ids in sequences), precision)
    initialize_parallel_state(run)
    spec = resolve_layer_spec(run, platform.name, has_transformer_engine())
    configs = megatron_configs(run, model_config, platform.name, spec)
    model = build_language_model(configs.transformer, model_config, configs.layer_spec, run.data.seq_length)
    model.to(platform.device).eval()
    load_model_weights(checkpoint, [model])
    results = []
    with torch.no_grad():
        for ids in sequences:
            tokens = torch.tensor([list(ids)], device=platform.device)
            positions = torch.arange(tokens.shape[1], device=platform.device)[None]
            logits = model(tokens, positions, None)
            results.append(logits[0, :, : model_config.vocab_size].float().cpu())
    return results


def checkpoint_layers(
    checkpoint: Path, length: int, platform: Platform, precision: Precision = "fp32"
) -> MegatronLayers:
    """The checkpoint's model one layer at a time, for sequences of up to `length` ids.

    Needs a platform of one process. Parallel state is initialised here.
    """
    run = _run_of(checkpoint, length, precision)
    initialize_parallel_state(run)
    return MegatronLayers(checkpoint, run, platform)


def _run_of(checkpoint: Path, length: int, precision: Precision) -> RunConfig:
    return RunConfig(
        run_dir=checkpoint,
        model=ModelSection(checkpoint=checkpoint),
        data=DataSection(blend=[BlendEntry(prefix=checkpoint)], seq_length=length),
        training=TrainingSection(steps=1, global_batch_size=1, precision=precision),
    )


def compare_with_transformers(
    checkpoint: Path, hf_folder: Path, layer_by_layer: bool | None = None
) -> tuple[LogitComparison, list[LayerDifference]]:
    """Logits of a checkpoint's megatron-core model against a Hugging Face folder's under transformers.

    Both in FP32, on the fixed Arabic and English texts.

    Args:
        checkpoint: any complete checkpoint.
        hf_folder: the Hugging Face folder that should be the same model.
        layer_by_layer: one layer in memory at a time; by default where memory does not suffice for the whole model.

    Returns:
        How the logits compare, and, layer by layer only, how the hidden states do after each layer.
    """
    inputs = _texts_of(checkpoint)
    if layer_by_layer is None:
        layer_by_layer = not fits_in_memory(hf_folder)
    expected = None if layer_by_layer else run_transformers(hf_folder, inputs, layer_by_layer=False)
    platform = start_platform("auto")
    try:
        if expected is None:
            length = max(len(ids) for ids in inputs.values())
            return compare_layers(
                TransformersLayers(hf_folder), checkpoint_layers(checkpoint, length, platform), inputs
            )
        logits = checkpoint_logits(checkpoint, [ids.tolist() for ids in inputs.values()], platform)
    finally:
        stop_platform()
    return compare_full_logits(expected, dict(zip(inputs, logits))), []


def _texts_of(checkpoint: Path) -> dict[str, Tensor]:
    """Ids of the texts recorded in a checkpoint at import, or else of the same texts by its tokenizer."""
    path = checkpoint / layout.REFERENCE_LOGITS_FILE
    if path.is_file():
        return {text.name: text.ids for text in load_reference_logits(path)}
    config, tokenizer = layout.read_model_config(checkpoint), checkpoint / layout.TOKENIZER_FOLDER
    return reference_inputs(
        tokenizer if tokenizer.is_dir() else None, config.vocab_size, config.max_position_embeddings
    )
