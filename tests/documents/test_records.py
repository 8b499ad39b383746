"""What becomes of a record's text, id and other keys; units of plain text and their bounds."""

import json

import pytest

from megatron_native.documents.readers import read_documents
from megatron_native.documents.records import Document, Refusal
from megatron_native.errors import UserError


def read(path, **options):
    records = list(read_documents(path, **options))
    return [r for r in records if isinstance(r, Document)], [r for r in records if isinstance(r, Refusal)]


def jsonl(tmp_path, *raw_lines):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in raw_lines))
    return path


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"text": "\\ud800"}', "lone surrogate"),
        (b'{"text": "\\udc00 x"}', "lone surrogate"),
        (b'{"text": "\\ud83d\\u0041"}', "lone surrogate"),
        (b'{"text": "a", "url": "\\ud800"}', "lone surrogate"),
        (b'{"text": "\\u0000"}', "NUL character"),
        (b'{"text": "\xed\xa0\x80"}', "invalid UTF-8"),
        (b'{"text": "a"} {"text": "b"}', "malformed JSON"),
        (b'{"text": "a\tb"}', "malformed JSON"),
        (b'{"text": "a", "score": NaN}', "malformed JSON"),
        (b'{"Text": "a"}', "no text key"),
        (b'{"text": 5}', "text is not a string"),
        (b'"a string"', "not a JSON object"),
        (b"null", "not a JSON object"),
        ("{'text': 'a'}".encode("utf-16"), "invalid UTF-8"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path, raw, reason):
    documents, refusals = read(jsonl(tmp_path, {"text": "قبل"}, raw, {"text": "بعد"}))
    assert [d.text for d in documents] == ["قبل", "بعد"]
    assert [(r.offset, r.reason) for r in refusals] == [(len(json.dumps({"text": "قبل"})) + 1, reason)]


def test_a_surrogate_pair_is_a_character(tmp_path):
    assert read(jsonl(tmp_path, b'{"text": "\\ud83c\\udf19"}'))[0][0].text == "🌙"


def test_undecodable_bytes_are_kept_readable_in_the_refusal(tmp_path):
    assert read(jsonl(tmp_path, b'{"text": "\xff"}'))[1][0].raw == '{"text": "\\xff"}'


def test_only_the_beginning_of_a_long_bad_line_is_kept(tmp_path):
    assert len(read(jsonl(tmp_path, b"x" * 100_000))[1][0].raw) == 2000


def test_a_line_of_exactly_the_most_bytes_is_read(tmp_path):
    line = b'{"text": "0123456789"}'
    assert len(read(jsonl(tmp_path, line, line), max_line_bytes=len(line))[0]) == 2
    assert len(read(jsonl(tmp_path, line, line), max_line_bytes=len(line) - 1)[1]) == 2


def test_blank_lines_and_a_lone_byte_order_mark_are_no_records(tmp_path):
    documents, refusals = read(jsonl(tmp_path, b"\xef\xbb\xbf", b"", b"  \r", {"text": "نص"}, b""))
    assert [d.text for d in documents] == ["نص"]
    assert not refusals


def test_offsets_lead_back_to_the_line(tmp_path):
    path = jsonl(tmp_path, {"text": "أول"}, b"bad", {"text": "ثان"})
    raw = path.read_bytes()
    for record in read_documents(path):
        line = raw[record.offset :].split(b"\n")[0]
        assert line in raw.split(b"\n")


@pytest.mark.parametrize(
    ("record", "identifier"),
    [({"id": 0}, "0"), ({"id": "x"}, "x"), ({"id": ""}, "a.jsonl:0"), ({"id": None}, "a.jsonl:0"), ({}, "a.jsonl:0")],
)
def test_a_record_without_an_id_is_called_by_file_and_offset(tmp_path, record, identifier):
    assert read(jsonl(tmp_path, {"text": "نص", **record}))[0][0].id == identifier


@pytest.mark.parametrize(
    ("record", "options", "metadata"),
    [
        ({"text": "t", "url": "u", "metadata": {"lang": "ar"}}, {}, {"lang": "ar", "url": "u"}),
        ({"text": "t", "metadata": "a note"}, {}, {"metadata": "a note"}),
        ({"page": {"body": "t", "url": "u"}}, {"text_key": "page.body"}, {"page": {"url": "u"}}),
        ({"page": {"body": "t"}}, {"text_key": "page.body"}, {}),
        ({"metadata": {"body": "t", "url": "u"}}, {"text_key": "metadata.body"}, {"url": "u"}),
        ({"text": "t", "key": "k", "id": "i"}, {"id_key": "key"}, {"id": "i"}),
    ],
)
def test_other_keys_of_a_record_are_all_kept(tmp_path, record, options, metadata):
    (document,), _ = read(jsonl(tmp_path, record), **options)
    assert (document.text, document.metadata) == ("t", metadata)


