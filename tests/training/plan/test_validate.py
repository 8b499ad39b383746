"""What can be wrong with a run, found without starting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_native.training.plan.findings import Finding
from megatron_native.training.plan.gpus import read_gpu
from megatron_native.training.plan.validate import data_findings, epochs_of, layout_findings, start_findings
from tests.data.planted_datasets import VOCABULARY, complete_dataset, documents
from tests.training.plan.shapes import FP8_70B, LLAMA3_8B, LLAMA3_70B, run_of

H100 = read_gpu("h100-80g")


@pytest.mark.parametrize("world_size, changed, said", [
    (500, {}, "500 GPUs"),
    (512, {"parallel": {"tensor_model_parallel_size": 3}}, "3"),
    (512, {"training": {"global_batch_size": 1000}}, "1000 is no multiple"),
    (512, {"parallel": {"virtual_pipeline_model_parallel_size": 3}}, "80 layers"),
    (512, {"data": {"seq_length": 16384}}, "max_position_embeddings"),
])  # fmt: skip
def test_an_impossible_layout_is_a_finding(world_size: int, changed: dict[str, Any], said: str) -> None:
    (finding,) = layout_findings(run_of(FP8_70B, **changed), LLAMA3_70B, H100, world_size)
    assert finding.kind == "error" and said in str(finding)


def test_fp8_on_a_gpu_without_it() -> None:
    (finding,) = layout_findings(run_of(FP8_70B), LLAMA3_70B, read_gpu("a100-80g"), 512)
    assert "A100" in finding.what and "bf16" in finding.way_out


def test_a_possible_layout_has_no_findings() -> None:
    assert layout_findings(run_of(FP8_70B), LLAMA3_70B, H100, 512) == []


def test_epochs_of_datasets_over_the_phases() -> None:
    phases = [
        {"name": "native", "tokens": 1200, "blend": [{"prefix": "ar", "weight": 3.0}, {"prefix": "en"}]},
        {"name": "anneal", "tokens": 300, "blend": [{"prefix": "ar"}]},
    ]
    run = run_of(phases=phases, training={"steps": None}, data={"blend": [{"prefix": "ar"}]})
    facts = {Path("ar"): {"tokens": 400}, Path("en"): {"tokens": 600}}
    assert epochs_of(run, facts) == {"ar": pytest.approx((900 + 300) / 400), "en": pytest.approx(300 / 600)}


def test_datasets_are_checked_and_repetition_is_said(tmp_path: Path) -> None:
    complete_dataset(tmp_path / "ar", documents(20, 30))  # 50 tokens
    model = LLAMA3_8B.model_copy(update={"vocab_size": VOCABULARY})
    (tmp_path / "model").mkdir()

    def found(steps: int, name: str = "ar") -> list[Finding]:
        data = {"blend": [{"prefix": str(tmp_path / name)}], "seq_length": 16}
        run = run_of(data=data, training={"steps": steps, "global_batch_size": 2})
        run = run.model_copy(update={"run_dir": tmp_path / "run", "model": run.model.model_copy(
            update={"hf_config": tmp_path / "model"})})  # fmt: skip
        return data_findings(run, model, "run.yaml")[0]

    assert found(5) == []
    (note,) = found(20)  # 20 steps of 32 tokens from 50
    assert note.kind == "note" and "repeated 12.8 times" in note.what
    (missing,) = found(5, "no")
    assert missing.kind == "error" and "no.bin" in missing.what and "--no-data" in missing.way_out


def test_a_damaged_checkpoint_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    run = run_of(
        model={"hf_config": None, "checkpoint": str(tmp_path / "checkpoint")}, checkpointing={"save_interval": 10}
    )
    (finding,) = start_findings(run, awaited=True)
    assert finding.kind == "error" and "checkpoint" in finding.what


def test_a_finding_reads_as_sentences() -> None:
    assert str(Finding("a is b", "because", "do c.")) == "a is b: because. Do c."
    assert str(Finding("a is b", "", "")) == "a is b."
