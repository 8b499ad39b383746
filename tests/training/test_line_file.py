"""Lines that a full disk refuses are written when it has room again."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_native.training.line_file import LineFile


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
