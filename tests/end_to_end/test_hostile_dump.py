"""A dump with every defect dumps have: accounts balance, memory stays small, the run ends well or in one paragraph."""

import bz2
import gzip
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 1 << 20
SENTENCES = [
    "تقع المكتبة العامة في وسط المدينة القديمة وتضم آلاف المخطوطات التي جمعها العلماء عبر القرون",
    "يزور الباحثون هذه الخزائن من بلدان كثيرة لكي يطلعوا على ما فيها من كتب نادرة",
    "وقد بدأ المرممون عملهم قبل عامين على أيدي أساتذة كبار في هذه الصنعة الدقيقة",
    "ويقول مدير المكتبة إن العمل سيستمر حتى تصبح الكتب كلها متاحة للقراء في كل مكان",
    "أما الطلاب فإنهم يجدون في القاعة الكبيرة هدوءا لا يجدونه في أي مكان آخر من المدينة",
]


def article(seed):
    chosen = random.Random(seed).choices(SENTENCES, k=6)
    return "، ".join(f"{sentence} في عام {seed % 60 + 1960}" for sentence in chosen) + "."


COMMAND = """
import sys
from megatron_native.cli import main
code = main(sys.argv[2:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
open(sys.argv[1], "w").write(peak.split()[1])
sys.exit(code)
"""


def run(*words, peak_file=os.devnull):
    """(exit code, stdout, stderr) of a command; its own peak memory in KiB, inherited one apart, is left in a file."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(peak_file), *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """Good articles (30 of them, 5 in every kind of file) among everything that is wrong with dumps."""
    folder = tmp_path_factory.mktemp("dump")
    good = [{"id": str(number), "text": article(number)} for number in range(30)]
    lines = [json.dumps(record, ensure_ascii=False).encode() for record in good]
    hostile = [
        b"",
        b'{"text": "',
        b'{"text": "' + b"x" * (3 * MEGABYTE) + b'"}',  # longer than the limit given
        b'{"text": "a\\u0000b"}',
        b'{"text": "\\ud800"}',
        '{"text": "سلام عليكم"}'.encode("cp1256"),
        b"[" * 2000 + b"]" * 2000,
        b'{"text": 17}',
        b'{"text": {"nested": "' + b"n" * 100 + b'"}}',
        b'{"text": null}',
        b'{"text": ""}',
        b'{"title": "no text at all"}',
        b'{"text": NaN}',
        b"\xef\xbb\xbf",
        b"null",
        b'{"id": 12345678901234567890123, "text": "' + article(500).encode() + b'"}',
        lines[0],  # a duplicate id with the same text
        json.dumps({"id": "1", "text": article(501)}, ensure_ascii=False).encode(),  # and one with another
        b"\0" * 1000,
    ]
    (folder / "a.jsonl").write_bytes(b"\n".join([hostile[0], *lines[:5], *hostile[1:]]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines[5:10])) + b"\0" * 512)
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(b"\n".join(lines[10:15]) + b"\n")[:-3])
    (folder / "d.jsonl.bz2").write_bytes(bz2.compress(b"\n".join(lines[15:20]) + b"\n") + b"garbage")
    (folder / "bomb.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"a" * (300 * MEGABYTE) + b'"}\n' + lines[0]))
    (folder / "e.txt").write_text(article(600), encoding="utf-8")
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "f.json").write_text(json.dumps(good[20:25], ensure_ascii=False, indent=1), encoding="utf-8")
    with zipfile.ZipFile(folder / "g.zip", "w") as archive:
        archive.writestr("a.json", json.dumps(good[25:30], ensure_ascii=False))
        archive.writestr("__MACOSX/a.json", "junk")
    pa.parquet.write_table(pa.table({"text": [article(700), None, "قصير"], "n": [1, 2, 3]}), folder / "h.parquet")
    whole = (folder / "h.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    return folder


def balanced(counts):
    return counts["read"] == counts["kept"] + sum(counts["dropped"].values()) + sum(counts["quarantined"].values())


@pytest.mark.parametrize("workers", [1, 2])
def test_the_dump_goes_through_and_every_line_is_accounted_for(dump, tmp_path, workers):
    code, out, err = run(
        "clean", "--input", dump, "--output", tmp_path / "clean", "--max-line-bytes", MEGABYTE, "--workers", workers,
        "--part-bytes", 100_000, "--preset", "none", "--json", peak_file=tmp_path / "peak",
    )  # fmt: skip
    assert code == 0, err
    manifest = json.loads(out)
    counts = manifest["counts"]
    assert balanced(counts)
    assert counts["quarantined"] == {
        "damaged file": 3, "line too long": 2, "malformed JSON": 4, "text is not a string": 2, "not a JSON object": 1,
        "NUL character": 1, "lone surrogate": 1, "invalid UTF-8": 1, "no text key": 1,
    }  # fmt: skip
    assert "damaged" in err
    kept = {
        json.loads(line)["id"]
        for path in (tmp_path / "clean" / "ar").glob("*.zst")
        for line in zstandard.ZstdDecompressor().stream_reader(path.read_bytes(), read_across_frames=True).read().splitlines()
    }
    readable = {str(n) for n in [*range(10), *range(15, 30)]}
    assert readable <= kept
    peak = int((tmp_path / "peak").read_text()) << 10
    assert peak < 700 * MEGABYTE, f"{peak / MEGABYTE:.0f} MB: the gzip bomb alone inflates to 300"
    code, out, err = run(
        "dedup", "--input", tmp_path / "clean", "--output", tmp_path / "dedup", "--json", "--workers", workers
    )
    assert code == 0, err
    counts = json.loads(out)["counts"]
    assert balanced(counts)
    assert counts["dropped"].get("exact copy", 0) >= 1


def test_a_table_of_another_schema_stops_in_one_paragraph(dump, tmp_path):
    pa.parquet.write_table(pa.table({"body": ["نص"]}), tmp_path / "other.parquet")
    code, _, err = run("clean", "--input", tmp_path / "other.parquet", dump / "e.txt", "--output", tmp_path / "clean")
    assert code == 2
    assert [line for line in err.splitlines() if line] == [
        f"error: {tmp_path / 'other.parquet'} has no column 'text'; it has body; choose one of them as the text key."
    ]


def test_an_input_that_vanishes_stops_in_one_paragraph_and_the_rest_is_kept(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"text": article(number)}, ensure_ascii=False) + "\n")
    code = f"""
