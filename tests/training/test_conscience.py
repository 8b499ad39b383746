"""The conscience: it names the layer that FP8 spoils, moves it to BF16 for good, and leaves no trace of looking."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.torch_dist import TorchDistReader
from megatron_native.training.line_file import read_json_lines
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config, write_token_dataset

TP, PP, VPP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"
DELAYED = {"recipe": "delayed", "amax_history_len": 3}
SPOILED = 2


def spoil(hf: Path) -> None:
    """Plant an outlier in the input of layer 2's MLP: one channel 100,000 times the others, which no weight reads.

    In BF16 nothing changes; one scale for the whole matrix leaves the other channels hardly any bits.
    """
    tensors = load_file(hf / "model.safetensors")
    tensors[f"model.layers.{SPOILED}.post_attention_layernorm.weight"][7] *= 1e5
    for name in ("gate_proj", "up_proj"):
        tensors[f"model.layers.{SPOILED}.mlp.{name}.weight"][:, 7] = 0
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with and without replays, and runs of a model with an outlier planted in layer 2."""
    folder = tmp_path_factory.mktemp("conscience")
    prefix = write_token_dataset(folder / "tokens_text_document", seed=5)
    import_hf(make_tiny_model(folder / "hf", "llama3.1"), folder / "whole", reference_logits=False)
    outlier = make_tiny_model(folder / "outlier_hf", "llama3.1")
    spoil(outlier)
    import_hf(outlier, folder / "outlier", reference_logits=False)
    jobs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}

    def job(size: int, name: str, steps: int = 4, checkpoint: str = "whole", output: str = "", **sections: Any) -> None:
        # where an outlier is planted the weights must stay: a step would make them read it
        optimizer = {"lr": 1e-12, "min_lr": 1e-13} if checkpoint == "outlier" else {}
        config = run_config(
            folder / name, folder / checkpoint, prefix, model={"import_gate": False},
            training={"steps": 8, "stop_after": steps, "precision": "fp8"}, optimizer=optimizer, **sections,
        )  # fmt: skip
        jobs[size].append({"kind": "train", "train": config, "output": str(folder / f"{output or name}.json")})

    for name, interval in (("quiet", 0), ("watched", 1)):
        job(1, name, conscience={"interval": interval}, fp8=DELAYED)
        job(2, f"{name} DP2", conscience={"interval": interval}, fp8={"param_gather": True},
            parallel={"overlap_grad_reduce": True, "overlap_param_gather": True})  # fmt: skip
    for name, layout in (("TP2", {TP: 2}), ("VPP", {PP: 2, VPP: 2})):
        job(
            2, f"outlier {name}", 2, "outlier", conscience={"interval": 2}, parallel=layout, fp8={"last_layers_bf16": 0}
        )
    job(1, "outlier one", 2, "outlier", conscience={"interval": 2}, fp8={"last_layers_bf16": 0})
    moving = {"interval": 1, "action": "bf16", "patience": 2}
    for steps, name in ((2, "first"), (4, "then")):
        job(1, "moved", steps, "outlier", output=f"moved {name}", conscience=moving, checkpointing={"save_interval": 2})
    job(1, "moved at once", 4, "outlier", conscience=moving, checkpointing={"save_interval": 2})
    for steps, output in ((4, "gathered first"), (6, "gathered then")):
        job(1, "gathered", steps, "outlier", output=output, conscience=moving, checkpointing={"save_interval": 2},
            fp8={"param_gather": True})  # fmt: skip
    job(
        1,
        "gathered at once",
        6,
        "outlier",
        conscience=moving,
        checkpointing={"save_interval": 2},
        fp8={"param_gather": True},
    )
    for size, group in jobs.items():
        run_jobs(folder, size, group, module="tests.training.fp8_worker")
    return folder


def replays(run: Path) -> dict[int, dict[str, Any]]:
    return {line["step"]: line["conscience"] for line in read_json_lines(run / "metrics.jsonl") if "conscience" in line}


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_json_lines(run / "metrics.jsonl") if "loss" in record]


