"""Perplexity against a direct computation with transformers, one text at a time."""

import math
import random
from pathlib import Path

import pytest
import torch
import transformers

from megatron_native.alignment.perplexity import Perplexity, TextScore
from megatron_native.errors import UserError
from tests.tiny_models import TEXTS, make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama3.1")


def direct(folder: Path, text: str) -> tuple[float, int]:
    """Sum of -log p over the tokens of one text, alone, and their number; the separator stands before the first."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    with torch.inference_mode():
        logits = model(torch.tensor([[begin, *ids]])).logits[0].double()
    likelihoods = torch.log_softmax(logits, -1)
    return -sum(float(likelihoods[place, token]) for place, token in enumerate(ids)), len(ids)


def test_scores_are_those_of_transformers(folder: Path) -> None:
    scores = Perplexity(folder, device="cpu").score(TEXTS)
    for text, score in zip(TEXTS, scores, strict=True):
        nats, tokens = direct(folder, text)
        assert score.tokens == tokens
        assert score.nats == pytest.approx(nats, rel=1e-5)
        assert score.bytes == len(text.encode())
        assert score.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
        assert score.bits_per_byte == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)


def test_padding_and_neighbours_change_nothing(folder: Path) -> None:
    texts = [text[: 3 + 5 * place] for place, text in enumerate(TEXTS * 5)]
    alone = [Perplexity(folder, device="cpu", batch_tokens=1).score([text])[0] for text in texts[:3]]
    one_by_one = Perplexity(folder, device="cpu", batch_tokens=1).score(texts)
    together = Perplexity(folder, device="cpu", batch_tokens=100_000).score(texts)
    order = random.Random(4).sample(range(len(texts)), len(texts))
    shuffled = Perplexity(folder, device="cpu", batch_tokens=300).score([texts[place] for place in order])
    for place, score in enumerate(one_by_one):
        assert together[place].nats == pytest.approx(score.nats, rel=1e-5)
        assert shuffled[order.index(place)].nats == pytest.approx(score.nats, rel=1e-5)
    assert [score.nats for score in alone] == pytest.approx([score.nats for score in one_by_one[:3]], rel=1e-6)


def test_a_long_text_is_scored_in_windows_that_overlap_by_half(folder: Path) -> None:
    """By hand: windows of 32 inputs; each after the first moves on by 16, and its last 16 labels count."""
    text = " ".join(TEXTS * 2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = [tokenizer.convert_tokens_to_ids("<|endoftext|>"), *ids]
    assert len(ids) > 100
    expected = 0.0
    for label in range(1, len(stream)):
        if label <= 32:
            first = 0
        else:  # the window that ends 16, 32 … labels after the first one's end, or with the text
            end = min(32 + 16 * math.ceil((label - 32) / 16), len(ids))
            first = end - 32
        with torch.inference_mode():
            logits = model(torch.tensor([stream[first:label]])).logits[0, -1].double()
        expected -= float(torch.log_softmax(logits, -1)[stream[label]])
    score = Perplexity(folder, device="cpu", context=32).score([text])[0]
    assert score.tokens == len(ids)
    assert score.nats == pytest.approx(expected, rel=1e-5)


def test_the_models_positions_limit_the_context(folder: Path) -> None:
    assert Perplexity(folder, device="cpu").context == 512
    assert Perplexity(folder, device="cpu", context=64).context == 64


def test_special_tokens_in_a_text_are_text(folder: Path) -> None:
    score = Perplexity(folder, device="cpu").score(["<|endoftext|>"])[0]
    assert score.tokens > 1


def test_a_text_without_tokens_has_no_perplexity(folder: Path) -> None:
    heard: list[int] = []
    first, second = Perplexity(folder, device="cpu").score(["", TEXTS[0]], heard.append)
    assert first == TextScore(0.0, 0, 0)
    assert math.isnan(first.perplexity) and math.isnan(first.bits_per_byte)
    assert second.tokens > 0
    assert sum(heard) == 2


def test_identity_names_the_weights(folder: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", "llama3.1", seed=1)
    here, there = (Perplexity(one, device="cpu").identity() for one in (folder, other))
    assert here["model_hash"] != there["model_hash"]
    assert here == Perplexity(folder, device="cpu").identity()


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        Perplexity(tmp_path)