import sys
from pathlib import Path
from megatron_native.corpus import clean as module
from megatron_native.cli import main
original = module._clean_part
def vanishing(part, on_read, **more):
    Path({str(tmp_path / "3.jsonl")!r}).unlink(missing_ok=True)
    return original(part, on_read, **more)
module._clean_part = vanishing
sys.exit(main(["clean", "--input", {str(tmp_path)!r}, "--output", {str(tmp_path.parent / "gone")!r}, "--workers", "1",
               "--part-bytes", "2000"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "3.jsonl can't be read: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_stops_in_one_paragraph_and_goes_on_when_there_is_room(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("no right to mount a small tmpfs here")
    try:
        with open(tmp_path / "in.jsonl", "w", encoding="utf-8") as file:
            for number in range(3000):
                words = "".join(random.Random(number).choices("ابتثجحخدذرزسشصضطظعغفقكلمنهوي", k=400))
                text = article(number) + " " + " ".join(words[start : start + 5] for start in range(0, 400, 5))
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        command = ["clean", "--input", tmp_path / "in.jsonl", "--output", small / "out", "--part-bytes", 500_000]
        code, _, err = run(*command, "--preset", "none", "--workers", 1)
        assert code == 2
        assert "No space left on device" in err and "Finished parts are kept" in err
        assert "Traceback" not in err
        subprocess.run(["mount", "-o", "remount,size=50m", small], check=True)
        code, out, err = run(*command, "--preset", "none", "--workers", 1, "--json")
        assert code == 0, err
        assert balanced(json.loads(out)["counts"])
        assert json.loads(out)["counts"]["read"] == 3000
    finally:
        subprocess.run(["umount", small], check=False)
