"""Checkpoints: what is in the files, what a failure leaves behind, what is kept, and which one a run goes on from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.torch_dist import TorchDistReader, read_common
from megatron_native.errors import UserError
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.retention import Retention, checkpoints_of, newest_whole
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config, write_token_dataset

TP, PP, SHARDED = "tensor_model_parallel_size", "pipeline_model_parallel_size", "use_distributed_optimizer"
LAYOUTS: dict[str, dict[str, Any]] = {"TP2": {TP: 2, SHARDED: False}, "DP2": {SHARDED: True}}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    reader = TorchDistReader(folder)
    return {key: reader.read(key) for key in reader.tensors}


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_json_lines(run / "metrics.jsonl") if "loss" in record]


def reports(run: Path) -> list[dict[str, Any]]:
    return [json.loads((run / f"report_{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A disk of 48 MiB of its own, or None where none may be mounted."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48M", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_disk: Path | None) -> Path:
    """Every scene of checkpoint_worker.py on two processes, and runs that stop and go on."""
    folder = tmp_path_factory.mktemp("checkpoints")
    prefix = write_token_dataset(folder / "tokens_text_document", seed=3)
    import_hf(make_tiny_model(folder / "hf", "tied-llama"), folder / "imported")

    def job(scene: str, run: Path, parallel: dict[str, Any], **sections: Any) -> dict[str, Any]:
        config = run_config(
            run, folder / "imported", prefix, parallel=parallel, optimizer={"adam_eps": 1e-5}, **sections
        )
        return {"scene": scene, "run": config}

    jobs = []
    for name, parallel in LAYOUTS.items():
        jobs.append(job("equal", folder / f"equal {name}", parallel))
        for precision in ("fp32", "bf16"):
            run = folder / f"rollback {name} {precision}"
            jobs.append(job("rollback", run, parallel, training={"precision": precision}))
    jobs.append(job("failures", folder / "failures", {TP: 2}))
    if small_disk is not None:
        jobs.append(job("full_disk", small_disk / "run", {PP: 2}))
    keep = {"save_interval": 1, "keep_last": 2, "keep_every": 4}
    jobs.append(job("train", folder / "undisturbed", {TP: 2}, checkpointing=keep))
    jobs.append(job("train", folder / "TP2 to PP2", {TP: 2}, training={"stop_after": 5}))
    jobs.append(job("train", folder / "TP2 to PP2", {PP: 2}))
    jobs.append(job("train", folder / "DP2 to TP2", {}, training={"stop_after": 5}))
    jobs.append(job("train", folder / "DP2 to TP2", {TP: 2}))
    run_jobs(folder, 2, jobs, module="tests.training.checkpoint_worker")
    return folder


@pytest.mark.parametrize("layout_name", LAYOUTS)
@pytest.mark.parametrize("step", [1, 2, 3], ids=["synchronous", "asynchronous", "overwritten before it was written"])
def test_files_hold_what_megatron_core_saves(runs: Path, layout_name: str, step: int) -> None:
    run = runs / f"equal {layout_name}"
    ours, theirs = tensors(run / "checkpoints" / f"step_{step:08d}"), tensors(run / "reference")
    assert ours.keys() == theirs.keys()
    assert any(key.startswith("optimizer.state.exp_avg_sq.") for key in ours)
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


@pytest.mark.parametrize("layout_name", LAYOUTS)
def test_a_save_is_under_way_until_all_is_written(runs: Path, layout_name: str) -> None:
    for report in reports(runs / f"equal {layout_name}"):
        assert report["in_flight"] == [False, True]
        assert report["early"] == 0
        assert [(saved["step"], saved["failed"]) for saved in report["saved"]] == [(1, None), (2, None), (3, None)]


def test_a_checkpoint_carries_position_and_run_files_with_their_digests(runs: Path) -> None:
    folder = runs / "equal TP2" / "checkpoints" / "step_00000002"
    assert read_common(folder)["progress"] == {"step": 2, "nested": {"list": [1, 2.5, None, "ا"]}}
    assert (folder / "run" / "config.yaml").read_text() == "a: 1\n"
    assert (folder / "run" / "deep" / "ledger.json").read_text() == "{}"
    listed = json.loads((folder / "run" / "checksums.json").read_text())["files"]
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert listed.keys() == there.keys() - {"run/checksums.json"}
    assert sum(name.endswith(".distcp") for name in listed) == 2
    for name, entry in listed.items():
        data = there[name].read_bytes()
        assert entry == {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}, name
    [report, _] = reports(runs / "equal TP2")
    assert report["saved"][1]["bytes"] >= sum(p.stat().st_size for n, p in there.items() if n.endswith(".distcp"))


def test_a_writer_that_fails_on_one_rank_leaves_the_run_and_its_older_checkpoint(runs: Path) -> None:
    first, second = reports(runs / "failures")
    assert first == second
    assert [saved["failed"] for saved in first["good"] + first["again"]] == [None, None, None]
    reasons = {}
    for name in ("limited", "killed", "not forked", "not finished"):
        [saved] = first[name]
        assert saved["bytes"] == 0
        reasons[name] = saved["failed"]
    assert "rank 1: " in reasons["limited"] and "File too large: '__1_0.distcp'" in reasons["limited"]
    assert "rank 1: " in reasons["killed"] and "killed by signal 9" in reasons["killed"]
    assert "rank 0: " in reasons["not forked"] and "Resource temporarily unavailable" in reasons["not forked"]
    assert "rank 0: " in reasons["not finished"] and "Input/output error" in reasons["not finished"]
    assert "rank 0" not in reasons["limited"] + reasons["killed"]
    assert first["after failures"] == ["step_00000001"]
    assert first["at the end"] == ["step_00000001", "step_00000004"]
    for name in first["at the end"]:
        layout.check_complete(runs / "failures" / "checkpoints" / name, full=True)


def test_a_checkpoint_of_the_same_step_takes_the_place_of_the_older_one(runs: Path) -> None:
    [report, _] = reports(runs / "failures")
    ours = tensors(runs / "failures" / "checkpoints" / "step_00000004")
    for key, tensor in tensors(runs / "failures" / report["last reference"]).items():
        assert torch.equal(ours[key], tensor), key


def test_run_files_come_from_the_newest_checkpoint_where_their_source_is_gone(runs: Path) -> None:
    assert not (runs / "failures" / "gone").exists()
    for name in ("run/model.json", "run/hf/config.json", "run/tokenizer/tokenizer.json"):
        ours = runs / "failures" / "checkpoints" / "step_00000004" / name
        assert ours.read_bytes() == (runs / "imported" / name).read_bytes()


def test_a_full_disk_costs_the_checkpoint_and_nothing_else(runs: Path, small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("no tmpfs may be mounted here")
    first, second = reports(small_disk / "run")
    assert first == second
    assert [saved["failed"] for saved in first["good"] + first["again"]] == [None, None]
    [refused], [full] = first["refused"], first["full"]
    assert "free" in refused["failed"]
    assert "No space left on device" in full["failed"]
    assert first["after failures"] == ["step_00000001"]
    assert first["at the end"] == ["step_00000001", "step_00000004"]
    for name in first["at the end"]:
        layout.check_complete(small_disk / "run" / "checkpoints" / name, full=True)


@pytest.mark.parametrize("run", ["TP2 to PP2", "DP2 to TP2"])
def test_an_asynchronous_checkpoint_resumes_under_another_layout(runs: Path, run: str) -> None:
    assert losses(runs / run) == pytest.approx(losses(runs / "undisturbed"), abs=1e-5)
    ours, theirs = (tensors(runs / name / "checkpoints" / "step_00000010") for name in (run, "undisturbed"))
    for key, tensor in theirs.items():
        assert (ours[key] - tensor).abs().max() <= 1e-5, key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout_name", LAYOUTS)
def test_a_running_process_goes_back_exactly_or_with_a_new_optimizer(
    runs: Path, layout_name: str, precision: str
) -> None:
    for seen in reports(runs / f"rollback {layout_name} {precision}"):
        assert seen["second"] == seen["first"]
        assert seen["progress"] == {"step": 3, "nested": {"list": [1, 2.5, None, "ا"]}}
        assert seen["moments"] > 0 and seen["moments are zero"] and seen["steps"] == [0.0]
        assert seen["weights are back"] and seen["masters are back"]
        assert seen["first loss after a reset"] == seen["first"][0]
        # Adam's first update is lr · g/(|g| + ε) and weight decay: no larger than about the learning rate.
        assert 0 < seen["update"] <= 1.2e-3


def test_a_run_keeps_the_last_ones_and_every_nth(runs: Path) -> None:
    names = sorted(path.name for path in (runs / "undisturbed" / "checkpoints").iterdir())
    assert names == ["step_00000004", "step_00000008", "step_00000009", "step_00000010"]


def folders(run: Path, *steps: int) -> None:
    for step in steps:
        (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "expected"),
    [
        (0, 0, []), (0, 20, []), (1, 0, [10, 20, 30, 40]), (2, 0, [10, 20, 30]), (2, 20, [10, 30]), (9, 0, []),
        (1, 50, [10, 20, 30, 40]),
    ],
)  # fmt: skip
def test_what_expires(tmp_path: Path, keep_last: int, keep_every: int, expected: list[int]) -> None:
    folders(tmp_path, 10, 20, 30, 40, 50)
    expired = Retention(tmp_path, keep_last, keep_every).expired()
    assert [int(folder.name[5:]) for folder in expired] == expected


def test_a_protected_checkpoint_never_expires(tmp_path: Path) -> None:
    folders(tmp_path, 10, 20, 30)
    keep = tmp_path / "checkpoints" / "step_00000010"
    assert [folder.name for folder in Retention(tmp_path, 1, 0).expired({keep})] == ["step_00000020"]


def test_leftovers_of_an_earlier_run_are_deleted(tmp_path: Path) -> None:
    folders(tmp_path, 10)
    for name in (
        "step_00000020.partial",
        "step_00000005.deleting",
        "step_00000005.2.deleting",
        "step_00000008.damaged",
    ):
        (tmp_path / "checkpoints" / name / "run").mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "run" / "file").write_text("x")
    said: list[str] = []
    retention = Retention(tmp_path, 0, 0)
    retention.clean(said.append)
    retention.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000008.damaged",
        "step_00000010",
    ]
    assert len(said) == 1 and "step_00000020.partial" in said[0]


def test_a_folder_that_cannot_be_deleted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders(tmp_path, 10)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    retention = Retention(tmp_path, 1, 0)
    retention.delete(tmp_path / "checkpoints" / "step_00000010")
    retention.wait()
    [failure] = retention.failures()
    assert "step_00000010.deleting" in failure and "Permission denied" in failure
    assert retention.failures() == [] and checkpoints_of(tmp_path) == []


@pytest.fixture
def three(runs: Path, tmp_path: Path) -> Path:
    """A run of three whole checkpoints, steps 8 to 10, to be damaged."""
    for step in (8, 9, 10):
        name = f"step_{step:08d}"
        shutil.copytree(runs / "undisturbed" / "checkpoints" / name, tmp_path / "checkpoints" / name)
    return tmp_path


def largest(folder: Path) -> Path:
    return max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)


def truncate(folder: Path) -> None:
    path = largest(folder)
    os.truncate(path, path.stat().st_size - 1000)


def lose_checksums(folder: Path) -> None:
    (folder / "run" / "checksums.json").unlink()


def lose_metadata(folder: Path) -> None:
    (folder / ".metadata").unlink()


def flip_a_byte(folder: Path) -> None:
    path = largest(folder)
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def spoil_checksums(folder: Path) -> None:
    (folder / "run" / "checksums.json").write_text(
        '{"format": "megatron-native/checksums/1", "files": {"common.pt": 3}}'
    )


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("damage", "verify", "reason"),
    [
        (truncate, "sizes", "distcp has"), (lose_checksums, "sizes", "checksums.json"), (lose_metadata, "sizes", ".metadata"),
        (spoil_checksums, "sizes", "common.pt"), (empty, "sizes", "no checkpoint"), (flip_a_byte, "full", "has changed"),
    ],
)  # fmt: skip
def test_a_damaged_newest_one_is_passed_over_loudly(three: Path, damage: Any, verify: Any, reason: str) -> None:
    damage(three / "checkpoints" / "step_00000010")
    said: list[str] = []
    assert newest_whole(three, verify, said.append) == three / "checkpoints" / "step_00000009"
    [line] = said
    assert "step_00000010" in line and reason in line and "step_00000009" in line
    names = sorted(path.name for path in (three / "checkpoints").iterdir())
    assert names == ["step_00000008", "step_00000009", "step_00000010.damaged"]
    assert newest_whole(three, verify, said.append) == three / "checkpoints" / "step_00000009"
    assert len(said) == 1


def test_two_damaged_ones_are_passed_over_and_told_with_their_steps(three: Path) -> None:
    truncate(three / "checkpoints" / "step_00000010")
    lose_checksums(three / "checkpoints" / "step_00000009")
    said: list[str] = []
    passed_over: list[tuple[str, int]] = []
    newest = newest_whole(three, "sizes", said.append, lambda line, step: passed_over.append((line, step)))
    assert newest == three / "checkpoints" / "step_00000008"
    assert said == []
    assert [step for _, step in passed_over] == [10, 9]
    assert "step_00000009.damaged" in passed_over[1][0]


def test_without_any_whole_one_nothing_begins_anew_unasked(three: Path) -> None:
    for folder in checkpoints_of(three):
        truncate(folder)
    with pytest.raises(UserError, match=r"none of them is whole.*another run_dir"):
        newest_whole(three, "sizes", lambda _: None)
    assert len(checkpoints_of(three)) == 3


def test_a_new_run_has_no_newest_checkpoint(tmp_path: Path) -> None:
    assert newest_whole(tmp_path, "full", lambda _: None) is None


def test_a_checkpoint_that_lacked_only_its_name_is_used(three: Path) -> None:
    folder = three / "checkpoints" / "step_00000010"
    folder.rename(layout.partial_path(folder))
    torn = three / "checkpoints" / "step_00000009"
    lose_checksums(torn)
    torn.rename(layout.partial_path(torn))
    assert newest_whole(three, "full", lambda _: None) == folder
    assert sorted(path.name for path in (three / "checkpoints").iterdir()) == [
        "step_00000008", "step_00000009.partial", "step_00000010",
    ]  # fmt: skip
