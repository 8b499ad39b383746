"""Logits of a checkpoint through megatron-core itself, on one process: what conversion is checked against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from megatron_native.checkpoint import layout
from megatron_native.config.megatron import has_transformer_engine, megatron_configs, resolve_layer_spec
from megatron_native.config.run import BlendEntry, DataSection, ModelSection, RunConfig, TrainingSection
from megatron_native.models.gpt import build_language_model
from megatron_native.platform import Platform
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
