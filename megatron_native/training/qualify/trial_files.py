"""The files of the ladder's runs: random weights as a Hugging Face folder, their import, random tokens."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.config.model import ModelConfig
from megatron_native.data.indexed import IndexedWriter
from megatron_native.models.families import to_hf_config
from megatron_native.platform import Platform

_SPREAD = 3.0
"""Standard deviation that the logits have, about; the import gate's tolerances are for 3 to 6."""


def make_trial_files(folder: Path, model: ModelConfig, dtype: torch.dtype, tokens: int, platform: Platform) -> None:
    """Write `hf/`, `checkpoint/` and `tokens.bin/.idx` to `folder`, once for all ranks. Collective.

    Args:
        folder: an empty folder that all ranks see.
        model: the slice's shape.
        dtype: of the weights.
        tokens: how many random tokens, at least.
        platform: this process's place.
    """
    problem: list[str | None] = [None]
    if platform.is_main:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                write_random_hf(folder / "hf", model, dtype)
                import_hf(folder / "hf", folder / "checkpoint")
                write_tokens(folder / "tokens", model.vocab_size, tokens)
        except Exception as error:
            problem = [f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise RuntimeError(f"the files of the ladder could not be made: {problem[0]}")


@torch.no_grad()
def write_random_hf(folder: Path, model: ModelConfig, dtype: torch.dtype, seed: int = 1) -> None:
    """A Hugging Face folder of the shape `model` with random weights, norms and biases among them.

    Norms and biases are random too, so that one in another's place shows; matrices keep the size of what they multiply.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_hf_config(model), indent=2), encoding="utf-8")
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    network.to_empty(device="cpu")
    network.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
        elif "embed" in name and not model.tie_word_embeddings:
            parameter.normal_(0.0, 1.0, generator=generator)
        else:
            spread = _SPREAD if "embed" in name or "lm_head" in name else 1.0
            parameter.normal_(0.0, spread / math.sqrt(parameter.shape[1]), generator=generator)
    network.save_pretrained(folder)


def write_tokens(prefix: Path, vocab_size: int, tokens: int, seed: int = 2) -> None:
    """A dataset of documents of 5 to 200 random ids, `tokens` or a few more in all."""
    generator = np.random.default_rng(seed)
    dtype = np.uint16 if vocab_size < 65500 else np.int32
    written = 0
    with IndexedWriter(prefix, dtype) as writer:
        while written < tokens:
            length = int(generator.integers(5, 200))
            writer.add_document(generator.integers(0, vocab_size, length).astype(dtype))
            written += length
