"""What a part's account says, against counting one document at a time."""

import json

import numpy as np
import pytest

from megatron_native.data.encode_part import TokenizeSettings, encode_part
from megatron_native.data.indexed import IndexedTokens
from megatron_native.documents.parts import plan_parts

TEXTS = [
    "كتاب <|endoftext|> جديد",
    "",
    "ascii only",
    "بين الوثيقتين <|endof",  # joined with the next one, a spelling that stands in neither
    "text|> تمام",
    "🙂 طيب 𐰀 中 é",
    "<|im_end|><|im_end|>",
    "ـ",
]


def part_of(tmp_path, texts):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)))
    (part,) = plan_parts([path], tmp_path.resolve())
    return part


@pytest.mark.parametrize("kind", ["smollm", "llama3"])
@pytest.mark.parametrize("append_eod", [True, False])
@pytest.mark.parametrize("language", ["", "arabic"])
def test_a_part_is_what_its_documents_are_one_by_one(kind, append_eod, language, tmp_path, request):
    if language:
        pytest.importorskip("nltk")
    folder = str(request.getfixturevalue(kind))
    settings = TokenizeSettings("HuggingFaceTokenizer", folder, append_eod=append_eod, split_sentences=language)
    tokenizer = settings.load_tokenizer()
    account = encode_part(part_of(tmp_path, TEXTS), tmp_path / "out", tokenizer, settings)
    dataset = IndexedTokens(tmp_path / "out")
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    end = [tokenizer.eod_id] if append_eod else []
    kept = [text for text in TEXTS if text]
    expected = [begin + tokenizer.encode_batch_by_reference([text])[0].tolist() + end if text else [] for text in TEXTS]
    assert [dataset.document(n).tolist() for n in range(len(TEXTS))] == expected
    assert (account.read, account.kept, dict(account.dropped)) == (len(TEXTS), len(kept), {"empty": 1})
    assert account.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert account.special_tokens_in_text == sum(tokenizer.count_special_tokens(text) for text in TEXTS)
    assert account.tokens == dataset.token_count == sum(map(len, expected))
    everything = np.concatenate(expected)
    assert (account.lowest_id, account.highest_id) == (everything.min(), everything.max())
    assert account.separators_from_text == 0
    assert dict(account.documents_by_source) == dict(account.read_by_source) == {"in.jsonl": len(TEXTS)}


def test_a_part_of_nothing_is_a_dataset_of_nothing(smollm, tmp_path):
    settings = TokenizeSettings("HuggingFaceTokenizer", str(smollm), append_eod=True)
    account = encode_part(part_of(tmp_path, ["", ""]), tmp_path / "out", settings.load_tokenizer(), settings)
    assert (account.read, account.kept, account.tokens, account.lowest_id) == (2, 0, 0, -1)
    dataset = IndexedTokens(tmp_path / "out")
    assert (dataset.document_count, dataset.token_count) == (2, 0)
