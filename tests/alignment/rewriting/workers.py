"""A worker for tests: a tiny random Llama with a byte-level tokenizer and a chat template; and a short code of conduct."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_native.alignment.conduct import load_conduct
from megatron_native.alignment.prompts import render_rewriting
from tests.alignment.rewriting.jobs import SENTENCES

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHORT = """\
title: {ar: مدونة قصيرة, en: A short code}
purpose: {ar: لاختبار البرنامج., en: To test the program.}
principles:
  knowledge:
    severity: primary
    title: {ar: حفظ المعرفة, en: Keep knowledge}
    rule: {ar: لا تحذف معلومة., en: Drop no fact.}
    rationale: {ar: المعرفة أولًا., en: Knowledge comes first.}
instructions:
  unchanged: {ar: أعد النص السليم كما هو., en: Return a sound text as it is.}
"""


def write_conduct(path: Path) -> Path:
    """A code of conduct whose prompt is short."""
    path.write_text(SHORT, encoding="utf-8")
    return path


def write_worker(folder: Path, positions: int = 8192) -> Path:
    """A Hugging Face folder with a model of some 100,000 random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    messages = render_rewriting(load_conduct("general"), SENTENCES[0])
    tokenizer.train_from_iterator([*SENTENCES, *(message["content"] for message in messages)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = TEMPLATE
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, bos_token_id=fast.convert_tokens_to_ids("<|im_start|>"),
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "llama"
    return folder
