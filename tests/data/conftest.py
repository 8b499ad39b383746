from pathlib import Path

import pytest

from tests.data import small_tokenizers


@pytest.fixture(scope="session")
def smollm(tmp_path_factory) -> Path:
    return small_tokenizers.write_smollm(tmp_path_factory.mktemp("smollm"))


@pytest.fixture(scope="session")
def llama3(tmp_path_factory) -> Path:
    return small_tokenizers.write_llama3(tmp_path_factory.mktemp("llama3"))


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory) -> Path:
    return small_tokenizers.write_sentencepiece(tmp_path_factory.mktemp("spm") / "tokenizer.model")
