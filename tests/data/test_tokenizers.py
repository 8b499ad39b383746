import json
import shutil

import numpy as np
import pytest

from megatron_native.data.tokenizers import load_tokenizer
from megatron_native.errors import UserError
from tests.data.small_tokenizers import SENTENCES, write_bpe

HARD_TEXTS = [
    *SENTENCES,
    "",
    " ",
    "نص فيه <|endoftext|> و<|im_end|> ثم <|im_start|>user",
    "<|endoftext|>",
    "<|begin_of_text|>x<|end_of_text|><|eot_id|>",
    "ﻻ إله إلا الله ﷺ ﷲ",
    "مـــرحـــبا\u200b \u202bعالم\u202c \ufeff",
    "emoji 👩‍👩‍👧 and \x00 NUL\r\n\ttabs   spaces",
    "ذ" * 500,
]


def transformers_tokenizer(folder):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["smollm", "llama3"])
def test_ids_equal_transformers_with_special_tokens_split(kind, request):
    folder = request.getfixturevalue(kind)
    reference = transformers_tokenizer(folder)
    ours = load_tokenizer("HuggingFaceTokenizer", folder).encode_batch(HARD_TEXTS)
    for text, ids in zip(HARD_TEXTS, ours):
        expected = reference(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ids.tolist() == expected, text


def test_a_separator_written_in_a_text_is_text(smollm):
    tokenizer = load_tokenizer("HuggingFaceTokenizer", smollm)
    text = "قبل <|endoftext|> بعد"
    # transformers without the guard, what every script does by default, makes it the real separator
    assert tokenizer.eod_id in transformers_tokenizer(smollm)(text, add_special_tokens=False).input_ids
    assert tokenizer.eod_id not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.count_special_tokens(text + "<|im_end|>") == 2


@pytest.mark.parametrize(("kind", "separator"), [("smollm", "<|endoftext|>"), ("llama3", "<|end_of_text|>")])
def test_documents_end_with_the_base_models_separator_not_the_turn_end(kind, separator, request):
    folder = request.getfixturevalue(kind)
    tokenizer = load_tokenizer("HuggingFaceTokenizer", folder)
    assert tokenizer.eod_token == separator
    assert tokenizer.eod_id == transformers_tokenizer(folder).convert_tokens_to_ids(separator)


def test_an_explicit_separator_wins_and_an_unknown_one_is_refused(smollm):
    assert load_tokenizer("HuggingFaceTokenizer", smollm, eod_token="<|im_end|>").eod_token == "<|im_end|>"
    with pytest.raises(UserError, match=r"'<eod>' is not a token.*<\|im_end\|>"):
        load_tokenizer("HuggingFaceTokenizer", smollm, eod_token="<eod>")


def test_a_tokenizer_without_a_known_separator_asks_for_one(tmp_path):
    tokenizer = load_tokenizer("HuggingFaceTokenizer", write_bpe(tmp_path, ["<fin>"]))
    assert tokenizer.encode("abc").size  # encoding needs none
    with pytest.raises(UserError, match="--eod-token"):
        _ = tokenizer.eod_id


def test_the_begin_token_follows_the_template_unless_forced(llama3, smollm):
    def begin(folder, bos=None):
        return load_tokenizer("HuggingFaceTokenizer", folder, bos=bos).bos_token

    assert begin(llama3) == "<|begin_of_text|>"
    assert begin(llama3, bos=False) is None
    assert begin(smollm) is None
    assert begin(smollm, bos=True) == "<|im_start|>"  # what its configuration names


@pytest.mark.parametrize("add_bos_token", [True, False])
@pytest.mark.parametrize("kind", ["smollm", "llama3"])
def test_the_template_decides_over_add_bos_token_as_in_transformers(tmp_path, kind, add_bos_token, request):
    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / "x")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": add_bos_token}))
    tokenizer = load_tokenizer("HuggingFaceTokenizer", folder)
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert transformers_tokenizer(folder)("a").input_ids == begin + tokenizer.encode("a").tolist()


