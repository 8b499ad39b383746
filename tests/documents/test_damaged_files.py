"""Compressed and columnar files as they come: many members, padding, unusual frames, cut short, corrupt, not UTF-8."""

import bz2
import gzip
import json
import random
import time
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megatron_native.documents.readers import read_documents
from megatron_native.documents.records import Document, Refusal

COMPRESS = {"gz": lambda raw: gzip.compress(raw, 1), "zst": zstandard.compress, "bz2": bz2.compress}


def lines(count, first=0):
    return [json.dumps({"text": f"نص رقم {number}", "id": str(number)}).encode() + b"\n" for number in range(first, count)]


def read(path, **options):
    records = list(read_documents(path, **options))
    return [r for r in records if isinstance(r, Document)], [r for r in records if isinstance(r, Refusal)]


def written(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    return tmp_path / name


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("missing", [1, 8])
def test_even_one_byte_missing_at_the_end_is_told(tmp_path, ending, missing):
    whole = COMPRESS[ending](b"".join(lines(50)))
    documents, refusals = read(written(tmp_path, f"a.jsonl.{ending}", whole[:-missing]))
    assert [r.reason for r in refusals] == ["damaged file"]
    assert refusals[0].offset > max((d.offset for d in documents), default=-1)


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_member_that_is_whole_is_kept_when_the_one_after_it_is_cut(tmp_path, ending):
    first, second = COMPRESS[ending](b"".join(lines(50))), COMPRESS[ending](b"".join(lines(500, first=50)))
    documents, refusals = read(written(tmp_path, f"a.jsonl.{ending}", first + second[: len(second) // 2]))
    assert [d.id for d in documents[:50]] == [str(n) for n in range(50)]
    assert [d.id for d in documents] == [str(n) for n in range(len(documents))]
    assert [r.reason for r in refusals] == ["damaged file"]


@pytest.mark.parametrize("ending", COMPRESS)
def test_what_follows_the_data_and_is_no_data_is_told_and_costs_nothing(tmp_path, ending):
    documents, refusals = read(written(tmp_path, f"a.jsonl.{ending}", COMPRESS[ending](b"".join(lines(50))) + b"garbage"))
    assert len(documents) == 50
    assert [r.reason for r in refusals] == ["damaged file"]


def test_bytes_changed_in_the_middle_of_a_gzip_file_are_noticed(tmp_path):
    noise = random.Random(3)
    raw = b"".join(json.dumps({"text": noise.randbytes(500).hex()}).encode() + b"\n" for _ in range(200))
    whole = bytearray(gzip.compress(raw, 1))
    whole[len(whole) // 2] ^= 0xFF
    documents, refusals = read(written(tmp_path, "a.jsonl.gz", bytes(whole)))
    assert "damaged file" in {r.reason for r in refusals}
    assert documents[0].text == json.loads(raw.split(b"\n")[0])["text"]


def test_zeros_after_a_gzip_member_are_padding_however_many(tmp_path):
    member = gzip.compress(b"".join(lines(50)))
    documents, refusals = read(written(tmp_path, "a.jsonl.gz", member + bytes(100_000) + member + bytes(9_000)))
    assert (len(documents), refusals) == (100, [])


def test_a_gzip_file_of_zeros_alone_is_not_taken_for_an_empty_one(tmp_path):
    assert [r.reason for r in read(written(tmp_path, "a.jsonl.gz", bytes(9_000)))[1]] == ["damaged file"]


def test_skippable_zstd_frames_as_pzstd_writes_them_are_skipped(tmp_path):
    frame = zstandard.compress(b"".join(lines(50)))
    skippable = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"hello"
    documents, refusals = read(written(tmp_path, "a.jsonl.zst", skippable + frame + skippable + frame))
    assert (len(documents), refusals) == (100, [])


def test_zstd_written_with_a_long_window_is_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)  # zstd --long=30
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    documents, refusals = read(written(tmp_path, "a.jsonl.zst", compressor.compress(b"".join(lines(50))) + compressor.flush()))
    assert (len(documents), refusals) == (50, [])


@pytest.mark.parametrize("ending", COMPRESS)
def test_the_ending_is_told_in_either_case(tmp_path, ending):
    path = written(tmp_path, f"DUMP.JSONL.{ending.upper()}", COMPRESS[ending](b"".join(lines(5))))
    assert len(read(path)[0]) == 5


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_an_endless_line_of_a_small_file_is_refused_and_not_held(tmp_path, ending):
    raw = b'{"text": "' + b"a" * (100 << 20) + b'"}\n' + b"".join(lines(3))
    path = written(tmp_path, f"a.jsonl.{ending}", COMPRESS[ending](raw))
    del raw
    tracemalloc.start()
    documents, refusals = read(path, max_line_bytes=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [r.reason for r in refusals] == ["line too long"]
    assert [d.offset for d in documents[:1]] == [(100 << 20) + 13]
    assert peak < 64 << 20


def test_a_line_across_many_pieces_is_put_together_in_linear_time(tmp_path):
    path = written(tmp_path, "a.jsonl", b'{"text": "' + b"a" * (30 << 20) + b'"}\n')
    begin = time.perf_counter()
    assert len(read(path)[0][0].text) == 30 << 20
    assert time.perf_counter() - begin < 5


def parquet(tmp_path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


def test_a_parquet_row_that_is_not_utf8_is_refused_alone(tmp_path):
    offsets, data = b"".join(n.to_bytes(4, "little") for n in (0, 3, 6, 9)), b"abc\xff\xfeddef"
    column = pyarrow.StringArray.from_buffers(3, pyarrow.py_buffer(offsets), pyarrow.py_buffer(data))
    documents, refusals = read(parquet(tmp_path, text=column))
    assert [(d.text, d.offset) for d in documents] == [("abc", 0), ("def", 2)]
    assert [(r.reason, r.offset) for r in refusals] == [("invalid UTF-8", 1)]


def test_parquet_text_that_is_bytes_is_refused_and_its_beginning_kept(tmp_path):
    documents, refusals = read(parquet(tmp_path, text=pyarrow.array([b"\xd9\x86"], pyarrow.binary()), url=["https://example.org"]))
    assert not documents
    assert refusals[0].reason == "text is not a string"
    assert "https://example.org" in refusals[0].raw


def test_parquet_structs_are_reached_by_dots(tmp_path):
    documents, _ = read(parquet(tmp_path, page=[{"body": "نص", "url": "u"}]), text_key="page.body")
    assert (documents[0].text, documents[0].metadata) == ("نص", {"page": {"url": "u"}})


def test_more_rows_than_a_batch_are_numbered_through(tmp_path):
    documents, _ = read(parquet(tmp_path, text=[f"نص {n}" for n in range(2500)]))
    assert [d.offset for d in documents] == list(range(2500))
    assert documents[2400].id == "a.parquet:2400"


def test_a_parquet_file_cut_short_is_refused_and_the_run_goes_on(tmp_path):
    path = parquet(tmp_path, text=["نص"] * 100)
    path.write_bytes(path.read_bytes()[:-20])
    documents, refusals = read(path)
    assert not documents
    assert [(r.source, r.reason) for r in refusals] == [(str(path), "damaged file")]