@pytest.mark.parametrize("layout", ["", " DP2"])
def test_a_replay_leaves_no_trace(folder: Path, layout: str) -> None:
    quiet, watched = folder / f"quiet{layout}", folder / f"watched{layout}"
    assert sorted(replays(watched)) == [1, 2, 3, 4] and not replays(quiet)
    assert losses(watched) == losses(quiet)
    ours, theirs = (TorchDistReader(run / "checkpoints" / "step_00000004") for run in (watched, quiet))
    assert ours.tensors.keys() == theirs.tensors.keys()
    for key in theirs.tensors:
        assert torch.equal(ours.read(key), theirs.read(key)), key
    told = [json.loads((folder / f"{name}{layout}.json").read_text(encoding="utf-8")) for name in ("quiet", "watched")]
    assert told[0] == told[1], "amax histories and scales"


def test_figures_of_a_healthy_model(folder: Path) -> None:
    for step, replay in replays(folder / "watched").items():
        assert replay["emulated"] and sorted(replay["layers"]) == ["0", "1", "2", "3"]
        for figures in replay["layers"].values():
            if step == 1:
                continue
            # Two operands, each rounded by up to 2⁻⁴ with an even spread of about 2⁻⁴/√12 · 3/2: some 4 per cent together.
            assert 0.02 < figures["output_error"] < 0.06
            assert 0.8 < figures["gradient_cosine"] < 1
            assert figures["saturation"] < 0.01 and figures["underflow"] < 0.05
    layers = replays(folder / "watched DP2")[4]["layers"]
    assert sorted(layers) == ["1", "2"], "layers in BF16 are not looked at"


@pytest.mark.parametrize("layout", ["one", "TP2", "VPP"])
def test_an_outlier_is_named_with_its_layer(folder: Path, layout: str) -> None:
    run = folder / f"outlier {layout}"
    replay = replays(run)[2]
    assert replay["worst"] == SPOILED
    spoiled = replay["layers"].pop(str(SPOILED))
    assert spoiled["output_error"] > 0.2 and spoiled["linear"] == "mlp.linear_fc1"
    assert all(figures["output_error"] < 0.1 for figures in replay["layers"].values())
    (incident,) = [line for line in read_json_lines(run / "incidents.jsonl") if line["kind"] == "fp8_limit"]
    assert incident["details"]["layer"] == SPOILED and incident["step"] == 2
    assert "layer 2 in emulated FP8 (mlp.linear_fc1): output error" in incident["message"]
    same = replays(folder / "outlier one")[2]["layers"][str(SPOILED)]
    assert math.isclose(spoiled["output_error"], same["output_error"], rel_tol=0.3)


def test_a_named_layer_moves_to_bf16_with_the_next_checkpoint_and_stays_there(folder: Path) -> None:
    run = folder / "moved"
    lines = list(read_json_lines(run / "incidents.jsonl"))
    assert [line["step"] for line in lines if line["kind"] == "fp8_limit"] == [1, 2]
    (moved,) = [line for line in lines if line["kind"] == "fp8_to_bf16"]
    assert moved["step"] == 2 and "from step 3 on these layers compute in BF16: 2" in moved["message"]
    assert "mlp.linear_fc1" in moved["details"]["reasons"]["2"]
    watched = {step: sorted(replay["layers"]) for step, replay in replays(run).items()}
    assert watched == {1: ["1", "2"], 2: ["1", "2"], 3: ["1"], 4: ["1"]}
    for name in ("moved then", "moved at once"):
        assert json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["bf16 layers"] == [0, 2, 3]
    # a run that was stopped at that checkpoint is the run that was not
    assert losses(run) == losses(folder / "moved at once")


def test_the_console_names_the_worst_layer_in_one_line(folder: Path) -> None:
    said = (folder / "jobs_1.rank_0.log").read_text(encoding="utf-8")
    assert "step 2: emulated FP8 against BF16: worst layer 2 (mlp.linear_fc1): output error" in said
    assert "EMULATED: rounding only, computed in BF16" in said


def test_weights_of_a_moved_layer_are_not_rounded_again_on_resuming(folder: Path) -> None:
    """From the update after its move on the layer's weights are the masters in BF16, and a resumed run must not round them."""
    assert SPOILED in json.loads((folder / "gathered first.json").read_text(encoding="utf-8"))["bf16 layers"]
    assert losses(folder / "gathered") == losses(folder / "gathered at once")