def test_an_end_token_that_tokenizer_json_forgot_to_mark_special_is_special(tmp_path):
    from tokenizers import Tokenizer

    folder = write_bpe(tmp_path, ["<|endoftext|>"], eos_token="<|fin|>")
    forgetful = Tokenizer.from_file(str(folder / "tokenizer.json"))
    forgetful.add_tokens(["<|fin|>", "<think>"])
    forgetful.save(str(folder / "tokenizer.json"))
    text = "a <|fin|> b <think> c <|endoftext|>"
    expected = transformers_tokenizer(folder)(text, add_special_tokens=False, split_special_tokens=True).input_ids
    tokenizer = load_tokenizer("HuggingFaceTokenizer", folder)
    assert tokenizer.encode(text).tolist() == expected
    assert tokenizer.token_id("<|fin|>") not in expected
    assert tokenizer.token_id("<think>") in expected  # an added word, not a control token


def test_bos_forced_on_a_tokenizer_that_has_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="names no begin token"):
        load_tokenizer("HuggingFaceTokenizer", write_bpe(tmp_path, ["<|endoftext|>"]), bos=True)


def test_vocab_size_is_above_every_id_and_the_hash_is_of_the_content(smollm, llama3, tmp_path):
    tokenizer = load_tokenizer("HuggingFaceTokenizer", smollm)
    assert tokenizer.vocab_size == len(transformers_tokenizer(smollm))
    other_formatting = tmp_path / "tokenizer.json"
    other_formatting.write_text(json.dumps(json.loads((smollm / "tokenizer.json").read_text()), indent=7))
    assert load_tokenizer("HuggingFaceTokenizer", other_formatting).hash == tokenizer.hash
    assert load_tokenizer("HuggingFaceTokenizer", llama3).hash != tokenizer.hash


def test_truncation_and_padding_saved_in_a_tokenizer_do_not_touch_documents(tmp_path, smollm):
    from tokenizers import Tokenizer

    cut = Tokenizer.from_file(str(smollm / "tokenizer.json"))
    cut.enable_truncation(4)
    cut.enable_padding(length=8)
    cut.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer("HuggingFaceTokenizer", tmp_path)
    whole = load_tokenizer("HuggingFaceTokenizer", smollm)
    assert np.array_equal(ours.encode(SENTENCES[0]), whole.encode(SENTENCES[0]))
    assert ours.hash == whole.hash


def test_sentencepiece_ids_are_the_librarys_own(sentencepiece_model):
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    tokenizer = load_tokenizer("SentencePieceTokenizer", sentencepiece_model)
    for text, ids in zip(HARD_TEXTS, tokenizer.encode_batch(HARD_TEXTS)):
        assert ids.tolist() == reference.encode(text)
    assert (tokenizer.eod_token, tokenizer.eod_id) == ("</s>", reference.eos_id())
    assert tokenizer.bos_id is None  # a .model has no template
    assert load_tokenizer("SentencePieceTokenizer", sentencepiece_model, bos=True).bos_id == reference.bos_id()
    assert tokenizer.eod_id not in tokenizer.encode("نص </s> آخر")
    assert tokenizer.count_special_tokens("نص </s> آخر") == 1


@pytest.mark.parametrize(
    ("kind", "name", "content", "says"),
    [
        ("HuggingFaceTokenizer", "nowhere", None, "there is no such file or folder"),
        ("HuggingFaceTokenizer", "tokenizer.json", b"{not json", "not a readable tokenizer.json"),
        ("HuggingFaceTokenizer", "tokenizer.model", b"x", "use --tokenizer-type SentencePieceTokenizer"),
        ("HuggingFaceTokenizer", "merges.txt", b"x", "has no tokenizer.json"),
        ("SentencePieceTokenizer", "tokenizer.model", b"garbage", "not a readable SentencePiece model"),
        ("GPT2BPETokenizer", "vocab.json", b"{}", "--tokenizer-type GPT2BPETokenizer is not supported"),
    ],
)
def test_a_tokenizer_that_cannot_be_opened_is_one_clear_paragraph(tmp_path, kind, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_tokenizer(kind, path)
