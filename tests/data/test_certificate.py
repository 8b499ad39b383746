"""The fast engine encodes only where a differential run finds it equal, and what it found is told."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from megatron_native.data import tokenizers as module
from megatron_native.data.certificate import difficult_texts, examine
from megatron_native.data.tokenizers import load_tokenizer
from tests.data.small_tokenizers import SENTENCES, write_bpe


def ids_of(texts):
    return [np.array([ord(character) for character in text], dtype=np.int32) for text in texts]


def test_a_single_other_id_anywhere_is_found_and_shown():
    def differs_on_vocalised(texts):
        found = ids_of(texts)
        for ids in found:
            if len(ids) > 60 and 0x64B in ids:
                ids[-1] += 1
        return found

    clean = examine("fast", "1", ids_of, ids_of, ["<|end|>"])
    assert clean.equal and clean.reason == "" and clean.texts == len(difficult_texts(["<|end|>"]))
    differing = examine("fast", "1", differs_on_vocalised, ids_of, ["<|end|>"])
    assert not differing.equal
    assert "where tokenizers gives" in differing.reason
    assert clean.texts_sha256 == differing.texts_sha256


def test_an_engine_that_fails_or_gives_too_few_is_not_used():
    def fails(texts):
        raise ValueError("no such regex")

    assert examine("fast", "1", fails, ids_of, []).reason == "it can't encode: no such regex"
    with pytest.raises(ValueError, match="shorter"):
        examine("fast", "1", lambda texts: ids_of(texts)[:-1], ids_of, [])


def test_the_texts_are_the_same_every_time_and_of_every_kind():
    texts = difficult_texts(["<|end|>"])
    assert texts == difficult_texts(["<|end|>"])
    whole = "".join(texts)
    for wanted in ("\u0651", "\u0640", "\ufef7", "\u200f", "\u08a0", "\U0001f468\u200d", "\t", "<|end|>", "中"):
        assert wanted in whole
    assert "" in texts


def test_both_engines_give_the_same_ids_special_tokens_as_text(llama3, smollm):
    for folder in (llama3, smollm):
        fast, slow = (
            load_tokenizer("HuggingFaceTokenizer", folder, engine=engine) for engine in ("auto", "tokenizers")
        )
        assert (fast.engine, slow.engine) == ("fastokens", "tokenizers")
        assert fast.certificate.equal and slow.certificate is None
        texts = [*SENTENCES, "نص <|endoftext|> <|end_of_text|> <|im_end|>", ""]
        for ours, theirs in zip(fast.encode_batch(texts), slow.encode_batch(texts)):
            assert np.array_equal(ours, theirs)
        ids, bounds = fast.encode_flat(texts)
        assert np.array_equal(ids, np.concatenate(slow.encode_batch(texts)))
        assert bounds.tolist() == np.cumsum([0, *map(len, slow.encode_batch(texts))]).tolist()


def test_a_tokenizer_that_the_fast_engine_cannot_load_is_encoded_by_the_reference(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"كتاب": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer("HuggingFaceTokenizer", tmp_path, engine="auto")
    assert loaded.engine == "tokenizers"
    assert not loaded.certificate.equal
    assert loaded.certificate.reason.startswith("it can't load the tokenizer")
    assert json.dumps(loaded.certificate.as_json())
    assert loaded.encode("كتاب قلم").tolist() == [0, 1]


def test_a_difference_makes_the_reference_encode(smollm, monkeypatch):
    def differing(engine, version, fast, reference, specials, sample=()):
        return examine(engine, version, lambda texts: [ids + 1 for ids in reference(texts)], reference, specials)

    monkeypatch.setattr(module, "examine", differing)
    loaded = load_tokenizer("HuggingFaceTokenizer", smollm, engine="auto")
    assert (loaded.engine, loaded.certificate.equal) == ("tokenizers", False)
    assert np.array_equal(loaded.encode("كتاب"), loaded.encode_batch_by_reference(["كتاب"])[0])


def test_a_sample_of_the_users_own_can_refuse_the_engine(smollm, monkeypatch):
    tokenizer = load_tokenizer("HuggingFaceTokenizer", smollm, engine="auto")
    before = tokenizer.certificate
    after = tokenizer.certify(["نص من بيانات المستخدم"])
    assert after.equal and after.texts == before.texts + 1 and after.texts_sha256 != before.texts_sha256
    reference = tokenizer.encode_batch_by_reference

    def differing(texts):
        return [ids[:-1] if text == "خاص" else ids for text, ids in zip(texts, reference(texts))]

    monkeypatch.setattr(tokenizer, "encode_batch_by_reference", differing)
    refused = tokenizer.certify(["خاص"])
    assert not refused.equal and refused.reason.startswith("'خاص' gives")
    assert tokenizer.engine == "tokenizers"
    assert tokenizer.certificate is refused


def test_added_words_that_are_no_special_tokens_are_examined_too(tmp_path):
    from tokenizers import AddedToken, Tokenizer

    folder = write_bpe(tmp_path, ["<|endoftext|>"])
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("[X]", lstrip=True, rstrip=True)])
    tokenizer.save(path)
    loaded = load_tokenizer("HuggingFaceTokenizer", folder, engine="auto")
    for text in ("a <think> b", "a  [X]  b <|endoftext|>", "<think><think>[X]"):
        assert np.array_equal(loaded.encode(text), loaded.encode_batch_by_reference([text])[0])
    assert loaded.certificate.texts == len(difficult_texts(["<|endoftext|>", "<think>", "[X]"]))


def test_the_fast_engine_works_in_one_thread(smollm):
    code = (
        "import os, sys; from megatron_native.data.tokenizers import load_tokenizer; "
        "loaded = load_tokenizer('HuggingFaceTokenizer', sys.argv[1], engine='fastokens'); "
        "before = len(os.listdir('/proc/self/task')); "
        "loaded.encode_flat(['كلمة ' * 50_000] * 50); "
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    limits = ("FASTOKENS_BPE_THREADS", "RAYON_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in limits}
    done = subprocess.run([sys.executable, "-c", code, str(smollm)], capture_output=True, text=True, env=environment)
    # a pool of one thread, in which the caller's work is done while the caller waits
    assert done.stdout.strip() in ("0", "1"), done.stderr
