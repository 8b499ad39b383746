"""Toxicity: the change by hand, the lexicon on labelled sentences, models and endpoints."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_native.alignment.analyses.toxicity import toxicity_change
from megatron_native.alignment.analyses.toxicity_lexicon import LexiconClassifier
from megatron_native.alignment.analyses.toxicity_models import ModelClassifier, ModerationEndpoint
from megatron_native.alignment.backends.server_settings import ServerSettings
from megatron_native.errors import UserError
from tests.alignment.analyses.pairs import pair

LABELLED = yaml.safe_load((Path(__file__).parent / "toxicity_labelled.yaml").read_text(encoding="utf-8"))


class Given:
    categories = ("hate", "violence")

    def __init__(self, scores):
        self.scores, self.asked = scores, []

    def identity(self):
        return {"classifier": "given"}

    def score(self, texts):
        self.asked += texts
        return np.array([self.scores[text] for text in texts], dtype=float)


def test_the_mean_score_of_each_category_before_and_after():
    classifier = Given({"ا": (0.8, 0.0), "ب": (0.4, 0.0), "ج": (0.2, 0.0), "د": (np.nan, np.nan)})
    found = toxicity_change([pair("ا", "ج"), pair("ب", "ج"), pair("د", "ج")], classifier)
    assert sorted(classifier.asked) == ["ا", "ب", "ج", "د"]
    assert (found.pairs, found.unscored) == (2, 1)
    hate, violence = found.categories
    assert (hate.before, hate.after) == (pytest.approx(0.6), pytest.approx(0.2))
    assert hate.relative.value == pytest.approx(100 * (0.2 / 0.6 - 1))
    assert hate.difference.value == pytest.approx(-0.4)
    assert (hate.flagged_before, hate.flagged_after) == (1, 0)
    assert violence.relative is None  # nothing before, so no share of it


def test_the_lexicon_on_labelled_sentences_is_as_the_docs_say():
    classifier = LexiconClassifier()
    found = {}
    for kind, texts in LABELLED.items():
        for text, row in zip(texts, classifier.score(texts)):
            found[text] = kind, {name for name, score in zip(classifier.categories, row) if score}
    measured = {}
    for name in classifier.categories:
        flagged = [kind for kind, named in found.values() if name in named]
        measured[name] = (flagged.count(name), len(flagged), len(LABELLED[name]))
    assert measured == {  # right, flagged, labelled: docs/rewrite-report.md
        "hate": (12, 12, 16), "harassment": (13, 14, 16), "violence": (12, 15, 16), "sexual": (14, 14, 16),
    }  # fmt: skip
    assert sum(bool(named) for kind, named in found.values() if kind == "none") == 4 and len(LABELLED["none"]) == 75


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("يَا غَبِيّ، اِخْرَسْ", {"harassment"}),  # vowel signs hide nothing
        ("قال المعلم: لا تقولوا يا غبي", set()),  # named, not used
        ("﴿وَاقْتُلُوهُمْ حَيْثُ ثَقِفْتُمُوهُمْ﴾", set()),
        ("قال تعالى ﴿وَاقْتُلُوهُمْ حَيْثُ ثَقِفْتُمُوهُمْ﴾ ثم صاح: اقتلوهم ولا ترحموا أحدا", {"violence"}),
        ("You are stupid", set()),  # Arabic alone
        ("", set()),
    ],
)
def test_what_the_lexicon_makes_of_a_text(text, named):
    classifier = LexiconClassifier()
    (row,) = classifier.score([text])
    assert {name for name, score in zip(classifier.categories, row) if score} == named
    assert classifier.identity()["licence"].startswith("Apache-2.0")


def test_a_text_classification_model_gives_its_labels_probabilities(tmp_path):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = {"[UNK]": 0, "[PAD]": 1, "نص": 2, "آخر": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    torch.manual_seed(0)
    for kind, folder in (("single_label_classification", "one"), ("multi_label_classification", "many")):
        config = BertConfig(
            vocab_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=8, id2label={0: "neutral", 1: "hate"}, label2id={"neutral": 0, "hate": 1},
            problem_type=kind, pad_token_id=1, initializer_range=1.0,
        )  # fmt: skip
        model = BertForSequenceClassification(config).eval()
        model.save_pretrained(tmp_path / folder)
        fast.save_pretrained(tmp_path / folder)
        classifier = ModelClassifier(tmp_path / folder, device="cpu")
        assert classifier.categories == ("neutral", "hate")
        scores = classifier.score(["نص", "نص آخر نص", "نص " * 20])
        with torch.no_grad():
            logits = model(torch.tensor([[2, 3, 2]])).logits[0]
        expected = logits.sigmoid() if folder == "many" else logits.softmax(-1)
        assert scores[1] == pytest.approx(expected.numpy(), abs=1e-5)
        assert classifier.truncated == 1
        assert folder == "many" or scores.sum(axis=1) == pytest.approx(1.0)
    with pytest.raises(UserError, match="no Hugging Face folder"):
        ModelClassifier(tmp_path / "gone")


class Moderation(BaseHTTPRequestHandler):
    """Scores 0.25 hate for each letter ح, up to 1; fails the first time; refuses what says ممنوع."""

    seen: list[dict] = []  # noqa: RUF012 - shared on purpose
    keys: set[str] = set()  # noqa: RUF012 - shared on purpose

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        self.keys.add(self.headers.get("Authorization", ""))
        if len(self.seen) == 1:
            self.answer(503, {"error": {"message": "overloaded"}})
        elif any("ممنوع" in text for text in body["input"]):
            self.answer(400, {"error": {"message": "no"}})
        else:
            rows = [
                {"flagged": False, "categories": {}, "category_applied_input_types": {},
                 "category_scores": {"hate": min(1.0, text.count("ح") / 4), "harassment": 0.0, "violence": 0.5, "sexual": 0}}
                for text in body["input"]
            ]  # fmt: skip
            self.answer(200, {"id": "m", "model": "guard-1", "results": rows})

    def answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def moderation():
    Moderation.seen.clear()
    Moderation.keys.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moderation)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()


def test_a_moderation_endpoint_is_asked_with_the_key_of_the_environment(moderation, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    classifier = ModerationEndpoint(moderation, "guard")
    scores = classifier.score(["حب", "", "حححححح"])
    assert scores.tolist() == [[0.25, 0, 0.5, 0], [0, 0, 0, 0], [1, 0, 0.5, 0]]
    assert Moderation.seen[-1] == {"input": ["حب", "حححححح"], "model": "guard"} and len(Moderation.seen) == 2
    assert Moderation.keys == {"Bearer secret-1"}
    assert classifier.identity() == {"classifier": "moderation endpoint", "model": "guard", "reported": ["guard-1"]}
    assert np.isnan(classifier.score(["ممنوع"])).all()


def test_what_a_moderation_endpoint_lacks_is_said_without_the_key(moderation, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    with pytest.raises(UserError, match="knows no category spite") as error:
        ModerationEndpoint(moderation, categories=("hate", "spite")).score(["نص"])
    with pytest.raises(UserError, match="gave no scores") as other:
        ModerationEndpoint("http://127.0.0.1:9/v1", settings=ServerSettings(attempts=1)).score(["نص"])
    assert "secret-1" not in f"{error.value}{other.value}"
