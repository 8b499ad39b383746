import json
import math

import numpy as np
import pytest

from megatron_native.data.heldout import cut_windows, heldout_windows
from megatron_native.data.tokenizers import load_tokenizer
from megatron_native.errors import UserError
from tests.data.small_tokenizers import SENTENCES

TEXTS = [*SENTENCES, "a", "نص قصير", "نص فيه <|endoftext|> مكتوب", " ".join(SENTENCES * 3)]


@pytest.fixture(params=["smollm", "llama3"])
def tokenizer(request):
    return load_tokenizer("HuggingFaceTokenizer", request.getfixturevalue(request.param))


@pytest.mark.parametrize("seq_length", [1, 7, 64, 4096])
def test_every_token_of_every_text_is_predicted_once_and_nothing_else(tokenizer, seq_length):
    windows = cut_windows(TEXTS, tokenizer, seq_length)
    expected = [int(index) for text in TEXTS for index in tokenizer.encode(text)]
    assert windows.labels[windows.loss_mask == 1].tolist() == expected
    assert windows.token_count == len(expected)
    assert windows.text_bytes == sum(len(text.encode("utf-8")) for text in TEXTS)
    assert tokenizer.eod_id not in windows.labels[windows.loss_mask == 1]


def test_windows_start_from_the_begin_token_and_go_on_from_the_last_token(tokenizer):
    text = SENTENCES[0]
    ids = tokenizer.encode(text).tolist()
    start = tokenizer.eod_id if tokenizer.bos_id is None else tokenizer.bos_id
    windows = cut_windows([text], tokenizer, 8)
    assert windows.tokens[0].tolist() == [start, *ids[:7]]
    assert windows.labels[0].tolist() == ids[:8]
    assert windows.tokens[1][0] == ids[7]
    assert len(windows.tokens) == math.ceil(len(ids) / 8)


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_an_overlap_gives_context_and_still_counts_every_token_once(tokenizer, stride):
    windows = cut_windows(TEXTS, tokenizer, 8, stride=stride)
    expected = [int(index) for text in TEXTS for index in tokenizer.encode(text)]
    assert windows.labels[windows.loss_mask == 1].tolist() == expected


def test_bits_per_byte_of_a_uniform_model_is_its_known_value(tokenizer):
    windows = cut_windows(TEXTS, tokenizer, 16)
    loss = windows.token_count * math.log(256)  # a model for which every token is one of 256
    assert windows.bits_per_byte(loss) == pytest.approx(8 * windows.token_count / windows.text_bytes)


def test_documents_come_from_shards(tokenizer, tmp_path):
    path = tmp_path / "ar.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    from_file = heldout_windows([path], tokenizer, 16)
    assert np.array_equal(from_file.tokens, cut_windows(TEXTS, tokenizer, 16).tokens)
    assert heldout_windows([path], tokenizer, 16, max_documents=2).documents == 2


def test_a_damaged_heldout_file_is_refused_and_named(tokenizer, tmp_path):
    path = tmp_path / "ar.jsonl"
    path.write_text('{"id": "1", "text": "نص"}\n{"id": "2", "te')
    with pytest.raises(UserError, match=r"ar\.jsonl"):
        heldout_windows([path], tokenizer, 16)
    path.write_text('{"id": "1", "text": ""}\n')
    with pytest.raises(UserError, match="no text to predict"):
        heldout_windows([path], tokenizer, 16)
    with pytest.raises(UserError, match="stride is 17"):
        cut_windows(TEXTS, tokenizer, 16, stride=17)