def test_a_nested_key_that_leads_through_a_string_is_no_text_key(tmp_path):
    _, (refusal,) = read(jsonl(tmp_path, {"page": "t"}), text_key="page.body")
    assert (refusal.reason, refusal.detail) == ("no text key", "no 'page.body' in it")


def text(tmp_path, raw):
    (tmp_path / "a.txt").write_bytes(raw)
    return tmp_path / "a.txt"


BOOK = "\ufeffعنوان\r\n\r\nفقرة أولى\nتتمتها\n \nفقرة ثانية".encode()


@pytest.mark.parametrize(
    ("unit", "texts", "offsets"),
    [
        ("file", ["عنوان\r\n\r\nفقرة أولى\nتتمتها\n \nفقرة ثانية"], [0]),
        ("paragraph", ["عنوان\r", "فقرة أولى\nتتمتها", "فقرة ثانية"], [0, 17, 50]),
        ("line", ["عنوان\r", "فقرة أولى", "تتمتها", "فقرة ثانية"], [0, 17, 35, 50]),
    ],
)
def test_a_text_file_is_one_document_or_one_a_paragraph_or_line(tmp_path, unit, texts, offsets):
    documents, refusals = read(text(tmp_path, BOOK), text_unit=unit)
    assert [d.text for d in documents] == texts
    assert [d.offset for d in documents] == offsets
    assert [d.id for d in documents] == (["a.txt"] if unit == "file" else [f"a.txt:{offset}" for offset in offsets])
    assert not refusals


@pytest.mark.parametrize("unit", ["file", "paragraph", "line"])
def test_an_empty_text_file_has_no_documents(tmp_path, unit):
    assert read(text(tmp_path, b""), text_unit=unit) == ([], [])


def test_a_unit_that_is_too_long_is_refused_once_and_whole(tmp_path):
    book = b"ab\ncd\n\n" + b"x\n" * 30 + b"\nef\n"
    documents, refusals = read(text(tmp_path, book), text_unit="paragraph", max_line_bytes=20)
    assert [d.text for d in documents] == ["ab\ncd", "ef"]
    assert [(r.reason, r.offset) for r in refusals] == [("text too long", 7)]
    documents, refusals = read(text(tmp_path, book), text_unit="file", max_line_bytes=20)
    assert not documents
    assert [(r.reason, r.offset) for r in refusals] == [("text too long", 0)]
    documents, refusals = read(text(tmp_path, b"short\n" + b"y" * 30 + b"\nlast"), text_unit="line", max_line_bytes=20)
    assert [d.text for d in documents] == ["short", "last"]
    assert [r.reason for r in refusals] == ["line too long"]


def test_a_text_of_exactly_the_most_bytes_is_read(tmp_path):
    assert len(read(text(tmp_path, b"12345\n6789"), max_line_bytes=10)[0]) == 1
    assert len(read(text(tmp_path, b"12345\n67890"), max_line_bytes=10)[1]) == 1


def test_a_paragraph_that_is_not_utf8_is_refused_and_the_others_stay(tmp_path):
    documents, refusals = read(text(tmp_path, b"one\n\n\xc7\xe1\n\ntwo"), text_unit="paragraph")
    assert [d.text for d in documents] == ["one", "two"]
    assert [r.reason for r in refusals] == ["invalid UTF-8"]


def test_an_unknown_unit_is_refused(tmp_path):
    with pytest.raises(UserError, match="the unit of plain text is 'page'"):
        read(text(tmp_path, b"x"), text_unit="page")


def test_without_a_text_key_a_record_is_all_metadata(tmp_path):
    record = {"id": 7, "messages": [{"role": "user", "content": "ما؟"}], "metadata": {"source": "x"}}
    documents, refusals = read(jsonl(tmp_path, record, {"n": 1}, [1]), text_key="")
    assert [(d.id, d.text, d.metadata) for d in documents] == [
        ("7", "", record), (f"a.jsonl:{documents[1].offset}", "", {"n": 1}),
    ]  # fmt: skip
    assert [r.reason for r in refusals] == ["not a JSON object"]
