"""Tokenizers with chat templates of their own, small and real."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.small_tokenizers import write_bpe

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
def inst(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mistral's manner, with the template."""
    return write_bpe(tmp_path_factory.mktemp("inst"), ["<s>", "</s>"], eos_token="</s>", chat_template=INST)
