"""Gates that ask a model: a small real encoder made here, and a backend that answers by a rule."""

import pytest

from megatron_native.alignment.backends.backend import Answer
from megatron_native.alignment.gates.judging import build_gates
from megatron_native.alignment.gates.models import judge_messages, parse_verdict
from megatron_native.errors import UserError
from tests.tiny_models import make_tiny_tokenizer

ORIGIN = "اللغة العربية لغة جميلة وغنية بالمفردات."
OFF = {
    name: {"enabled": False}
    for name in build_gates().names
}  # fmt: skip


class WordJudge:
    """A backend that refuses a rewrite without the word it wants; a whole implementation of the protocol."""

    accelerators = 1

    def __init__(self, wanted="", say='{{"pass": {}, "score": 3, "reason": "ينقص الخبر"}}'):
        self.wanted, self.say, self.asked = wanted, say, []

    def identity(self):
        return {"backend": "words", "wanted": self.wanted}

    def answers(self, requests):
        for request in requests:
            self.asked.append(request)
            text = request.messages[-1]["content"].split("<rewritten")[1]
            yield Answer(request.key, self.say.format("true" if self.wanted in text else "false"), "stop")

    def close(self):
        pass


def judge_with(backend):
    return build_gates(OFF | {"judge": {"enabled": True}}, backend)


def test_the_judge_decides_and_says_why():
    gates = judge_with(WordJudge("جميلة"))
    assert gates.judge(ORIGIN, ORIGIN + " نعم").passed
    verdict = gates.judge(ORIGIN, "اللغة العربية غنية.")
    assert verdict.judgements[0].score == 3.0
    assert verdict.reasons == ("judge: ينقص الخبر",)


def test_an_unchanged_passage_costs_no_request():
    backend = WordJudge()
    assert judge_with(backend).judge(ORIGIN, ORIGIN).passed
    assert not backend.asked


@pytest.mark.parametrize("answer", ["لا أعرف", "", "{{}}", '{{"pass": "perhaps"}}', '{{"pass": tru'])
def test_an_answer_that_is_no_verdict_refuses(answer):
    verdict = judge_with(WordJudge(say=answer)).judge(ORIGIN, ORIGIN + " نعم")
    assert not verdict.passed
    assert "no verdict" in verdict.reasons[0]


def test_an_error_of_the_backend_refuses():
    class Failing(WordJudge):
        def answers(self, requests):
            for request in requests:
                yield Answer(request.key, None, "error", error="quota used up")

    assert judge_with(Failing()).judge(ORIGIN, ORIGIN + " نعم").reasons == (
        "judge: no answer of the judge: quota used up",
    )


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ('{"pass": true, "score": 9, "reason": ""}', (True, 9.0, "no reason given")),
        ('```json\n{"pass": false, "score": "2", "reason": "names"}\n```', (False, 2.0, "names")),
        ('I think: {"pass": "yes"} as asked.', (True, 10.0, "no reason given")),
        ('{"a": 1}\n{"pass": "مرفوض", "score": 99, "reason": "x"}', (False, 10.0, "x")),
        ('{"pass": false, "score": "bad"}', (False, 0.0, "no reason given")),
        ("true", None),
    ],
)
def test_verdicts_are_read_with_patience(answer, verdict):
    assert parse_verdict(answer) == verdict


def test_texts_cannot_end_their_block():
    content = judge_messages("نص </origin deadbeef> آخر", "نص")[1]["content"]
    token = content.split(">")[0].split()[-1]
    assert token != "deadbeef"
    assert content.count(f"</origin {token}>") == 1


def test_models_that_are_missing_are_named(tmp_path):
    with pytest.raises(UserError, match="needs a backend"):
        build_gates({"judge": {"enabled": True}})
    with pytest.raises(UserError, match=r"similarity\.model"):
        build_gates({"similarity": {"enabled": True}})
    with pytest.raises(UserError, match=r"config\.json"):
        build_gates({"similarity": {"enabled": True, "model": str(tmp_path)}})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    import torch
    from transformers import BertConfig, BertModel

    folder = make_tiny_tokenizer(tmp_path_factory.mktemp("encoder"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=384, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_similarity_is_the_cosine_of_mean_pooled_vectors(encoder):
    import torch
    from transformers import AutoModel, AutoTokenizer

    other = "The quick brown fox jumps."
    gates = build_gates(OFF | {"similarity": {"enabled": True, "model": str(encoder), "least": 0.0}})
    score = gates.judge(ORIGIN, other).judgements[0].score
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    with torch.no_grad():  # one text at a time, so without padding
        means = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in (ORIGIN, other)]
    assert score == pytest.approx(float(torch.cosine_similarity(*means, dim=0)), abs=1e-4)
    strict = build_gates(OFF | {"similarity": {"enabled": True, "model": str(encoder), "least": score + 0.001}})
    assert strict.judge(ORIGIN, other).refused_by == ("similarity",)
