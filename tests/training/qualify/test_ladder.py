"""Every rung that the CPU can climb passes on sound code, and fails on the fault that it is there to find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_native.checkpoint.import_hf import import_hf
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config, write_token_dataset

FAULTS = {
    "swapped_norms": ("logits", 1),
    "leaking_attention": ("boundaries", 1),
    "wrong_fused_gradients": ("cross-entropy", 1),
    "rounded_master": ("masters", 1),
    "masters_from_fp8": ("masters", 1),
    "other_source": ("masters", 1),
    "stale_weights": ("overlaps", 2),
    "early_reduction": ("overlaps", 2),
    "idle_fp8": ("fp8", 1),
    "wrong_fp8_gradients": ("fp8", 1),
    "forgotten_setting": ("resume", 1),
}
"""Fault → the rung that has to fail, and on how many processes."""
TP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
SOUND: dict[str, tuple[int, str, dict[str, Any], str]] = {
    "one": (1, "bf16", {}, "logits,boundaries,cross-entropy,masters,overlaps,fp8,resume,memory,speed"),
    "one in FP32": (1, "fp32", {}, "logits,boundaries,cross-entropy,masters,fp8"),
    "one with FP8 weights": (1, "fp8", {}, "masters,fp8"),
    "two copies": (2, "bf16", {}, "logits,masters,overlaps"),
    "TP2": (2, "bf16", TP2, "logits,boundaries,cross-entropy"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What the ladder said of sound code, by layout, and with each fault."""
    folder = tmp_path_factory.mktemp("qualify")
    prefix = write_token_dataset(folder / "tokens_text_document", seed=3)
    hf = make_tiny_model(folder / "hf", "tied-llama")

    def job(
        name: str, rungs: str, precision: str, parallel: dict[str, Any], fault: str | None = None
    ) -> dict[str, Any]:
        config = run_config(
            folder / f"{name} run", folder, prefix, training={"precision": precision}, parallel=parallel
        )
        config |= {"model": {"hf_config": str(hf)}, "fp8": {"param_gather": precision == "fp8"}}
        return {"config": config, "rungs": rungs, "fault": fault, "output": str(folder / f"{name}.json")}

    for world_size in (1, 2):
        jobs = [job(name, rungs, *how) for name, (size, *how, rungs) in SOUND.items() if size == world_size]
        jobs += [
            job(fault, rung, "fp8" if fault == "masters_from_fp8" else "bf16", {}, fault)
            for fault, (rung, size) in FAULTS.items()
            if size == world_size
        ]
        run_jobs(folder, world_size, jobs, module="tests.training.qualify.ladder_worker")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in (*SOUND, *FAULTS)}


@pytest.mark.parametrize("name", SOUND)
def test_sound_code_passes(found: dict[str, list[dict[str, Any]]], name: str) -> None:
    verdicts = {result["rung"]: result["verdict"] for result in found[name]}
    assert "failed" not in verdicts.values(), found[name]
    waits = {"overlaps", "memory", "speed"} if name == "one" else {"fp8"} if name == "one in FP32" else set()
    assert {rung for rung, verdict in verdicts.items() if verdict == "not run"} == waits
    for result in found[name]:
        assert result["measures"] or result["message"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(found: dict[str, list[dict[str, Any]]], fault: str) -> None:
    (result,) = found[fault]
    assert result["verdict"] == "failed", result
    assert result["message"] or any(not measure["holds"] for measure in result["measures"])
    assert "Error: " not in result["message"], f"found by its figures, and not because it crashed: {result['message']}"


def test_the_command_writes_table_json_and_record(tmp_path: Path, run: Any) -> None:
    import_hf(make_tiny_model(tmp_path / "hf", "llama3.1"), tmp_path / "imported")
    import yaml

    config = run_config(tmp_path / "run", tmp_path / "imported", tmp_path / "tokens that are not made yet")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    command = ["qualify", "--config", str(tmp_path / "run.yaml"), "--rungs", "masters,logits,memory"]
    done = in_a_process([*command, "--record", str(tmp_path / "record.json"), "--json"])
    assert done.returncode == 0, done.stderr
    printed, record = json.loads(done.stdout), json.loads((tmp_path / "record.json").read_text())
    assert [rung["verdict"] for rung in printed["rungs"]] == ["passed", "passed", "not run"]
    assert {name: rung["verdict"] for name, rung in record["rungs"].items()} == {
        "logits": "passed", "masters": "passed", "memory": "not run",
    }  # fmt: skip
    assert record["key"]["platform"] == "cpu" and record["key"]["megatron_core"]
    assert "not run here  memory" in done.stderr and "the run's own checkpoint" in done.stderr
    assert not list((tmp_path / "run").glob("qualify-*")), "the files of the ladder are gone"

    wrong = run([*command[:-1], "logit"])
    assert wrong.returncode == 2 and "logits" in wrong.stderr


def in_a_process(command: list[str]) -> Any:
    import os
    import subprocess
    import sys

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "megatron_native", *command], capture_output=True, text=True, env=environment
    )
