import json
import math

import numpy as np
import pytest

from megatron_native.data.heldout import WINDOW_MULTIPLE, conversation_windows, cut_windows, heldout_windows
from megatron_native.data.indexed import IndexedWriter
from megatron_native.data.tokenizers import load_tokenizer
from megatron_native.errors import UserError
from tests.data.planted_datasets import documents, write_dataset, write_manifest
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


CONVERSATIONS = [([5, 6, 7, 8], [0, 0, 1, 1]), ([9, 10, 11, 12, 13, 14], [0, 1, 1, 0, 0, 1]), ([3, 4], [0, 1])]


def masked_dataset(prefix, conversations=CONVERSATIONS):
    with IndexedWriter(prefix, np.uint16, masked=True) as writer:
        for ids, learned in conversations:
            writer.add_document(np.array(ids), learned=np.array(learned, np.uint8))
    return prefix


def test_conversations_are_a_window_each_and_their_answers_are_predicted(tokenizer, tmp_path):
    windows = conversation_windows(masked_dataset(tmp_path / "c"), tokenizer, 128)
    assert windows.tokens.shape == (3, WINDOW_MULTIPLE)
    assert windows.tokens[1, :6].tolist() == [9, 10, 11, 12, 13, 0]
    assert windows.labels[1, :6].tolist() == [10, 11, 12, 13, 14, 0]
    assert [labels[mask == 1].tolist() for labels, mask in zip(windows.labels, windows.loss_mask)] == [
        [7, 8], [10, 11, 14], [4],
    ]  # fmt: skip
    assert (windows.token_count, windows.documents) == (6, 3)


def test_bytes_of_conversations_are_those_of_the_answers(tokenizer, tmp_path):
    end = tokenizer.token_id(tokenizer.special_tokens()[-1])
    answers = ["ذهب الطالب إلى المدرسة.", "The committee agreed.", "نعم"]
    conversations = []
    for answer in answers:
        question, said = tokenizer.encode("ما هو؟").tolist(), tokenizer.encode(answer).tolist()
        conversations.append(([*question, end, *said, end], [0] * (len(question) + 1) + [1] * (len(said) + 1)))
    windows = conversation_windows(masked_dataset(tmp_path / "c", conversations), tokenizer, 128)
    assert windows.text_bytes == sum(len(answer.encode()) for answer in answers)
    assert windows.token_count == sum(len(tokenizer.encode(answer)) + 1 for answer in answers), "with the ends of turns"


def test_what_can_not_be_held_out_conversations_is_said(tokenizer, tmp_path):
    plain = write_dataset(tmp_path / "plain", documents(9, 8))
    with pytest.raises(UserError, match=r"there is no plain\.mask"):
        conversation_windows(plain, tokenizer, 64)
    with pytest.raises(UserError, match="one has 6 tokens, and a sequence of the run has 5"):
        conversation_windows(masked_dataset(tmp_path / "c"), tokenizer, 5)
    nothing = masked_dataset(tmp_path / "n", [([5, 6], [0, 0])])
    with pytest.raises(UserError, match="names no token of an answer"):
        conversation_windows(nothing, tokenizer, 64)
    texts = documents(9)
    write_manifest(write_dataset(tmp_path / "other", texts), texts)
    (tmp_path / "other.mask").write_bytes(bytes([1] * 9))
    with pytest.raises(UserError, match="prepared with another tokenizer"):
        conversation_windows(tmp_path / "other", tokenizer, 64)
    with pytest.raises(UserError, match=r"nowhere\.idx is not there"):
        conversation_windows(tmp_path / "nowhere", tokenizer, 64)
