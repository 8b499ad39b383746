"""A stage can be killed at any moment and run again, and never mixes two settings or two inputs in one folder."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from megatron_native.corpus.account import Account
from megatron_native.corpus.clean import CleanSettings, clean
from megatron_native.corpus.stage import PROGRESS, Execution, PartResult, run_stage
from megatron_native.documents.parts import plan_parts
from megatron_native.documents.writers import ShardWriter, written
from megatron_native.engine.tasks import Share
from megatron_native.errors import UserError
from megatron_native.manifest import write_json
from tests.corpus.corpus_files import STORY, arabic_text, part_bytes, read_part, write_jsonl

REPOSITORY = Path(__file__).resolve().parents[2]


def copied(part, on_read, output):
    """A stage's work: one record out for every part."""
    path = Path(part.pieces[0].path)
    with ShardWriter(output / f"{part.name}.jsonl.zst") as writer:
        writer.write({"file": path.name, "text": path.read_text()})
    on_read(part.bytes)
    return PartResult(Account(read=1, kept=1), written(output, [writer])).as_json()


def dies_on_c(part, on_read, output):
    if part.pieces[0].path.endswith("c.jsonl"):
        raise UserError("c is bad")
    return copied(part, on_read, output)


def loses_a_record(part, on_read, output):
    result = copied(part, on_read, output)
    result["account"]["read"] += 1
    return result


@pytest.fixture
def files(tmp_path):
    return [write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}]) for name in "abcd"]


def stage(files, output, work=copied, workers=1, share=None, engine="local", **parameters):
    root = files[0].parent.resolve()
    parts = plan_parts(files, root, part_bytes=20)  # a file each

    def run(stage_run):
        task = partial(work, output=stage_run.output)
        return stage_run.finish(stage_run.do("parts", parts, task, [part.bytes for part in parts]), ())

    return run_stage("test", files, root, output, parameters, Execution(workers, engine, share=share or Share()), run)


def test_a_run_that_broke_off_goes_on_where_it_was(files, tmp_path):
    with pytest.raises(UserError, match="c is bad"):
        stage(files, tmp_path / "out", dies_on_c)
    first = (tmp_path / "out" / "part-00000.jsonl.zst").stat().st_mtime_ns
    assert not (tmp_path / "out" / "manifest.json").exists()
    result = stage(files, tmp_path / "out")
    assert (tmp_path / "out" / "part-00000.jsonl.zst").stat().st_mtime_ns == first
    assert result.manifest["counts"]["read"] == 4
    stage(files, tmp_path / "undisturbed")
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "undisturbed")
    assert not (tmp_path / "out" / PROGRESS).exists()


def test_an_error_in_one_process_is_told_and_the_others_work_is_kept(files, tmp_path):
    with pytest.raises(UserError, match="c is bad"):
        stage(files, tmp_path / "out", dies_on_c, workers=2)
    assert stage(files, tmp_path / "out", workers=2).manifest["counts"]["kept"] == 4


def test_inputs_in_another_order_are_other_inputs(files, tmp_path):
    """Part numbers follow the order: going on with another one would do a file twice and leave one out."""
    with pytest.raises(UserError, match="c is bad"):
        stage(files, tmp_path / "out", dies_on_c)
    with pytest.raises(UserError, match=r"holds an unfinished test with other settings \(the input files\)"):
        stage(files[::-1], tmp_path / "out")


def test_a_changed_input_is_another_input(files, tmp_path):
    with pytest.raises(UserError, match="c is bad"):
        stage(files, tmp_path / "out", dies_on_c)
    write_jsonl(files[0], [{"text": "changed"}])
    with pytest.raises(UserError, match="the input files"):
        stage(files, tmp_path / "out")


def test_other_parameters_are_refused_with_the_difference(files, tmp_path):
    with pytest.raises(UserError, match="c is bad"):
        stage(files, tmp_path / "out", dies_on_c, depth={"x": 1})
    with pytest.raises(UserError, match=r"depth\.x: 1 there, 2 asked for"):
        stage(files, tmp_path / "out", depth={"x": 2})
    stage(files, tmp_path / "out", depth={"x": 1})
    with pytest.raises(UserError, match=r"depth\.x: 1 there, 2 asked for"):
        stage(files, tmp_path / "out", depth={"x": 2})
    with pytest.raises(UserError, match=r"inputs: new or changed none, gone or changed \['.*d\.jsonl'\]"):
        stage(files[:3], tmp_path / "out", depth={"x": 1})


