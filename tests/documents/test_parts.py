"""However files are cut, every record comes once, in order, with the same id; and how they are cut depends on them alone."""

import bz2
import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_native.documents.inputs import common_root, expand_inputs
from megatron_native.documents.parts import plan_parts
from megatron_native.documents.readers import read_documents, read_part
from megatron_native.documents.records import ReadSettings, Refusal
from megatron_native.errors import UserError

TEXTS = [f"النص رقم {number} " + "كلمة " * (number % 7) for number in range(200)]


def records_of(path, part_bytes, **reading):
    files = expand_inputs([str(path)])
    parts = plan_parts(files, common_root([str(path)], files), reading.get("text_unit", "file"), part_bytes)
    return parts, [record for part in parts for record in read_part(part, ReadSettings(**reading))]


def lines_of(texts):
    return [json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts]


def multi_frame(lines, per_frame):
    compress = zstandard.ZstdCompressor().compress
    return b"".join(compress(b"".join(lines[start : start + per_frame])) for start in range(0, len(lines), per_frame))


@pytest.mark.parametrize("part_bytes", [1, 7, 64, 1000, 1 << 20])
def test_plain_jsonl_is_cut_at_any_byte_and_no_line_is_lost_or_doubled(tmp_path, part_bytes):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(lines_of(TEXTS[:40])))
    parts, records = records_of(path, part_bytes)
    whole = list(read_documents(path))
    assert [r.text for r in records] == TEXTS[:40]
    assert [(r.id, r.offset) for r in records] == [(r.id, r.offset) for r in whole]
    assert len(parts) >= path.stat().st_size // max(part_bytes, 1)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=12),
    cut=st.integers(1, 40),
    last_break=st.booleans(),
    limit=st.integers(1, 40),
)
def test_ranges_agree_with_the_whole_whatever_the_lines(tmp_path_factory, lengths, cut, last_break, limit):
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    raw = b"\n".join(b'"' + b"x" * length + b'"' for length in lengths) + (b"\n" if last_break else b"")
    path.write_bytes(raw)
    _, records = records_of(path, cut, max_line_bytes=limit)
    whole = list(read_documents(path, max_line_bytes=limit))
    shown = [(r.offset, r.reason, r.raw) for r in records if isinstance(r, Refusal)]
    assert shown == [(r.offset, r.reason, r.raw) for r in whole if isinstance(r, Refusal)]
    assert len(shown) == len(lengths)


def test_zstd_is_cut_between_frames_though_lines_run_over_them(tmp_path):
    raw = b"".join(lines_of(TEXTS))
    pieces = [raw[start : start + 777] for start in range(0, len(raw), 777)]  # frames end in the middle of lines
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(piece) for piece in pieces))
    parts, records = records_of(path, 1000)
    assert [r.text for r in records] == TEXTS
    assert [r.id for r in records] == [r.id for r in read_documents(path)]
    assert len(parts) > 5


def test_zstd_whose_frames_do_not_tell_their_size_is_read_whole(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    with open(path, "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as stream:
        stream.write(b"".join(lines_of(TEXTS)))
    parts, records = records_of(path, 100)
    assert (len(parts), [r.text for r in records]) == (1, TEXTS)


def test_parquet_is_cut_between_row_groups(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": TEXTS, "n": list(range(200))}), path, row_group_size=30)
    parts, records = records_of(path, 400)
    assert [r.text for r in records] == TEXTS
    assert [r.id for r in records] == [f"a.parquet:{row}" for row in range(200)]
    assert len(parts) > 2


def test_an_archive_is_cut_into_its_members_and_arrays_are_read(tmp_path):
    path = tmp_path / "news.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for day in range(3):
            articles = [{"content": text, "title": "عنوان [\"]"} for text in TEXTS[day * 10 : day * 10 + 10]]
            archive.writestr(f"{day}.json", json.dumps(articles, ensure_ascii=False, indent=day))
        archive.writestr("readme.md", "x")
    parts, records = records_of(path, 100, text_key="content")
    assert [r.text for r in records] == TEXTS[:30]
    assert len(parts) == 3
    assert records[0].source == "news.zip!0.json"
    assert len({r.id for r in records}) == 30


@pytest.mark.parametrize("pretty", [None, 2])
def test_a_json_array_in_a_file_is_read_element_by_element(tmp_path, pretty):
    path = tmp_path / "a.json"
    records = [{"text": 'نص فيه "اقتباس" و[قوس] و\\ مائلة', "n": [1, [2]]}, {"text": "ثان"}, 5]
    path.write_text(json.dumps(records, ensure_ascii=False, indent=pretty))
    found = list(read_documents(path))
    assert [r.text for r in found[:2]] == [records[0]["text"], "ثان"]
    assert found[2].reason == "not a JSON object"


def test_an_array_that_is_not_closed_keeps_what_came_before(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "أول"},\n {"text": "ثا')
    found = list(read_documents(path))
    assert found[0].text == "أول"
    assert [r.reason for r in found[1:]] == ["damaged file"]


def test_a_json_file_of_lines_is_cut_and_one_of_an_array_is_not(tmp_path):
    (tmp_path / "lines.json").write_bytes(b"".join(lines_of(TEXTS)))
    (tmp_path / "array.json").write_text(json.dumps([{"text": text} for text in TEXTS], indent=1))
    assert len(records_of(tmp_path / "lines.json", 1000)[0]) > 5
    assert len(records_of(tmp_path / "array.json", 1000)[0]) == 1
    assert [r.text for r in records_of(tmp_path / "array.json", 1000)[1]] == TEXTS


def test_what_datasets_saves_is_read_in_its_order(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for number, name in enumerate(names):
        table = pa.table({"text": TEXTS[number * 5 : number * 5 + 5]})
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    assert [r.text for r in records_of(folder, 1 << 20)[1]] == TEXTS[:10]


def test_small_files_are_gathered_and_folders_kept_apart(tmp_path):
    for name in ("ar/1", "ar/2", "ar/3", "en/1"):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(lines_of(TEXTS[:2])))
    parts, records = records_of(tmp_path, 1 << 20)
    assert [(part.folder, len(part.pieces)) for part in parts] == [("ar", 3), ("en", 1)]
    assert len(records) == 8


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_what_cannot_be_cut_is_one_part(tmp_path, ending, compress):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compress(b"".join(lines_of(TEXTS))))
    parts, records = records_of(path, 10)
    assert (len(parts), len(records)) == (1, 200)


def test_a_bomb_of_bz2_is_read_in_bounded_pieces(tmp_path):
    path = tmp_path / "a.jsonl.bz2"
    path.write_bytes(bz2.compress(b'{"text": "' + b"a" * (200 << 20) + b'"}\n{"text": "b"}\n'))
    assert path.stat().st_size < 1000
    found = list(read_documents(path, max_line_bytes=1 << 20))
    assert [getattr(r, "reason", None) or r.text for r in found] == ["line too long", "b"]


def test_plain_text_is_cut_only_where_a_document_is_a_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(TEXTS))
    assert len(records_of(path, 500, text_unit="line")[0]) > 3
    assert [r.text for r in records_of(path, 500, text_unit="line")[1]] == TEXTS
    assert len(records_of(path, 500, text_unit="file")[0]) == 1


def test_an_archive_with_nothing_to_read_and_a_broken_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("picture.png", "x")
    with pytest.raises(UserError, match=r"holds no \.json"):
        records_of(tmp_path / "a.zip", 100)
    Path(tmp_path / "b.zip").write_bytes(b"PK\x03\x04 broken")
    assert [r.reason for r in records_of(tmp_path / "b.zip", 100)[1]] == ["damaged file"]
