"""Layer by layer gives the whole model's numbers, in the memory of a layer, and says after which layer models part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_native.checkpoint import layerwise, reference_logits
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.layerwise import layer_memory, output_in_blocks
from megatron_native.checkpoint.reference_logits import load_reference_logits, run_transformers
from megatron_native.checkpoint.safetensors_files import HfWeights
from megatron_native.cli import main
from megatron_native.errors import UserError
from tests.distributed import run_jobs
from tests.tiny_models import SHAPES, make_tiny_model

FAULTY_LAYER = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each shape, and of one with a fault in a layer of its folder: `NAME/hf`, `NAME/checkpoint`, `NAME.pt`."""
    folder = tmp_path_factory.mktemp("layers")
    for shape in SHAPES:
        hf = make_tiny_model(folder / shape / "hf", shape, dtype=torch.bfloat16)
        import_hf(hf, folder / shape / "checkpoint", reference_logits=False)
    shutil.copytree(folder / "qwen3", folder / "fault")
    plant_fault(folder / "fault" / "hf")
    jobs = [
        {
            "kind": "compare", "checkpoint": str(folder / name / "checkpoint"), "hf": str(folder / name / "hf"),
            "output": str(folder / f"{name}.pt"),
        }
        for name in (*SHAPES, "fault")
    ]  # fmt: skip
    run_jobs(folder, 1, jobs, module="tests.checkpoint.layer_worker")
    return folder


def plant_fault(hf: Path) -> None:
    tensors = load_file(hf / "model.safetensors")
    query, key = (f"model.layers.{FAULTY_LAYER}.self_attn.{name}_norm.weight" for name in "qk")
    tensors[query], tensors[key] = tensors[key], tensors[query]
    save_file(tensors, hf / "model.safetensors", {"format": "pt"})


def found(folder: Path, name: str) -> dict[str, Any]:
    result: dict[str, Any] = torch.load(folder / f"{name}.pt")
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", ["transformers", "megatron-core"])
def test_layer_by_layer_gives_the_whole_model_s_logits(folder: Path, shape: str, side: str) -> None:
    results = found(folder, shape)
    for text, logits in results[side].items():
        assert logits.std() >= 1
        assert (results[f"{side}, layer by layer"][text] - logits).abs().max() <= 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_in_step_both_sides_agree_after_every_layer(folder: Path, shape: str) -> None:
    results = found(folder, shape)
    assert [found["layer"] for found in results["layers"]] == [0, 1, 2, 3, 4]
    assert max(found["relative_difference"] for found in results["layers"]) <= 1e-6
    assert results["logits"]["max_abs_difference"] <= 1e-4 and results["logits"]["top1_agreement"] == 1.0


def test_a_fault_shows_after_its_layer_and_not_before(folder: Path) -> None:
    results = found(folder, "fault")
    relative = [found["relative_difference"] for found in results["layers"]]
    assert max(relative[: FAULTY_LAYER + 1]) <= 1e-6
    assert min(relative[FAULTY_LAYER + 1 :]) > 1e-3
    assert results["logits"]["max_abs_difference"] > 1e-2


def test_the_command_runs_layer_by_layer_and_writes_a_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    checkpoint, hf = folder / "fault" / "checkpoint", folder / "fault" / "hf"
    command = ["verify-hf", "--checkpoint", str(checkpoint), "--hf", str(hf), "--megatron", "--layer-by-layer"]
    assert main([*command, "--report", str(report)]) == 1
    assert f"they part after layer {FAULTY_LAYER + 1}" in capsys.readouterr().out
    findings = json.loads(report.read_text())
    assert findings["format"] == "megatron-native/verification/1" and findings["passed"] is False
    names = [f"model.layers.{FAULTY_LAYER}.self_attn.{name}_norm.weight" for name in "kq"]
    assert sorted(findings["different"]) == names
    assert len(findings["megatron_layers"]) == 5 and findings["megatron_logits"]["positions"] > 200
    assert findings["versions"]["transformers"]

    shutil.copytree(folder / "qwen3" / "hf", tmp_path / "hf")
    command[command.index(str(hf))] = str(tmp_path / "hf")
    assert main([*command, "--report", str(report)]) == 0
    assert json.loads(report.read_text())["passed"] is True


