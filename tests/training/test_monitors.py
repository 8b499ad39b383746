"""The monitors in every layout: the gate before step 1, master weights, norms; against transformers and plain torch."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.config.run import RunConfig
from megatron_native.training.import_gate import TOLERANCES, Tolerances
from tests.distributed import REPOSITORY, run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.monitor_worker import HF_NAMES, SEQ_LENGTH, SEQUENCES, made_up_logits, training_batch

TP, PP, VPP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"
DISTRIBUTED = "use_distributed_optimizer"
Layout = tuple[int, dict[str, Any]]
ONE: Layout = (1, {})
TP2: Layout = (2, {TP: 2, "sequence_parallel": True})
PP2: Layout = (2, {PP: 2})
GATED: dict[str, tuple[str, Layout]] = {
    f"{shape}, {name}": (shape, layout)
    for shape in ("llama3.1", "tied-llama", "qwen1.5")
    for name, layout in {"one": ONE, "TP2": TP2, "PP2": PP2, "PP2 VPP2": (2, {PP: 2, VPP: 2})}.items()
} | {
    # 95 random ids, an odd vocabulary: padding of the sequence and of the vocabulary; 2 texts for 4 stages
    "odd, TP2": ("odd", TP2),
    "odd, PP4 VPP2": ("odd", (4, {PP: 4, VPP: 2})),
    "odd, TP2 PP2": ("odd", (4, {TP: 2, PP: 2, "sequence_parallel": True})),
}
FAULTS: dict[str, dict[str, Any]] = {
    "swapped layers": {"refusal": "max |Δ| of logits"},
    "swapped norms": {"refusal": "max |Δ| of logits"},
    "shifted columns": {"refusal": "RMS Δ of log-probabilities"},
    "not a number": {"refusal": "max |Δ| of logits inf"},
    "epsilon 1e-6": {"refusal": "epsilon 1e-06, but run/hf/config.json says rms_norm_eps = 1e-05"},
    "epsilon 1e-2": {"refusal": "mean KL", "logits_only": True},
    "base 2": {"refusal": "the rotary frequencies are not those of run/hf/config.json (base 500000, scaled)"},
    "base 1.5": {"refusal": "top-1 agreement", "logits_only": True},
}
NORMED: dict[str, Layout] = {
    "one": ONE,
    "TP2": TP2,
    "PP2": PP2,
    "PP2 VPP2": (2, {PP: 2, VPP: 2}),
    "DP2": (2, {}),
    "DP2 without distributed optimizer": (2, {DISTRIBUTED: False}),
    "TP2 PP2": (4, {TP: 2, PP: 2}),
    "PP2 DP2": (4, {PP: 2}),
}
NORM_SHAPES = ("tied-llama", "odd")
MASTERS: dict[str, tuple[Layout, str]] = {
    "one": (ONE, "bf16"),
    "DP2": ((2, {}), "bf16"),
    "TP2": (TP2, "bf16"),
    "PP2, float16 optimizer": ((2, {PP: 2, DISTRIBUTED: False}), "bf16"),
    "PP2 DP2": ((4, {PP: 2}), "bf16"),
    "fp32": ((2, {DISTRIBUTED: False}), "fp32"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every job of this module, done: `<name>.<rank>.json` is what a rank was told."""
    folder = tmp_path_factory.mktemp("monitors")
    shapes: dict[str, tuple[str, dict[str, Any]]] = {
        "llama3.1": ("llama3.1", {"dtype": torch.bfloat16}),
        "tied-llama": ("tied-llama", {}),
        "qwen1.5": ("qwen1.5", {}),
        "odd": (
            "qwen1.5",
            {"tokenizer": False, "vocab_size": 383, "max_position_embeddings": 95, "num_hidden_layers": 8},
        ),
    }
    for name, (shape, options) in shapes.items():
        import_hf(make_tiny_model(folder / "hf" / name, shape, **options), folder / name)
    import_hf(folder / "hf" / "tied-llama", folder / "without logits", reference_logits=False)
    shutil.copytree(folder / "llama3.1", folder / "trained")
    (folder / "trained" / "run" / "manifest.json").unlink()

    jobs: dict[int, list[dict[str, Any]]] = {1: [], 2: [], 4: []}

    def add(name: str, shape: str, layout: Layout, kind: str, **job: Any) -> None:
        world_size, parallel = layout
        jobs[world_size].append({
            "kind": kind, "checkpoint": str(folder / shape), "parallel": parallel, "output": str(folder / name), **job,
        })  # fmt: skip

    for precision in ("fp32", "bf16"):
        for name, (shape, layout) in GATED.items():
            add(f"gate {name} {precision}", shape, layout, "gate", precision=precision)
        for fault, options in FAULTS.items():
            more = {key: value for key, value in options.items() if key != "refusal"}
            add(f"fault {fault} {precision}", "llama3.1", ONE, "gate", precision=precision, fault=fault, **more)
    for rank in (0, 1):
        add(f"stage {rank}", "qwen1.5", PP2, "gate", precision="fp32", fault="swapped layers", only_rank=rank)
        add(f"replica {rank}", "qwen1.5", (2, {}), "gate", precision="fp32", fault="shifted columns", only_rank=rank)
        add(f"constant {rank}", "qwen1.5", PP2, "gate", precision="fp32", fault="epsilon 1e-6", only_rank=rank)
    add("without logits", "without logits", TP2, "gate", precision="fp32")
    add("trained", "trained", ONE, "gate", precision="fp32", fault="swapped layers")
    add("eval mode", "llama3.1", ONE, "gate", precision="fp32", in_eval_mode=True)
    for name, (layout, precision) in MASTERS.items():
        more = {"one": {"hf": str(folder / "hf" / "llama3.1")}, "DP2": {"fp8": True}}.get(name, {})
        add(f"masters {name}", "llama3.1", layout, "masters", precision=precision, moved=-1, **more)
    for shape in NORM_SHAPES:
        for name, layout in NORMED.items():
            add(f"norms {shape} {name}", shape, layout, "norms")
    for world_size, group in jobs.items():
        run_jobs(folder, world_size, group, module="tests.training.monitor_worker")
    return folder