def test_a_stage_that_is_done_is_skipped_and_nothing_is_touched(files, tmp_path):
    stage(files, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert stage(files, tmp_path / "out").skipped
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_stage_that_is_done_but_no_longer_whole_is_not_skipped(files, tmp_path):
    stage(files, tmp_path / "out")
    part = tmp_path / "out" / "part-00001.jsonl.zst"
    part.write_bytes(b"")
    with pytest.raises(UserError, match=r"part-00001.jsonl.zst has 0 bytes, but .*manifest.json says"):
        stage(files, tmp_path / "out")
    part.unlink()
    with pytest.raises(UserError, match=r"part-00001.jsonl.zst is not there"):
        stage(files, tmp_path / "out")


def test_what_a_kill_after_the_last_step_left_is_tidied(files, tmp_path):
    stage(files, tmp_path / "out")
    write_json(tmp_path / "out" / PROGRESS / "stage.json", {})
    assert stage(files, tmp_path / "out").skipped
    assert not (tmp_path / "out" / PROGRESS).exists()


def test_a_folder_with_something_else_in_it_is_left_alone(files, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for output in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(UserError, match="is not empty and is no test stage"):
            stage(files, output)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_account_that_does_not_balance_fails_the_stage(files, tmp_path):
    with pytest.raises(RuntimeError, match="8 records read but 4 accounted for"):
        stage(files, tmp_path / "out", loses_a_record)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_manifests_of_the_stages_before_are_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": STORY}])
    clean([str(tmp_path / "a.jsonl")], tmp_path / "one", CleanSettings())
    manifest = clean([str(tmp_path / "one")], tmp_path / "two", CleanSettings()).manifest
    assert [entry["manifest"] for entry in manifest["lineage"]] == ["one/manifest.json"]


def test_a_writer_that_fails_leaves_nothing_and_an_unused_one_makes_no_file(tmp_path):
    with pytest.raises(ValueError, match="x"), ShardWriter(tmp_path / "a" / "part.jsonl.zst") as writer:
        writer.write({"text": "نص"})
        raise ValueError("x")
    with ShardWriter(tmp_path / "b" / "part.jsonl.zst"):
        pass
    assert list(tmp_path.rglob("*part*")) == []


def test_accounts_add_up_and_come_back_from_their_counts():
    one, other = Account(read=3, kept=1), Account(read=2, kept=2, bytes_read=10)
    one.dropped["empty"] += 2
    other.kept_by_language["ar"] += 2
    one.add(other)
    assert Account.of(one.as_counts()) == one
    assert (one.read, one.kept, one.dropped, one.kept_by_language, one.bytes_read) == (
        5,
        3,
        {"empty": 2},
        {"ar": 2},
        10,
    )


def test_a_job_array_gives_the_bytes_of_one_run_whatever_the_order(files, tmp_path):
    stage(files, tmp_path / "one")
    results = [stage(files, tmp_path / "many", share=Share(index, 3)) for index in (2, 0, 1)]
    assert [bool(result.missing) for result in results] == [True, True, False]
    assert results[0].missing == "3 of 4 tasks of 'parts' are left to other runs of the job array"
    assert part_bytes(tmp_path / "many") == part_bytes(tmp_path / "one")
    assert results[2].manifest["counts"] == stage(files, tmp_path / "one").manifest["counts"]
    assert not (tmp_path / "many" / PROGRESS).exists()


@pytest.mark.parametrize(("index", "count"), [(3, 3), (-1, 3), (0, 0)])
def test_a_share_that_is_none_is_refused(index, count):
    with pytest.raises(UserError, match="the index goes from 0 to the count minus 1"):
        Share(index, count)


def test_two_runs_in_one_folder_are_refused_and_tasks_of_an_array_are_not(files, tmp_path):
    seen = []

    def looks(part, on_read, output):
        if not seen:
            seen.append(part)
            with pytest.raises(UserError, match="another run is writing"):
                stage(files, tmp_path / "out")
        return copied(part, on_read, output)

    stage(files, tmp_path / "out", looks)
    assert seen

    def joins(part, on_read, output):
        if part.number == 0:
            assert stage(files, tmp_path / "array", share=Share(1, 2)).missing
        return copied(part, on_read, output)

    assert not stage(files, tmp_path / "array", joins, share=Share(0, 2)).missing


def test_an_input_that_holds_no_record_is_told_by_its_file(files, tmp_path):
    (tmp_path / "e.jsonl").write_text("")
    manifest = clean([str(files[0]), str(tmp_path / "e.jsonl")], tmp_path / "out", CleanSettings("none")).manifest
    assert [(entry["source"], entry["records"]) for entry in manifest["inputs"]] == [("a.jsonl", 1), ("e.jsonl", 0)]


def test_a_full_disk_is_one_paragraph_and_what_is_finished_is_kept(files, tmp_path):
    def no_room(part, on_read, output):
        if part.number == 2:
            raise OSError(28, "No space left on device", str(output / "part-00002.jsonl.zst.partial"))
        return copied(part, on_read, output)

    with pytest.raises(UserError, match=r"test: .*part-00002.*: No space left on device. Finished parts are kept"):
        stage(files, tmp_path / "out", no_room)
    assert stage(files, tmp_path / "out").manifest["counts"]["kept"] == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_minus_nine_and_again_gives_the_bytes_of_an_undisturbed_run(tmp_path, workers):
    for part in range(6):
        write_jsonl(
            tmp_path / "in" / f"{part}.jsonl",
            [*({"text": arabic_text(1000 * part + number, 150)} for number in range(150)), {"title": "no text"}],
        )
    command = [
        sys.executable,
        "-m",
        "megatron_native",
        "clean",
        "--input",
        str(tmp_path / "in"),
        "--part-bytes",
        "100000",
    ]
    command += ["--workers", str(workers)]
    clean([str(tmp_path / "in")], tmp_path / "undisturbed", CleanSettings(part_bytes=100_000))
    killed = subprocess.Popen([*command, "--output", str(tmp_path / "out")], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "out" / PROGRESS / "parts" / "00000.json").exists():
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGKILL)  # the main process alone: its workers must not go on writing
    killed.wait()
    assert not (tmp_path / "out" / "manifest.json").exists(), "it was to be killed on its way"
    again = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    time.sleep(0.5)
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "undisturbed")
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert len(read_part(tmp_path / "out" / "_quarantine" / "part-00005.jsonl.zst")) == 1
