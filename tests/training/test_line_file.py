"""Lines that a full disk refuses are written when it has room again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_native.training.line_file import LineFile, read_json_lines


def test_lines_wait_for_a_full_disk_and_keep_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link, real = tmp_path / "lines", tmp_path / "real"
    link.symlink_to("/dev/full")
    file = LineFile(link)
    file.append("one")
    file.append("two")
    assert capsys.readouterr().err.count("No space left on device") == 1, "said once"
    link.unlink()
    link.symlink_to(real)
    file.append("three")
    assert real.read_text() == "one\ntwo\nthree\n"
    assert file.flush()


def test_a_line_that_a_kill_cut_short_is_ended_first(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text('whole\n{"cut')
    LineFile(tmp_path / "lines").append("next")
    assert (tmp_path / "lines").read_text() == 'whole\n{"cut\nnext\n'


def test_whole_lines_are_read_and_the_others_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lines"
    assert read_json_lines(path) == []
    path.write_text('{"step": 1, "nan": NaN}\n\n{"step": 2, "te\n[3]\n{"step": 4, "text": "نص"}\n{"step": 5}', encoding="utf-8")
    records = read_json_lines(path)
    assert [record["step"] for record in records] == [1, 4, 5]
    assert records[1]["text"] == "نص"
    assert capsys.readouterr().err.count("cut short is left out") == 2


def test_the_end_of_a_file_begins_with_a_whole_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lines"
    lines = [json.dumps({"step": step}) + "\n" for step in range(100, 120)]
    path.write_text("".join(lines))
    one = len(lines[0])
    for last_bytes, whole in ((one, 1), (one - 1, 0), (one + 1, 1), (3 * one, 3), (20 * one, 20), (1000 * one, 20), (1, 0)):
        assert [record["step"] for record in read_json_lines(path, last_bytes)] == list(range(120 - whole, 120))
    assert capsys.readouterr().err == ""