def test_where_memory_is_short_logits_are_recorded_layer_by_layer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = folder / "llama3.1" / "hf"
    import_hf(hf, tmp_path / "whole")
    available = 2_500_000  # bytes; the model is 2.6 MB in FP32, a layer 0.6
    for module in (reference_logits, layerwise):
        monkeypatch.setattr(module, "available_memory", lambda: available)
    used = []
    monkeypatch.setattr(layerwise, "run_layers", lambda *given, real=layerwise.run_layers: used.append(1) or real(*given))
    import_hf(hf, tmp_path / "by layer")
    assert used == [1]
    whole, by_layer = (
        load_reference_logits(tmp_path / name / "run" / "reference_logits.safetensors") for name in ("whole", "by layer")
    )
    for one, other in zip(whole, by_layer, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert (one.logits - other.logits).abs().max() <= 1e-5

    monkeypatch.setattr(layerwise, "available_memory", lambda: 100_000)
    with pytest.raises(UserError, match=r"a layer at a time needs about 0\.0 GB of memory"):
        run_transformers(hf, {"a": torch.arange(5)})


def test_a_control_group_s_limit_counts(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("0::/job/step\n")
    for path, limit, used in (("job/step", "max", 50), ("job", "1000", 700), ("", "5000", 800)):
        (root / path).mkdir(parents=True, exist_ok=True)
        (root / path / "memory.max").write_text(f"{limit}\n")
        (root / path / "memory.current").write_text(f"{used}\n")
        (root / path / "memory.stat").write_text("anon 9\ninactive_file 40\nactive_file 7\n")
    assert reference_logits._free_of_the_control_group(root, own) == 1000 - 700 + 40
    own.write_text("7:memory:/v1\n")
    assert reference_logits._free_of_the_control_group(root, own) is None


def test_the_output_layer_s_blocks_make_the_whole_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwise, "OUTPUT_ROWS", 7)
    generator = torch.Generator().manual_seed(1)
    states, weight = torch.randn(5, 16, generator=generator), torch.randn(30, 16, generator=generator).bfloat16()
    logits = output_in_blocks({"a": states}, weight)["a"]
    torch.testing.assert_close(logits, states @ weight.float().T, atol=1e-5, rtol=0)


def test_memory_is_that_of_a_layer_whatever_their_number(folder: Path, tmp_path: Path) -> None:
    layers, hidden, ffn = 16, 768, 2048
    hf = make_tiny_model(
        tmp_path / "hf", "qwen3", dtype=torch.bfloat16, hidden_size=hidden, intermediate_size=ffn,
        num_hidden_layers=layers, head_dim=96,
    )  # fmt: skip
    import_hf(hf, tmp_path / "checkpoint", reference_logits=False)
    small, large = folder / "qwen3", tmp_path
    jobs = [  # the first brings what libraries import late
        {"kind": kind, "checkpoint": str(of / "checkpoint"), "hf": str(of / "hf"), "output": str(tmp_path / f"{kind}.out")}
        for kind, of in (("compare", small), ("memory", large))
    ]
    run_jobs(tmp_path, 1, jobs, module="tests.checkpoint.layer_worker")
    figures = json.loads((tmp_path / "memory.out").read_text())
    layer = 4 * (2 * hidden * 8 * 96 + 2 * hidden * 4 * 96 + 3 * hidden * ffn)  # bytes in FP32
    assert figures["difference"] <= 1e-3
    # A layer of each side, a tensor while it is read, and activations; the whole model in FP32 is 16 layers.
    assert layer < figures["peak"] <= 4 * layer, (figures, layer)
    assert layer_memory(HfWeights(hf)) == 2 * layer + 2 * 4 * (2 * hidden + 2 * 96) + 2 * 2 * hidden * ffn
