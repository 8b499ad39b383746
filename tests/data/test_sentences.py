"""Sentences end where a reader of Arabic ends them, and nothing of the text is lost."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_native.data.encode_part import TokenizeSettings
from megatron_native.data.indexed import IndexedTokens
from megatron_native.data.preprocess import tokenize
from megatron_native.data.sentences import SentenceSplitter
from megatron_native.errors import UserError

pytest.importorskip("nltk")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("هل وصلت الرسالة؟ نعم، وصلت. شكرا لك!", ["هل وصلت الرسالة؟", "نعم، وصلت.", "شكرا لك!"]),
        ("قال د. أحمد إن السعر بلغ 3.5 ريال. ثم سكت…", ["قال د. أحمد إن السعر بلغ 3.5 ريال.", "ثم سكت…"]),
        ("ولد عام 320 ق.م. في الإسكندرية.", ["ولد عام 320 ق.م. في الإسكندرية."]),
        ("سأله: «أين كنت؟» فأجاب: «في المكتبة.» وانصرف.", ["سأله: «أين كنت؟»", "فأجاب: «في المكتبة.»", "وانصرف."]),
        ("عنوان بلا نقطة\nالسطر الأول. الثاني", ["عنوان بلا نقطة", "السطر الأول.", "الثاني"]),
        ("قرأ الكتاب؛ ثم أعاده.", ["قرأ الكتاب؛ ثم أعاده."]),
        ("Dr. Smith arrived at 10.30. He left!", ["Dr. Smith arrived at 10.30.", "He left!"]),
        ("كتب أ. م. الخطيب كتابا. ونشره في ص. 12.", ["كتب أ. م. الخطيب كتابا.", "ونشره في ص. 12."]),
        ("قرأ قوله تعالى: ﴿وقل رب زدني علما﴾. ثم شرحه.", ["قرأ قوله تعالى: ﴿وقل رب زدني علما﴾.", "ثم شرحه."]),
        ("انتهى النقل هنا.﴾ ثم علق عليه.", ["انتهى النقل هنا.﴾", "ثم علق عليه."]),
        ("وصل قبل الفجر (كما قيل.) ثم نام.", ["وصل قبل الفجر (كما قيل.)", "ثم نام."]),
        ("صدر في 12.5.2015 وبيع بسعر ٣.٥ ريال؟! نعم.", ["صدر في 12.5.2015 وبيع بسعر ٣.٥ ريال؟!", "نعم."]),
        (" \n ", []),
    ],
)
def test_sentences_of_a_text(text, sentences):
    assert SentenceSplitter().split(text) == sentences


def test_untrained_punkt_does_not_end_at_the_arabic_question_mark():
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    assert len(PunktSentenceTokenizer().tokenize("هل وصلت؟ نعم وصلت")) == 1
    assert len(SentenceSplitter().split("هل وصلت؟ نعم وصلت")) == 2


@settings(max_examples=200, deadline=None)
@given(st.text("اب تث.؟!…»\")\n 3.،؛abc", max_size=60))
def test_nothing_but_white_space_between_sentences_is_left_out(text):
    sentences = SentenceSplitter().split(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    kept = SentenceSplitter(keep_newlines=True).split(text)
    assert "".join(kept) == (text if text.strip() else "")


def test_every_sentence_is_a_sequence_and_the_document_the_same_ids(llama3, tmp_path):
    text = "هل وصلت الرسالة؟ نعم. شكرا."
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": text, "id": "1"}) + "\n" + json.dumps({"text": "", "id": "2"}) + "\n")
    chosen = TokenizeSettings("HuggingFaceTokenizer", str(llama3), append_eod=True, split_sentences="arabic")
    (result,) = tokenize([str(path)], tmp_path / "out", chosen, say=lambda line: None)
    assert result.prefix.name == "out_text_sentence"
    dataset, tokenizer = IndexedTokens(result.prefix), chosen.load_tokenizer()
    pieces = [tokenizer.encode(sentence).tolist() for sentence in ("هل وصلت الرسالة؟", "نعم.", "شكرا.")]
    assert [dataset[n].tolist() for n in range(len(dataset))] == [
        [tokenizer.bos_id, *pieces[0]], pieces[1], [*pieces[2], tokenizer.eod_id],
    ]  # fmt: skip
    assert dataset.document_boundaries.tolist() == [0, 3, 3]
    assert np.concatenate([dataset[n] for n in range(3)]).tolist() == dataset.document(0).tolist()


def test_a_language_without_parameters_is_refused():
    with pytest.raises(UserError, match="arabic and english"):
        SentenceSplitter("french")
