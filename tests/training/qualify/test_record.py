"""When a run wants a record, what it says, and what it refuses: all of it without a GPU."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.platform import Platform
from megatron_native.training.qualify.record import (
    MachineKey,
    check_qualified,
    needed_rungs,
    read_record,
    record_path,
    refusal,
    update_record,
)
from megatron_native.training.qualify.verdict import Measure, RungResult, judged, not_run

KEY = MachineKey("cuda", "NVIDIA H100 80GB HBM3", "550.54.15", "2.9.0", "2.9", "0.16.1")
NEEDED = {"fp8": "training.precision fp8", "overlaps": "parallel.overlap_grad_reduce"}


def run_of(precision: str = "bf16", **parallel: Any) -> RunConfig:
    return RunConfig.model_validate({
        "run_dir": "run", "model": {"hf_config": "config.json"}, "data": {"blend": [{"prefix": "tokens"}]},
        "training": {"steps": 1, "global_batch_size": 64, "precision": precision}, "parallel": parallel,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "parallel", "platform", "world_size", "local_size", "needed"),
    [
        ("fp8", {}, "cuda", 8, 8, set()),
        ("fp8", {}, "cuda", 16, 8, {"logits", "masters", "fp8"}),
        ("fp8", {}, "cuda", 8, 4, {"logits", "masters", "fp8"}),
        ("bf16", {}, "cuda", 512, 8, set()),
        ("bf16", {"overlap_grad_reduce": True}, "cuda", 512, 8, {"overlaps"}),
        ("bf16", {"overlap_param_gather": True}, "cuda", 512, 8, {"overlaps"}),
        ("bf16", {"tp_comm_overlap": True}, "cuda", 512, 8, {"overlaps"}),
        ("fp8", {"tp_comm_overlap": True}, "cuda", 16, 16, {"logits", "masters", "fp8", "overlaps"}),
        ("fp8", {"overlap_grad_reduce": True}, "cpu", 16, 16, set()),
    ],
)
def test_what_a_run_needs(
    precision: str, parallel: dict[str, Any], platform: str, world_size: int, local_size: int, needed: set[str]
) -> None:
    assert set(needed_rungs(run_of(precision, **parallel), platform, world_size, local_size)) == needed


def test_refusal_names_settings_machine_rungs_and_the_command(tmp_path: Path) -> None:
    said = refusal(NEEDED, None, KEY, tmp_path / "record.json")
    assert said is not None
    for part in (
        "fp8",
        "overlap_grad_reduce",
        "H100",
        "550.54.15",
        "megatron-native qualify --config",
        "--unqualified",
    ):
        assert part in said
    assert refusal({}, None, KEY, tmp_path / "record.json") is None


def test_only_passed_rungs_of_the_same_key_let_a_run_start(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    passed = [RungResult("fp8", "passed"), RungResult("overlaps", "passed")]
    update_record(path, KEY, passed, {})
    assert refusal(NEEDED, read_record(path, KEY), KEY, path) is None
    for field in ("gpu", "driver", "torch", "transformer_engine", "megatron_core", "platform"):
        other = replace(KEY, **{field: "another"})
        assert refusal(NEEDED, read_record(path, other), other, path), field
    update_record(path, KEY, [RungResult("fp8", "failed")], {})
    said = refusal(NEEDED, read_record(path, KEY), KEY, path)
    assert said is not None and "fp8 (failed)" in said and "overlaps" not in said


def test_a_rung_that_did_not_run_keeps_its_verdict(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    update_record(path, KEY, [not_run("fp8", "CUDA only")], {})
    assert refusal(NEEDED, read_record(path, KEY), KEY, path)
    update_record(path, KEY, [RungResult("fp8", "passed", world_size=8)], {"precision": "fp8"})
    update_record(path, KEY, [not_run("fp8", "too few"), RungResult("overlaps", "passed")], {})
    record = read_record(path, KEY)
    assert record is not None
    assert record["rungs"]["fp8"]["verdict"] == "passed" and record["rungs"]["fp8"]["world_size"] == 8
    assert refusal(NEEDED, record, KEY, path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "another"}'])
def test_a_damaged_record_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    assert read_record(path, KEY) is None


def test_places(tmp_path: Path) -> None:
    assert record_path(KEY, {"MEGATRON_NATIVE_QUALIFY_RECORD": "/x/y.json"}) == Path("/x/y.json")
    kept = record_path(KEY, {"XDG_CACHE_HOME": str(tmp_path)})
    assert kept.parent == tmp_path / "megatron-native" / "qualified" and kept.name.startswith("nvidia-h100-80gb-hbm3-")
    assert kept != record_path(replace(KEY, driver="560.1"), {"XDG_CACHE_HOME": str(tmp_path)})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--record"):
        update_record(tmp_path / "file" / "record.json", KEY, [], {})


def test_verdicts_follow_from_figures() -> None:
    assert judged("logits", [Measure("a", 1.0, 1.0), Measure("b", 1.0, 1.0, at_least=True)]).verdict == "passed"
    assert judged("logits", [Measure("a", 1.1, 1.0)]).verdict == "failed"
    assert judged("logits", [Measure("a", 0.9, 1.0, at_least=True)]).verdict == "failed"
    assert judged("logits", [Measure("a", float("nan"), 1.0)]).verdict == "failed"
    assert judged("logits", []).verdict == "failed", "nothing measured is nothing passed"


def test_the_override_asks_nothing_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 512 ranks of CUDA; there is no process group and no device here, which a look at the record would want."""
    import torch

    many = Platform("cuda", torch.device("cuda", 0), "nccl", 0, 0, 512)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    check_qualified(run_of("bf16"), many)
    monkeypatch.setenv("MEGATRON_NATIVE_UNQUALIFIED", "1")
    check_qualified(run_of("fp8"), many)
    monkeypatch.setenv("MEGATRON_NATIVE_UNQUALIFIED", "0")
    with pytest.raises((RuntimeError, AssertionError)):
        check_qualified(run_of("fp8"), many)


def test_the_option_of_pretrain_is_the_variable_of_the_ranks(
    monkeypatch: pytest.MonkeyPatch, run: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEGATRON_NATIVE_UNQUALIFIED", "")
    assert run(["pretrain", "--unqualified", "--config", str(tmp_path / "none.yaml")]).returncode == 2
    assert os.environ["MEGATRON_NATIVE_UNQUALIFIED"] == "1"