def told(folder: Path, name: str, world_size: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(world_size)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", GATED)
def test_the_gate_passes_what_was_imported(folder: Path, name: str, precision: str) -> None:
    shape, (world_size, _) = GATED[name]
    ranks = told(folder, f"gate {name} {precision}", world_size)
    first = ranks[0]
    assert "refused" not in first, first
    assert all(rank == first for rank in ranks), "every rank knows the same"
    assert first["left as it was"]
    assert first["compared"]
    assert {text["name"] for text in first["texts"]} == (
        {"random-0", "random-1"} if shape == "odd" else {"ar-prose", "ar-science", "en-prose", "mixed-code"}
    )
    if shape == "odd":
        assert [text["positions"] for text in first["texts"]] == [95, 95]
    largest = max(text["max_logit_difference"] for text in first["texts"])
    if precision == "fp32":
        assert largest < 1e-4, "rounding and no more"
        assert all(text["top1_agreement"] == 1 for text in first["texts"])
    else:
        assert largest > 1e-3, "the running model computed in BF16"
        limits, texts = TOLERANCES["bf16"], first["texts"]
        agreed = sum(text["top1_agreement"] * text["positions"] for text in texts) / sum(
            text["positions"] for text in texts
        )
        used = {
            "logit": largest / limits.logit,
            "log-probability": max(text["max_log_probability_difference"] for text in texts) / limits.log_probability,
            "RMS": max(text["rms_log_probability_difference"] for text in texts) / limits.rms_log_probability,
            "KL": sum(text["mean_kl"] for text in texts) / len(texts) / limits.mean_kl,
            "top-1": (1 - agreed) / (1 - limits.top1_agreement),
        }
        assert all(share < 0.6 for share in used.values()), f"rounding alone takes {used} of the tolerances"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_gate_refuses_another_model(folder: Path, fault: str, precision: str) -> None:
    (rank,) = told(folder, f"fault {fault} {precision}", 1)
    assert FAULTS[fault]["refusal"] in rank["refused"]
    assert str(folder / "llama3.1") in rank["refused"]
    assert "model.import_gate=false" in rank["refused"]
    assert rank["left as it was"]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("where", ["stage", "replica", "constant"])
def test_a_fault_of_one_rank_is_refused_by_all(folder: Path, where: str, rank: int) -> None:
    first, second = told(folder, f"{where} {rank}", 2)
    assert first == second
    assert ("rms_norm_eps" if where == "constant" else "max |Δ| of logits") in first["refused"]


def test_without_something_to_compare_with_the_gate_says_so(folder: Path) -> None:
    for rank in told(folder, "without logits", 2):
        assert not rank["compared"]
        assert rank["message"].startswith("warning: ")
        assert "reference_logits.safetensors" in rank["message"]
    (rank,) = told(folder, "trained", 1)
    assert not rank["compared"]
    assert "trained since its import" in rank["message"]


def test_a_model_in_eval_mode_stays_in_it(folder: Path) -> None:
    (rank,) = told(folder, "eval mode", 1)
    assert rank["compared"]
    assert rank["left as it was"]


@pytest.mark.parametrize("name", MASTERS)
def test_masters_are_compared_bit_by_bit(folder: Path, name: str) -> None:
    (world_size, parallel), precision = MASTERS[name]
    ranks = told(folder, f"masters {name}", world_size)
    if precision == "fp32":
        assert [rank["values"] for rank in ranks] == [0, 0]
        assert all("none" in rank["message"] for rank in ranks)
        return
    weights = sum(tensor.numel() for tensor in load_file(folder / "hf" / "llama3.1" / "model.safetensors").values())
    if TP in parallel:
        norms = sum(
            tensor.numel()
            for key, tensor in load_file(folder / "hf" / "llama3.1" / "model.safetensors").items()
            if "norm" in key
        )
        weights += norms  # which both ranks hold
    assert {rank["values"] for rank in ranks} == {weights}
    moved = next(rank["moved"] for rank in ranks if "moved" in rank)
    for rank in ranks:
        assert ": 1 of " in rank["refused"]
        assert moved in rank["refused"]
        assert "model.import_gate=false" in rank["refused"]


def test_masters_of_fp8_weights_are_not_waved_through(folder: Path) -> None:
    for rank in told(folder, "masters DP2", 2):
        assert "is an FP8 weight, by which its master can't be checked" in rank["fp8"]


def test_masters_after_an_import_are_the_hugging_face_weights(folder: Path) -> None:
    (rank,) = told(folder, "masters one", 1)
    assert rank["equal to Hugging Face"] == list(HF_NAMES)


def test_the_examples_of_the_page_are_valid_configurations() -> None:
    text = (REPOSITORY / "docs" / "monitors.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = {
        "run_dir": "run", "model": {"checkpoint": "a"}, "data": {"blend": [{"name": "en", "prefix": "en"}]},
        "training": {"steps": 1, "global_batch_size": 1},
    }  # fmt: skip
    monitors, early_stop = (RunConfig.model_validate({**rest, **yaml.safe_load(example)}) for example in examples)
    assert monitors.logging.norms_interval > 0
    assert {rule.action for rule in monitors.evaluation.rules} == {"warn", "stop", "reweight"}
    assert early_stop.evaluation.early_stop.patience == 4


def test_the_page_has_the_tolerances_of_the_code() -> None:
    text = (REPOSITORY / "docs" / "monitors.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(Tolerances):
        fp32, bf16 = (f"{getattr(TOLERANCES[precision], field.name):g}" for precision in ("fp32", "bf16"))
        assert f"| `{field.name}` |" in text
        assert re.search(rf"^\| `{field.name}` \|.*\| {fp32} \| {bf16} \|$", text, re.MULTILINE), field.name


def group(name: str) -> str:
    parts = {"norm": "norms", "embed_tokens": "embedding", "lm_head": "output", "self_attn": "attention", "mlp": "mlp"}
    return next(part for key, part in parts.items() if key in name)


def grouped(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, tensor in tensors.items():
        sums[group(name)] = sums.get(group(name), 0.0) + float(tensor.double().square().sum())
    return {name: math.sqrt(total) for name, total in sums.items()}


@pytest.fixture(scope="module")
def by_torch(folder: Path) -> dict[str, dict[str, Any]]:
    """Every figure from the Hugging Face folder alone."""
    results = {}
    for shape in NORM_SHAPES:
        model = AutoModelForCausalLM.from_pretrained(folder / "hf" / shape, dtype=torch.float32)
        ids = training_batch(model.config.vocab_size)
        logits = model(input_ids=ids[:, :-1]).logits
        functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        logits = logits.detach().double()
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        results[shape] = {
            "weights": grouped(weights),
            "gradients": grouped({name: gradient for name, gradient in gradients.items() if gradient is not None}),
            "rms": logits.square().mean().sqrt().item(),
            "max_abs": logits.abs().max().item(),
            "mean_logsumexp": logits.logsumexp(-1).mean().item(),
        }
    return results


@pytest.mark.parametrize("shape", NORM_SHAPES)
@pytest.mark.parametrize("layout", NORMED)
def test_norms_equal_plain_torch_in_every_layout(
    folder: Path, by_torch: dict[str, dict[str, Any]], shape: str, layout: str
) -> None:
    expected = by_torch[shape]
    ranks = told(folder, f"norms {shape} {layout}", NORMED[layout][0])
    assert all(rank["norms"] == ranks[0]["norms"] for rank in ranks)
    found = ranks[0]["norms"]
    assert ("output" in found["weights"]) == (shape != "tied-llama")
    for kind, total in (("weights", "weight"), ("gradients", "gradient")):
        assert found[kind] == pytest.approx(expected[kind], rel=1e-5)
        assert found[total] == pytest.approx(math.hypot(*expected[kind].values()), rel=1e-5)
    assert found["gradient"] == pytest.approx(ranks[0]["optimizer"], rel=1e-5), "as the optimizer's clipping has it"
    logits = found["logits"]
    assert logits.pop("positions") == SEQUENCES * SEQ_LENGTH
    assert logits == pytest.approx({key: expected[key] for key in logits}, rel=1e-5)
    assert ranks[0]["again"]["logits"] is None, "nothing was observed since"
    assert ranks[0]["again"]["gradients"] is None


@pytest.mark.parametrize("layout", ["one", "TP2", "PP2 DP2", "TP2 PP2"])
def test_positions_that_do_not_count_and_padding_are_left_out_of_logits(folder: Path, layout: str) -> None:
    logits, mask, vocabulary = made_up_logits()
    counted = logits[:, :, :vocabulary][mask.t() > 0].double()
    assert 0 < len(counted) < mask.numel()
    expected = {
        "rms": counted.square().mean().sqrt().item(),
        "max_abs": counted.abs().max().item(),
        "mean_logsumexp": counted.logsumexp(-1).mean().item(),
        "positions": len(counted),
    }
    for rank in told(folder, f"norms odd {layout}", NORMED[layout][0]):
        assert rank["masked"] == pytest.approx(expected, rel=1e-6)
