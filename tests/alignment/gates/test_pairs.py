"""Files of pairs through the gates, in the forms that were released: what is kept, refused, counted, and done again."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from megatron_native.cli import main

GOOD = {"origin": "زار الوفد الطائف في 3 ايام .", "rewritten": "زار الوفد الطائف في 3 أيام."}
BAD = {"origin": "زار الوفد الطائف في 3 ايام .", "rewritten": "التحليل: النص سليم.\nزار الوفد الطائف في 5 أيام."}
REPOSITORY = Path(__file__).resolve().parents[3]


def lines_of(folder):
    found = []
    for path in sorted(Path(folder).glob("part-*.jsonl.zst")):
        with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as raw:
            found += [json.loads(line) for line in io.TextIOWrapper(raw, encoding="utf-8")]
    return found


def write_lines(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def gate(*arguments):
    return main(["gate", *map(str, arguments), "--workers", "1"])


def test_released_jsonl(tmp_path, capsys):
    released = tmp_path / "alignment_data_split"
    released.mkdir()
    for number in range(2):
        write_lines(released / f"alignment_data_{number}.jsonl", [GOOD, BAD])
    assert gate("--input", released, "--output", tmp_path / "out", "--json") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert lines_of(tmp_path / "out") == [GOOD, GOOD]
    refused = lines_of(tmp_path / "out" / "_refused")
    assert [{key: record[key] for key in ("origin", "rewritten")} for record in refused] == [BAD, BAD]
    assert {"numbers", "scaffold"} <= set(refused[0]["gates"]["refused"])
    assert "5" in refused[0]["gates"]["refused"]["numbers"]
    counts = manifest["counts"]
    assert (counts["read"], counts["kept"], sum(counts["dropped"].values())) == (4, 2, 2)
    assert manifest["gates"]["numbers"] == {"refused": 2, "alone": 0}
    assert manifest["parameters"]["gates"]["numbers"]["most_new"] == 0


def test_the_seed_data_is_one_array_and_its_fields_are_kept(tmp_path, capsys):
    records = [
        {"id": 7, "instruction": "polish", **GOOD, "score": [1, 2], "model": {"name": "x"}},
        {"id": "b", **BAD},
        {"id": 9, "origin": "نص"},
        {"id": 10, "rewritten": "نص"},
    ]
    source = tmp_path / "rewrite_seed_data.json"
    source.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    assert gate("--input", source, "--output", tmp_path / "out") == 0
    assert lines_of(tmp_path / "out") == [records[0]]
    assert [record["id"] for record in lines_of(tmp_path / "out" / "_refused")] == ["b"]
    reasons = [record["reason"] for record in lines_of(tmp_path / "out" / "_quarantine")]
    assert reasons == ["no text key", "no origin"]
    shown = capsys.readouterr().out
    assert "by gate" in shown
    assert "quarantined: no origin" in shown


def test_scores_are_kept_when_asked_for(tmp_path):
    source = write_lines(tmp_path / "p.jsonl", [GOOD])
    assert gate("--input", source, "--output", tmp_path / "out", "--keep-scores") == 0
    (record,) = lines_of(tmp_path / "out")
    assert record["gates"]["passed"] is True
    assert record["gates"]["scores"]["numbers"] == 0.0


def test_other_names_of_the_fields(tmp_path):
    record = {"texts": {"before": GOOD["origin"], "after": GOOD["rewritten"], "by": "x"}}
    source = write_lines(tmp_path / "p.jsonl", [record])
    keys = ("--origin-key", "texts.before", "--rewritten-key", "texts.after")
    assert gate("--input", source, "--output", tmp_path / "out", *keys) == 0
    assert lines_of(tmp_path / "out") == [record]


def test_output_of_one_run_is_input_of_the_next(tmp_path):
    source = write_lines(tmp_path / "p.jsonl", [GOOD, BAD])
    assert gate("--input", source, "--output", tmp_path / "one") == 0
    assert gate("--input", tmp_path / "one", "--output", tmp_path / "two") == 0
    assert lines_of(tmp_path / "two") == [GOOD]
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["lineage"][0]["manifest"] == "one/manifest.json"


def test_a_finished_run_is_skipped_and_other_settings_are_refused(tmp_path, capsys):
    source = write_lines(tmp_path / "p.jsonl", [GOOD, BAD])
    assert gate("--input", source, "--output", tmp_path / "out") == 0
    assert gate("--input", source, "--output", tmp_path / "out") == 0
    assert "skipped" in capsys.readouterr().out
    assert gate("--input", source, "--output", tmp_path / "out", "--set", "numbers.most_new=2") != 0
    assert "numbers.most_new" in capsys.readouterr().err


def test_killed_and_run_again_gives_the_same_bytes(tmp_path):
    records = [GOOD | {"n": n} if n % 3 else BAD | {"n": n} for n in range(12000)]
    source = write_lines(tmp_path / "p.jsonl", records)
    command = [
        sys.executable, "-m", "megatron_native", "gate", "--input", str(source), "--part-bytes", "150000", "--workers", "1",
        "--output",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    out = tmp_path / "killed"
    process = subprocess.Popen([*command, str(out)], env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    parts = out / "_progress" / "parts"
    limit = time.monotonic() + 120
    while not (parts.is_dir() and len(list(parts.glob("*.json"))) >= 2) and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    for folder in (out, tmp_path / "whole"):
        subprocess.run([*command, str(folder)], env=environment, check=True, capture_output=True)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (out, tmp_path / "whole")]
    assert manifests[0]["outputs"] == manifests[1]["outputs"]
    assert manifests[0]["counts"] == manifests[1]["counts"]
    assert sorted(record["n"] for record in lines_of(out)) == [n for n in range(12000) if n % 3]


def test_one_pair_is_explained(tmp_path, capsys):
    source = write_lines(tmp_path / "p.jsonl", [GOOD, BAD])
    assert gate("--input", source, "--explain", 2) == 0
    shown = capsys.readouterr().out
    assert BAD["rewritten"] in shown
    assert "REFUSED" in shown
    assert gate("--pair", GOOD["origin"], GOOD["rewritten"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert gate("--input", source, "--explain", 3) != 0
    assert "the inputs hold 2 pairs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--input PATH"), (("--input", "x.jsonl"), "--output FOLDER"),
        (("--pair", "a", "b", "--set", "judge.enabled=true"), "needs a backend"),
        (("--pair", "a", "b", "--gates", "none.yaml"), "can't be read"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_a_sentence(arguments, said, capsys):
    assert gate(*arguments) != 0
    assert said in capsys.readouterr().err


def test_the_gates_are_listed(capsys):
    assert gate("--list", "--json") == 0
    assert json.loads(capsys.readouterr().out)["numbers"]["enabled"] is True
