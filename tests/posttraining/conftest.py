"""Tokenizers with chat templates of their own, small and real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.small_tokenizers import SENTENCES, write_bpe

INST = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + '</s>' }}"
    "{% else %}{{ raise_exception('no system turns here') }}{% endif %}{% endfor %}"
)
"""A template in Mistral's manner: no generation prompt, the separator ends a turn, no system turns."""
DROPS_THOUGHTS = (
    "{% for message in messages %}{% set said = message['content'] %}"
    "{% if message['role'] == 'assistant' and not loop.last and '</think>' in said %}"
    "{% set said = said.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A template that drops the thinking of earlier turns, as Qwen3's does."""
BLANK_LAST = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ': ' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
)
"""A template whose generation prompt ends with a blank, which many tokenizers join with the word after it."""
NO_PROMPT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
"""A template that forgets the generation prompt."""


@pytest.fixture(scope="session")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's manner, without a template."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return write_bpe(tmp_path_factory.mktemp("chatml"), specials, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaMA-3's manner, without a template."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return write_bpe(
        tmp_path_factory.mktemp("llama3"), specials, "<|begin_of_text|>", bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
    )  # fmt: skip


@pytest.fixture(scope="session")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaMA-2's manner: blanks as signs of the word after them, one before every text; Mistral's template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("metaspace")
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(SENTENCES * 3, trainers.BpeTrainer(vocab_size=800, special_tokens=specials))
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": INST,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def inst(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mistral's manner, with the template."""
    return write_bpe(tmp_path_factory.mktemp("inst"), ["<s>", "</s>"], eos_token="</s>", chat_template=INST)
