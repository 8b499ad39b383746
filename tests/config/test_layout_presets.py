"""Presets of layouts: every one fits its model and its GPUs, resolves in a run's file, and says where each value comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_native.cli import main
from megatron_native.config.layout import check_layout, data_parallel_size
from megatron_native.config.layout_presets import layout_presets, refused_layouts, setting_names
from megatron_native.config.load import load_run_config
from megatron_native.config.merge import merged
from megatron_native.config.presets import over_preset, read_preset
from megatron_native.config.requirements import Machine, check_requirements
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from tests.config.models import MODELS, parameters_of, run_of

H100_BYTES = 80e9
# BF16 weight (or FP8 and its transposed copy), FP32 gradient; FP32 master and Adam's moments, which are shared.
BYTES_A_WEIGHT, SHARED_BYTES_A_WEIGHT = 2 + 4, 12
PRESETS = list(layout_presets().values())
MACHINE = Machine("NVIDIA H100 80GB HBM3", (9, 0), "0.16.1", "2.9.0", has_apex=True)


def resolved(name: str, *over: str) -> RunConfig:
    base = run_of().model_dump(mode="json", include={"run_dir", "model", "data"})
    del base["data"]["seq_length"], base["data"]["document_boundaries"]
    return RunConfig.model_validate(merged({"training": {"steps": 10}}, over_preset([name, *over], base)))


def model_of(name: str) -> Any:
    return MODELS[re.sub(r"-\d+xh100-.*", "", name)]


def test_there_is_one_for_each_model_number_of_gpus_and_precision_or_a_reason() -> None:
    wanted = {
        f"{model}-{gpus}xh100-{precision}"
        for model in MODELS
        for gpus in (8, 64, 128, 512)
        for precision in ("bf16", "fp8")
    }
    there = {preset.name for preset in PRESETS}
    assert wanted <= there | refused_layouts().keys()
    assert not there & refused_layouts().keys()
    assert wanted - there == {"llama3-70b-8xh100-bf16", "llama3-70b-8xh100-fp8"}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_layout_fits_its_model_and_its_gpus(preset: Any) -> None:
    run, model = resolved(preset.name), model_of(preset.name)
    check_layout(run, model, preset.gpus, "cuda")
    assert run.training.precision == preset.kind.removesuffix("-cp")
    check_requirements(run, model, MACHINE)
    assert run.data.document_boundaries != preset.kind.endswith("-cp")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_the_state_of_training_alone_leaves_room_on_every_gpu(preset: Any) -> None:
    """By arithmetic over the average stage; activations and the embedding's stage are the plan's business."""
    run, weights = resolved(preset.name), parameters_of(model_of(preset.name))
    parallel = run.parallel
    share = weights / (parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size)
    sharing = data_parallel_size(run, preset.gpus) * parallel.context_parallel_size
    assert share * (BYTES_A_WEIGHT + SHARED_BYTES_A_WEIGHT / sharing) < 0.93 * H100_BYTES


@pytest.mark.parametrize("name", sorted(refused_layouts()))
def test_what_is_refused_could_not_fit(name: str) -> None:
    weights, gpus = parameters_of(model_of(name)), int(name.split("xh100")[0].rsplit("-", 1)[1])
    assert weights * (BYTES_A_WEIGHT + SHARED_BYTES_A_WEIGHT) > gpus * H100_BYTES
    with pytest.raises(UserError, match=r"there is no such layout\. 70\.6 billion weights .* Take 64 GPUs"):
        read_preset(name)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_value_of_a_layout_has_one_source(preset: Any) -> None:
    sourced = [setting for source in preset.sources for setting in source["of"]]
    assert sorted(sourced) == sorted(setting_names(preset.settings))
    for source in preset.sources:
        assert re.search(r"[Aa] choice|Megatron-Bridge|DGX Cloud|published recipes", source["source"]), source


def test_the_sizes_of_the_models_are_those_of_their_makers() -> None:
    assert {name: round(parameters_of(model) / 1e9, 2) for name, model in MODELS.items()} == {
        "llama3-8b": 8.03, "llama3-70b": 70.55, "qwen1.5-32b": 32.51,
    }  # fmt: skip


def test_a_layout_goes_over_a_preset_of_training_in_a_runs_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    for ending in (".bin", ".idx"):
        (tmp_path / f"ar{ending}").write_bytes(b"")
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "run_dir": str(tmp_path / "run"),
                "preset": ["continued-strong-shift", "llama3-70b-64xh100-fp8"],
                "model": {"hf_config": str(tmp_path / "config.json")},
                "data": {"blend": [{"prefix": str(tmp_path / "ar")}]},
                "training": {"steps": 1000, "global_batch_size": 512},
            }
        )
    )
    run = load_run_config(path)
    assert run.optimizer.lr == read_preset("continued-strong-shift").settings["optimizer"]["lr"]
    assert run.optimizer.grad_reduce_in_fp32 and run.parallel.virtual_pipeline_model_parallel_size == 5
    assert run.training.global_batch_size == 512  # the file's own is over the preset's
    assert main(["config", "show", "--config", str(path), "preset=llama3-70b-128xh100-bf16"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["parallel"]["tensor_model_parallel_size"] == 8 and shown["preset"] == "llama3-70b-128xh100-bf16"


def test_every_layout_is_listed_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for preset in PRESETS:
        assert [line for line in lines if line.split()[:1] == [preset.name]] == [
            line for line in lines if line.startswith(f"{preset.name} ") and preset.summary in line
        ]
    assert any("Never run on GPUs" in line for line in lines)


def test_an_unknown_layout_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean 'llama3-70b-64xh100-fp8'"):
        read_preset("llama3-70b-64xh100-fp9")


def test_the_benchmark_goes_over_any_layout() -> None:
    for preset in PRESETS:
        run = resolved(preset.name, "benchmark")
        check_layout(run, model_of(preset.name), preset.gpus, "cuda")
        assert not run.optimizer.grad_reduce_in_fp32 and run.fp8.bf16_at_start() == 0
