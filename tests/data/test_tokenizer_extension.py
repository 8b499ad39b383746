"""New tokens of a byte-level BPE: each is what its text becomes, all other text keeps its ids, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from megatron_native.data.tokenizer_extension import (
    TokenizerExtension,
    extend_tokenizer,
    read_token_list,
    write_extension,
)
from megatron_native.data.tokenizers import HuggingFaceTokenizer, load_tokenizer
from megatron_native.errors import UserError
from tests.data.small_tokenizers import SENTENCES, write_bpe, write_llama3, write_smollm
from tests.data.test_real_tokenizer import news_texts, quickstart_texts
from tests.real_models import smollm2

WORDS = [" المدرسة", " المشروع", "كتاب", " على", " قرية", " من", " العربية", " the"]
TEXT = "ذهبت إلى المدرسة، وكتاب العربية على الطاولة من خشب.\nكتاب جديد في المشروع: قرية the harbour! ٣٫٥ 12 <|eot_id|>"


def saved(folder: Path, extension: TokenizerExtension) -> Path:
    folder.mkdir(exist_ok=True)
    write_extension(folder, folder, extension)
    return folder / "tokenizer.json"


def opened(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(params=[write_llama3, write_smollm])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tokenizer whose special tokens come after its BPE, outside of its vocabulary."""
    return request.param(tmp_path / "base") / "tokenizer.json"


def test_each_token_is_what_its_text_becomes_and_special_tokens_keep_their_ids(base: Path, tmp_path: Path) -> None:
    old = opened(base)
    extension = extend_tokenizer(base, WORDS)
    new = opened(saved(tmp_path / "new", extension))
    assert extension.first_id == old.get_vocab_size()
    assert [token.id for token in extension.tokens] == list(range(extension.first_id, new.get_vocab_size()))
    found = {token.text: token.id for token in extension.tokens}
    for word in WORDS:
        assert word in extension.skipped or ids(new, word) == [found[word]]
        sentence = f"قال{word}، نعم" if word[0] == " " else f"قال\n{word}، نعم"
        assert word in extension.skipped or found[word] in ids(new, sentence)
    assert set(WORDS) - set(extension.skipped) == {token.text for token in extension.tokens if not token.part}
    for token, index in old.get_vocab(with_added_tokens=True).items():
        assert new.token_to_id(token) == index
    # the special tokens are still read as such where that is asked for, by transformers too
    whole = Tokenizer.from_file(str(tmp_path / "new" / "tokenizer.json"))
    for special in old.get_added_tokens_decoder().values():
        assert whole.encode(f"نص{special.content}", add_special_tokens=False).ids[-1] == old.token_to_id(
            special.content
        )


def test_transformers_reads_the_same_ids(base: Path, tmp_path: Path) -> None:
    extension = extend_tokenizer(base, WORDS)
    path = saved(tmp_path / "new", extension)
    (tmp_path / "new" / "tokenizer_config.json").write_bytes((base.parent / "tokenizer_config.json").read_bytes())
    theirs = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert theirs(TEXT, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids(opened(path), TEXT)
    assert len(theirs) == opened(path).get_vocab_size()
    theirs.save_pretrained(tmp_path / "again")
    assert ids(opened(tmp_path / "again" / "tokenizer.json"), TEXT) == ids(opened(path), TEXT)


@pytest.mark.parametrize("of_family", ["Qwen2Tokenizer", "GPT2Tokenizer"])
def test_classes_that_build_their_own_tokenizer_know_the_new_tokens(tmp_path: Path, of_family: str) -> None:
    base = write_bpe(tmp_path / "base", ["<|endoftext|>", "<|im_end|>"], tokenizer_class=of_family)
    extension = extend_tokenizer(base / "tokenizer.json", [" المشروع", " على"])
    saved(tmp_path / "new", extension)
    (tmp_path / "new" / "tokenizer_config.json").write_bytes((base / "tokenizer_config.json").read_bytes())
    old, new = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "new")
    assert type(new).__name__ == of_family
    for token in extension.tokens:
        assert token.part or new(token.text, add_special_tokens=False)["input_ids"] == [token.id]
    for text in ("<|im_end|>", "a<|endoftext|>b"):
        assert new(text, add_special_tokens=False)["input_ids"] == old(text, add_special_tokens=False)["input_ids"]


def by_definition(old: Tokenizer, merges: list[tuple[str, str]], text: str) -> list[str]:
    """The tokens of a text by the rule itself: the old tokens of each piece, joined by the new merges one after another."""
    result = []
    for piece, _ in old.pre_tokenizer.pre_tokenize_str(text):
        symbols = [token.value for token in old.model.tokenize(piece)]
        while True:
            pairs = [merges.index(pair) for pair in pairwise(symbols) if pair in merges]
            if not pairs:
                break
            left, right = merges[min(pairs)]
            joined: list[str] = []
            for symbol in symbols:
                if joined and joined[-1] == left and symbol == right:
                    joined[-1] = left + right
                else:
                    joined.append(symbol)
            symbols = joined
        result += symbols
    return result


