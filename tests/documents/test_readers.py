"""Readers: every record comes back as a document or as a refusal with its place; nothing is lost."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from megatron_native.documents.inputs import expand_inputs
from megatron_native.documents.readers import read_documents
from megatron_native.documents.records import Document, Refusal
from megatron_native.errors import UserError

TEXTS = [f"هذا هو النص رقم {number}، وفيه جملة واحدة قصيرة." for number in range(400)]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress}


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "id": f"d{i}"}) + "\n" for i, text in enumerate(texts)).encode()


def read(path: Path, **options: object) -> tuple[list[Document], list[Refusal]]:
    records = list(read_documents(path, **options))  # type: ignore[arg-type]
    return [r for r in records if isinstance(r, Document)], [r for r in records if isinstance(r, Refusal)]


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_files_are_read_whole_over_members_and_frames(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](jsonl(TEXTS[:150])) + COMPRESS[ending](jsonl(TEXTS[150:])))
    documents, refusals = read(path)
    assert [d.text for d in documents] == TEXTS
    assert not refusals


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_file_cut_short_keeps_what_came_before_and_reports_the_damage(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    import random

    noise = random.Random(0)
    texts = ["".join(noise.choice("ابتثجحخدذرزسشصضطظعغفقكلمنهوي ") for _ in range(300)) for _ in range(2500)]
    whole = COMPRESS[ending](jsonl(texts))
    path.write_bytes(whole[: len(whole) // 2])
    documents, refusals = read(path)
    assert 0 < len(documents) < len(texts)
    assert [d.text for d in documents] == texts[: len(documents)]
    assert [r.reason for r in refusals] == ["damaged file"]


def test_bad_lines_are_refused_with_reason_line_and_offset_and_good_ones_stay(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good one", "id": 7}',
        b'{"text": "cut off',
        b'{"title": "no text"}',
        b'{"text": ["a list"]}',
        b'{"text": "\xcf\xe3\xd4\xde"}',
        b'{"text": "a \\u0000 b"}',
        b"[1, 2]",
        b"",
        b'{"text": null}',
        b'{"text": "last one"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    documents, refusals = read(path)
    offset_of = [sum(len(line) + 1 for line in lines[:n]) for n in range(len(lines))]
    assert [(d.id, d.text) for d in documents] == [
        ("7", "good one"), (f"a.jsonl:{offset_of[8]}", ""), (f"a.jsonl:{offset_of[9]}", "last one")
    ]
    assert [(offset_of.index(r.offset) + 1, r.reason) for r in refusals] == [
        (2, "malformed JSON"), (3, "no text key"), (4, "text is not a string"), (5, "invalid UTF-8"),
        (6, "NUL character"), (7, "not a JSON object"),
    ]  # fmt: skip
    assert refusals[0].offset == len(lines[0]) + 1
    assert refusals[0].raw == '{"text": "cut off'


def test_a_lone_surrogate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\\ud800 alone"}\n{"text": "fine"}\n')
    documents, refusals = read(path)
    assert len(documents) == 1
    assert len(refusals) == 1


def test_a_line_that_is_too_long_is_refused_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["x" * 5000, "short"]))
    documents, refusals = read(path, max_line_bytes=1000)
    assert [d.text for d in documents] == ["short"]
    assert [r.reason for r in refusals] == ["line too long"]


def test_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + jsonl(["one", "two"]).replace(b"\n", b"\r\n"))
    assert [d.text for d in read(path)[0]] == ["one", "two"]


def test_parquet_and_its_missing_column(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["نص", None], "id": ["x", "y"], "url": ["u", "v"]}), path)
    documents, _ = read(path)
    assert [(d.id, d.text, d.metadata["url"]) for d in documents] == [("x", "نص", "u"), ("y", "", "v")]
    with pytest.raises(UserError, match="has no column 'body'"):
        read(path, text_key="body")


@pytest.mark.parametrize(("unit", "count"), [("file", 1), ("paragraph", 2), ("line", 3)])
def test_units_of_plain_text(tmp_path: Path, unit: str, count: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("سطر أول\nسطر ثان\n\nفقرة أخرى\n", encoding="utf-8")
    assert len(read(path, text_unit=unit)[0]) == count


def test_nested_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"page": {"body": "inside"}, "key": "k"}\n')
    assert [(d.id, d.text) for d in read(path, text_key="page.body", id_key="key")[0]] == [("k", "inside")]


def test_inputs_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "empty").mkdir()
    for name, said in (("nothing.jsonl", "does not exist"), ("link.jsonl", "is a link to"), ("empty", "holds no file")):
        with pytest.raises(UserError, match=said) as caught:
            expand_inputs([str(tmp_path / name)])
        assert name in str(caught.value)
    with pytest.raises(UserError, match="is not read"):
        read_documents(tmp_path / "a.docx")


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    assert read(tmp_path / "a.jsonl") == ([], [])


def test_folders_and_globs_are_sorted_and_each_file_comes_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "notes.md", "_quarantine/x.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = expand_inputs([str(tmp_path), str(tmp_path / "*.jsonl")])
    assert [path.name for path in found] == ["a.jsonl.gz", "b.jsonl"]
