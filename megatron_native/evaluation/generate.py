"""Text from a model: a Hugging Face folder, or a checkpoint whose tensors are put into a Hugging Face model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.export_hf import CheckpointWeights
from megatron_native.data.tokenizers import load_tokenizer
from megatron_native.errors import UserError
from megatron_native.models.families import export_config


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen."""

    max_new_tokens: int = 60
    min_new_tokens: int = 0
    """The text does not end before this many."""
    temperature: float = 0.0
    """0 takes the likeliest token; above it, tokens are drawn."""
    top_p: float = 0.95
    """Draw among the likeliest tokens that have this probability together."""
    repetition_penalty: float = 1.0
    seed: int = 1234


def generate(source: Path, prompts: Sequence[str], settings: SamplingSettings) -> list[str]:
    """The continuation of each prompt, without the prompt; plain text, no chat template.

    Raises:
        UserError: `source` is neither a Hugging Face folder nor a checkpoint, or has no tokenizer.
    """
    from megatron_native.platform.quiet import silence_libraries

    silence_libraries()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer, separator = _load(source)
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) | {separator}
    model.eval()
    if torch.cuda.is_available():
        model.to("cuda")
    torch.manual_seed(settings.seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
    texts = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        if inputs["input_ids"].shape[1] == 0:
            raise UserError("the prompt is empty; give some text to continue.")
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=settings.max_new_tokens, min_new_tokens=settings.min_new_tokens or None,
                repetition_penalty=settings.repetition_penalty, pad_token_id=tokenizer.pad_token_id or separator,
                eos_token_id=sorted(end for end in ends if end is not None), **sampling,
            )  # fmt: skip
        texts.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def _load(source: Path) -> tuple[Any, Any, int | None]:
    """Model, tokenizer, and the token that ends a document in pre-training (an Instruct model's own end is another)."""
    import transformers

    source = Path(source)
    if (source / layout.MODEL_FILE).is_file():
        tokenizer_folder, model = source / layout.TOKENIZER_FOLDER, _model_of_checkpoint(source)
    elif (source / "config.json").is_file():
        tokenizer_folder = source
        model = transformers.AutoModelForCausalLM.from_pretrained(source, local_files_only=True, dtype="auto")
    else:
        raise UserError(
            f"{source} is neither a Hugging Face folder (config.json) nor a checkpoint ({layout.MODEL_FILE}): give one of them."
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{tokenizer_folder} has no tokenizer that loads ({' '.join(str(error).split())}).") from None
    try:
        separator: int | None = load_tokenizer("HuggingFaceTokenizer", tokenizer_folder).eod_id
    except UserError:  # no known separator: the model's own end of text has to do
        separator = None
    return model, tokenizer, separator


def _model_of_checkpoint(checkpoint: Path) -> Any:
    """A transformers model with the checkpoint's tensors, read one after another."""
    import transformers

    weights = CheckpointWeights(checkpoint)
    first = weights.pieces[0]
    dtype = weights.natural_dtype(first.hf_names[0], first)
    described = export_config(weights.hf_config, weights.config, str(dtype).removeprefix("torch."))
    config = transformers.AutoConfig.for_model(**described)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    parameters = model.state_dict()
    with torch.no_grad():
        for piece in weights.pieces:
            for name, tensor in zip(piece.hf_names, weights.read(piece), strict=True):
                parameters[name].copy_(tensor)
    return model
