"""Logits of a checkpoint through megatron-core itself, on one process: what conversion is checked against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.reference_logits import LogitComparison, load_reference_logits, run_transformers
from megatron_native.config.megatron import has_transformer_engine, megatron_configs, resolve_layer_spec
from megatron_native.config.run import BlendEntry, DataSection, ModelSection, RunConfig, TrainingSection
from megatron_native.errors import UserError
from megatron_native.models.gpt import build_language_model
from megatron_native.platform import Platform, start_platform, stop_platform
from megatron_native.training.checkpoints import load_model_weights
from megatron_native.training.model import initialize_parallel_state


def checkpoint_logits(
    checkpoint: Path, sequences: Sequence[Sequence[int]], platform: Platform, precision: Literal["fp32", "bf16"] = "fp32"
) -> list[Tensor]:
    """Logits of the checkpoint's model for each sequence of ids, as megatron-core computes them.

    Needs a platform of one process. Parallel state is initialised here.

    Returns:
        One float32 tensor [length, vocab_size] a sequence, on the CPU.
    """
    model_config = layout.read_model_config(checkpoint)
    run = RunConfig(
        run_dir=checkpoint,
        model=ModelSection(checkpoint=checkpoint),
        data=DataSection(blend=[BlendEntry(prefix=checkpoint)], seq_length=max(len(ids) for ids in sequences)),
        training=TrainingSection(steps=1, global_batch_size=1, precision=precision),
    )
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


def compare_with_transformers(checkpoint: Path, hf_folder: Path) -> LogitComparison:
    """Logits of a checkpoint's megatron-core model against a Hugging Face folder's under transformers.

    Both in FP32, on the fixed Arabic and English texts recorded in the checkpoint at import.

    Raises:
        UserError: the checkpoint has no recorded texts.
    """
    path = checkpoint / layout.REFERENCE_LOGITS_FILE
    if not path.is_file():
        raise UserError(f"{checkpoint} has no {layout.REFERENCE_LOGITS_FILE}: import the model with reference logits.")
    inputs = {text.name: text.ids for text in load_reference_logits(path)}
    by_transformers = run_transformers(hf_folder, inputs)
    platform = start_platform("auto")
    try:
        logits = checkpoint_logits(checkpoint, [ids.tolist() for ids in inputs.values()], platform)
    finally:
        stop_platform()
    return compare_full_logits(by_transformers, dict(zip(inputs, logits)))


def compare_full_logits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> LogitComparison:
    """Compare logits [length, vocab_size] text by text, at every position."""
    largest, divergence, agreed, positions = 0.0, 0.0, 0, 0
    for name, reference in expected.items():
        new = found[name]
        largest = max(largest, float((new - reference).abs().max()))
        log_expected, log_new = reference.double().log_softmax(-1), new.double().log_softmax(-1)
        divergence += float((log_expected.exp() * (log_expected - log_new)).sum())
        agreed += int((new.argmax(-1) == reference.argmax(-1)).sum())
        positions += len(reference)
    return LogitComparison(largest, max(0.0, divergence / positions), agreed / positions, positions)
