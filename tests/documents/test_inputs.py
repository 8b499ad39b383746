"""What paths, globs, folders and stage folders stand for, and what is refused before anything is written."""

import os
import socket

import pytest

from megatron_native.documents.inputs import expand_inputs
from megatron_native.errors import UserError
from megatron_native.manifest import build_manifest, file_entry, write_json
from tests.corpus.corpus_files import write_jsonl

COUNTS = {"read": 0, "kept": 0, "dropped": {}, "quarantined": {}}


def stage_folder(folder, *names):
    outputs = [file_entry(write_jsonl(folder / name, [{"text": "نص"}]), folder, 1) for name in names]
    write_json(folder / "manifest.json", build_manifest("clean", {}, [], outputs, COUNTS))
    return folder


def names(found, below):
    return [str(path.relative_to(below)) for path in found]


def test_of_a_stage_folder_the_documents_in_its_manifest_are_taken(tmp_path):
    stage = stage_folder(tmp_path / "cleaned", "ar/part-00000.jsonl", "_quarantine/part-00000.jsonl")
    write_jsonl(stage / "ar" / "stray.jsonl", [{"text": "ليس منها"}])
    write_jsonl(stage / "duplicates.jsonl", [])
    assert names(expand_inputs([str(stage)]), stage) == ["ar/part-00000.jsonl"]


def test_a_stage_folder_inside_a_folder_is_known_too(tmp_path):
    stage_folder(tmp_path / "work" / "b", "ar/part-00000.jsonl")
    write_jsonl(tmp_path / "work" / "b" / "duplicates.jsonl", [])
    write_jsonl(tmp_path / "work" / "a.jsonl", [])
    assert names(expand_inputs([str(tmp_path / "work")]), tmp_path / "work") == ["a.jsonl", "b/ar/part-00000.jsonl"]


@pytest.mark.parametrize("below", [".", "sub"])
def test_a_stage_that_did_not_finish_is_refused_wherever_it_lies(tmp_path, below):
    write_jsonl(tmp_path / "in" / below / "ar" / "part-00000.jsonl", [])
    (tmp_path / "in" / below / "_progress").mkdir()
    with pytest.raises(UserError, match="did not finish"):
        expand_inputs([str(tmp_path / "in")])


def test_an_output_that_has_gone_from_a_stage_folder_is_named(tmp_path):
    stage = stage_folder(tmp_path / "cleaned", "ar/part-00000.jsonl", "ar/part-00001.jsonl")
    (stage / "ar" / "part-00001.jsonl").unlink()
    with pytest.raises(UserError, match=r"part-00001\.jsonl is in the folder's manifest but not there"):
        expand_inputs([str(stage)])


def test_a_manifest_of_someone_else_is_not_guessed_at(tmp_path):
    write_jsonl(tmp_path / "in" / "a.jsonl", [])
    (tmp_path / "in" / "manifest.json").write_text('{"name": "a data set"}')
    with pytest.raises(UserError, match="is no stage manifest"):
        expand_inputs([str(tmp_path / "in")])


@pytest.mark.parametrize("pattern", ["link.jsonl", ".", "*.jsonl"])
def test_a_link_that_leads_nowhere_is_an_error_however_it_is_found(tmp_path, pattern):
    write_jsonl(tmp_path / "a.jsonl", [])
    (tmp_path / "link.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(UserError, match=r"link\.jsonl is a link to gone\.jsonl, which does not exist"):
        expand_inputs([str(tmp_path / pattern)])


def test_links_to_files_and_folders_are_followed_and_circles_refused(tmp_path):
    write_jsonl(tmp_path / "disk" / "a.jsonl", [])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "disk")
    assert names(expand_inputs([str(tmp_path / "in")]), tmp_path) == ["in/linked/a.jsonl"]
    (tmp_path / "in" / "around").symlink_to(tmp_path)
    with pytest.raises(UserError, match="around is a link to a folder around it"):
        expand_inputs([str(tmp_path / "in")])


def test_a_file_named_twice_comes_once_in_the_order_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jsonl", "a.jsonl"):
        write_jsonl(tmp_path / name, [])
    found = expand_inputs(["b.jsonl", str(tmp_path / "b.jsonl"), "./b.jsonl", "*.jsonl"])
    assert [str(path) for path in found] == ["b.jsonl", "a.jsonl"]


@pytest.mark.parametrize("pattern", ["a.csv", "a.*"])
def test_a_kind_of_file_that_is_not_read_is_refused_at_once(tmp_path, pattern):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(UserError, match=r"a\.csv: this kind of file is not read; known are \.jsonl"):
        expand_inputs([str(tmp_path / pattern)])


def test_a_socket_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("a.jsonl")
        with pytest.raises(UserError, match=r"a\.jsonl is neither a file nor a folder"):
            expand_inputs(["a.jsonl"])


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", [])
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may read everything
    with pytest.raises(UserError, match=r"a\.jsonl can't be read: permission denied"):
        expand_inputs([str(path)])
