"""megatron-core's GPTModel, built for a model's shape, a layout and this process's place in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_native.config.megatron import LayerSpec
from megatron_native.config.model import ModelConfig
from megatron_native.models.rope import inverse_frequencies
from megatron_native.models.specs import block_spec

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


class LogitObserver(Protocol):
    """Something that looks at logits as they pass."""

    def observe(self, logits: Tensor, padded_columns: int) -> None:
        """Logits [s, b, vocabulary / TP] of one micro-batch, whose last `padded_columns` columns have no token."""
        ...


class LanguageModel(GPTModel):
    """GPTModel whose rows of vocabulary padding never take part in the softmax.

    Tensor parallelism wants the vocabulary to divide evenly. Rows that padding adds have no token; left in the softmax
    they would change every probability with the layout.
    """

    unpadded_vocab_size: int
    logit_observer: LogitObserver | None = None
    """Sees the logits of training's forward passes while it is set."""

    def _padded_columns(self, logits: Tensor) -> int:
        """How many of this process's last columns of `logits` [s, b, vocabulary / TP] are padding."""
        partition = logits.shape[-1]
        end = (parallel_state.get_tensor_model_parallel_rank() + 1) * partition
        return min(partition, max(0, end - self.unpadded_vocab_size))

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy per token [b, s] of `logits` [s, b, vocabulary / TP], padding excluded."""
        padded = self._padded_columns(logits)
        if self.logit_observer is not None and self.training:
            self.logit_observer.observe(logits, padded)
        if padded:
            mask = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            mask[logits.shape[-1] - padded :] = True
            logits = logits.masked_fill(mask, torch.finfo(logits.dtype).min)
        return super().compute_language_model_loss(labels, logits)


def padded_vocab_size(vocab_size: int, tensor_model_parallel_size: int) -> int:
    """`vocab_size` rounded up to what tensor parallelism divides; no more padding than that."""
    return math.ceil(vocab_size / tensor_model_parallel_size) * tensor_model_parallel_size


def build_language_model(
    config: TransformerConfig,
    model: ModelConfig,
    layer_spec: LayerSpec,
    max_sequence_length: int,
    vp_stage: int | None = None,
    middle: bool = False,
) -> LanguageModel:
    """One model chunk: this process's pipeline stage, or its `vp_stage`-th virtual stage.

    Parallel state must be initialised. Weights are random; a checkpoint fills them afterwards. With `middle` the chunk
    has neither embedding nor output layer, wherever it stands.
    """
    language_model = LanguageModel(
        config=config,
        transformer_layer_spec=block_spec(config, layer_spec, vp_stage),
        vocab_size=padded_vocab_size(model.vocab_size, config.tensor_model_parallel_size),
        max_sequence_length=max_sequence_length,
        pre_process=not middle and parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=not middle and parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        parallel_output=True,
        share_embeddings_and_output_weights=model.tie_word_embeddings,
        position_embedding_type="rope",
        rotary_base=int(model.rotary_base),
        vp_stage=vp_stage,
    )
    language_model.unpadded_vocab_size = model.vocab_size
    set_rotary_frequencies(language_model, model)
    return language_model


def set_rotary_frequencies(language_model: LanguageModel, model: ModelConfig) -> None:
    """Give a model chunk the rotary frequencies of a configuration, scaled or not.

    megatron-core hard-codes LLaMA-3.1's scaling factors, so the configuration's own are put in their place; and it keeps
    the angles of the lengths that it has met, which are forgotten here.
    """
    rotary: Any = language_model.rotary_pos_emb
    rotary.inv_freq = inverse_frequencies(model).to(rotary.inv_freq)
    type(rotary).forward.cache_clear()


def build_model_chunks(
    config: TransformerConfig, model: ModelConfig, layer_spec: LayerSpec, max_sequence_length: int
) -> list[LanguageModel]:
    """Every model chunk of this process: one, or one per virtual pipeline stage."""
    virtual = config.virtual_pipeline_model_parallel_size
    stages: list[int | None] = list(range(virtual)) if virtual else [None]
    return [build_language_model(config, model, layer_spec, max_sequence_length, stage) for stage in stages]