def test_the_encoding_is_the_old_one_with_the_new_merges_on_top(base: Path, tmp_path: Path) -> None:
    old = opened(base)
    extension = extend_tokenizer(base, WORDS)
    new = opened(saved(tmp_path / "new", extension))
    changed = 0
    for text in (*SENTENCES, TEXT, "كتابكتاب كتا المدر المدرسةالمدرسة " * 3):
        expected = by_definition(old, extension.merges, text)
        assert [new.id_to_token(index) for index in ids(new, text)] == expected
        changed += ids(old, text) != ids(new, text)
    assert changed >= 2


@pytest.mark.parametrize("texts_of", [quickstart_texts, news_texts])
def test_real_text_keeps_every_id_but_those_of_new_tokens(tmp_path: Path, texts_of: Callable[[], list[str]]) -> None:
    path = smollm2() / "tokenizer.json"
    texts = texts_of()[:300]
    extension = extend_tokenizer(path, [" السعودية", " في", " من", " على", " التي", "كتاب", " الملك"])
    old, new = opened(path), opened(saved(tmp_path / "new", extension))
    old_ids = {token.id: list(token.sub_tokens) for token in extension.tokens}
    shorter = 0
    for text in texts:
        before, after = ids(old, text), ids(new, text)
        assert new.decode(after, skip_special_tokens=False) == text
        # with every new token taken apart again, the old ids are there, one for one
        assert [part for index in after for part in old_ids.get(index, [index])] == before
        shorter += len(after) < len(before)
    assert shorter > 0
    english = "The committee agreed on a new plan for the old harbour; nobody knew why. x = 12"
    assert ids(old, english) == ids(new, english)


def test_the_fast_engine_agrees(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastokens")
    path = saved(tmp_path / "new", extend_tokenizer(base, WORDS))
    tokenizer = load_tokenizer("HuggingFaceTokenizer", path, eod_token=None, engine="auto")
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.engine == "fastokens", tokenizer.certificate
    certificate = tokenizer.certify([*SENTENCES, TEXT, *(f"قال {word} {word}" for word in WORDS)])
    assert certificate.equal, certificate.reason


def test_a_list_may_be_added_to_twice(base: Path, tmp_path: Path) -> None:
    first = extend_tokenizer(base, WORDS[:3])
    second = extend_tokenizer(saved(tmp_path / "one", first), WORDS)
    assert second.first_id == first.first_id + len(first.tokens)
    assert set(WORDS[:3]) <= set(second.skipped)
    assert extend_tokenizer(base, WORDS).content == second.content


def test_repeated_and_overlapping_sub_tokens_are_joined(base: Path, tmp_path: Path) -> None:
    words = ["هههههه", "هههه", "لالالالا", " بيبيبيب", "يبيب"]
    extension = extend_tokenizer(base, words)
    new = opened(saved(tmp_path / "new", extension))
    for word in words:
        assert [new.id_to_token(index) for index in ids(new, word)] == [new.id_to_token(ids(new, word)[0])]


def test_vocabulary_and_merges_files_follow(base: Path, tmp_path: Path) -> None:
    content = json.loads(base.read_text())
    (base.parent / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (base.parent / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in content["model"]["merges"])
    )
    (base.parent / "tokenizer.model").write_text("old")
    extension = extend_tokenizer(base, WORDS)
    target = tmp_path / "new"
    target.mkdir()
    assert write_extension(base.parent, target, extension) == ["tokenizer.model"]
    from tokenizers.models import BPE

    read = BPE.from_file(str(target / "vocab.json"), str(target / "merges.txt"))
    words = [" المدرسة", " المشروع"]
    new = opened(target / "tokenizer.json")
    for word in words:
        ((spelling, _),) = new.pre_tokenizer.pre_tokenize_str(word)
        assert [token.id for token in read.tokenize(spelling)] == ids(new, word)


@pytest.mark.parametrize(
    ("token", "said"),
    [("في البيت", "cuts it into 'في' \\+ ' البيت'"), ("نعم!", "cuts it into"), ("2015", "cuts it into")],
)
def test_what_can_be_no_token_is_refused_with_the_reason(base: Path, token: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        extend_tokenizer(base, [" كتاب", token])


def test_another_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    from tokenizers import models

    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    with pytest.raises(UserError, match="no plain byte-level BPE"):
        extend_tokenizer(path, [" كتاب"])


def test_a_list_is_lines_or_json(tmp_path: Path) -> None:
    plain, lines = tmp_path / "tokens.txt", tmp_path / "tokens.jsonl"
    plain.write_text(" كتاب\n\nقلم\r\n كتاب\n", encoding="utf-8")
    lines.write_text('{"token": " كتاب"}\n{"token": "قلم", "gain": 3}\n', encoding="utf-8")
    assert read_token_list(plain) == read_token_list(lines) == [" كتاب", "قلم"]
    lines.write_text('{"word": " كتاب"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 1"):
        read_token_list(lines)
    plain.write_text("\n \n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no token"):
        read_token_list(plain)
