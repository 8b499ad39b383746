"""Phases in real runs: the same samples for every layout, changes that survive a resume, branches off a trunk."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.torch_dist import TorchDistReader, read_common
from megatron_native.data.ledger import read_ledger
from megatron_native.data.trace import Trace
from megatron_native.errors import UserError
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.sharded_state import refuse_missing_groups
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config, write_token_dataset

TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
RAMP = [
    {"name": "ramp", "tokens": 700, "global_batch_size": 8, "batch_ramp": {"start": 4, "increment": 4, "tokens": 300}},
    {
        "name": "long",
        "steps": 2,
        "seq_length": 64,
        "packing": "best_fit",
        "global_batch_size": 4,
        "rotary_base": 20000.0,
    },
]
ORDER_LAYOUTS: dict[str, tuple[int, dict[str, int], int]] = {
    "one": (1, {}, 1), "micro 2": (1, {}, 2), "DP2": (2, {}, 1), "DP2 micro 2": (2, {}, 2), "TP2": (2, {TP: 2}, 2),
    "PP2": (2, {PP: 2}, 1), "DP4": (4, {}, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny model, and two datasets beside it."""
    folder = tmp_path_factory.mktemp("phases")
    import_hf(make_tiny_model(folder / "hf", "llama3.1"), folder / "imported")
    write_token_dataset(folder / "a", seed=3)
    write_token_dataset(folder / "b", seed=4)
    return folder


def blend(folder: Path, **weights: float) -> dict[str, Any]:
    return {"seq_length": 16, "blend": [{"prefix": str(folder / name), "weight": w} for name, w in weights.items()]}


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_json_lines(run / "metrics.jsonl") if "loss" in record]


@pytest.fixture(scope="module")
def orders(imported: Path) -> dict[str, dict[int, list[str]]]:
    """Layout → step → hashes of its samples in the order of their numbers, each read exactly as often as ranks share it."""
    jobs: dict[int, list[dict[str, Any]]] = {1: [], 2: [], 4: []}

    def job(name: str, world: int, parallel: dict[str, int], micro: int, stop: int | None = None) -> None:
        config = run_config(
            imported / "order" / name, imported / "imported", imported / "a", parallel=parallel, phases=RAMP,
            data=blend(imported, a=2, b=1), training={"micro_batch_size": micro, "steps": None, "stop_after": stop},
            optimizer={"adam_eps": 1e-5}, checkpointing={"save_optimizer": True},
        )  # fmt: skip
        jobs[world].append({"train": config})

    for name, (world, parallel, micro) in ORDER_LAYOUTS.items():
        job(name, world, parallel, micro)
    job("resumed", 1, {}, 1, stop=4)
    for world in (1, 2, 4):
        if world == 4:
            job("resumed", 4, {}, 1)
        run_jobs(imported / "order", world, jobs[world], module="tests.training.order_worker")
    return {name: order_of(imported / "order" / name) for name in (*ORDER_LAYOUTS, "resumed")}


def order_of(run: Path) -> dict[int, list[str]]:
    read: dict[int, dict[int, str]] = {}
    per_rank = Counter()
    for path in sorted(run.glob("samples-*.jsonl")):
        for line in path.read_text().splitlines():
            step, number, digest = json.loads(line)
            assert read.setdefault(step, {}).setdefault(number, digest) == digest, "every rank reads the same sample"
            per_rank[(path.name, number)] += 1
    assert max(per_rank.values()) == 1, "no rank reads a sample twice"
    return {step: [samples[number] for number in sorted(samples)] for step, samples in sorted(read.items())}


@pytest.mark.parametrize("layout", [*list(ORDER_LAYOUTS)[1:], "resumed"])
def test_samples_are_the_same_for_every_layout_and_across_a_resume(orders: dict[str, Any], layout: str) -> None:
    assert orders[layout] == orders["one"]
    # 64 tokens a step until 300 of them are done, then 128 until 700; then the long phase
    assert [len(samples) for samples in orders["one"].values()] == [4] * 5 + [8] * 3 + [4] * 2


def test_losses_are_the_same_too(orders: dict[str, Any], imported: Path) -> None:
    reference = losses(imported / "order" / "one")
    assert len(reference) == len(orders["one"])
    for name in (*ORDER_LAYOUTS, "resumed"):
        assert losses(imported / "order" / name) == pytest.approx(reference, abs=1e-5), name


def test_a_longer_rotary_base_travels_with_the_checkpoint(orders: dict[str, Any], imported: Path) -> None:
    last = sorted((imported / "order" / "one" / "checkpoints").glob("step_*"))[-1]
    model = json.loads((last / "run" / "model.json").read_text())
    assert model["rotary_base"] == 20000.0
    before = json.loads((imported / "imported" / "run" / "model.json").read_text())
    assert before["rotary_base"] != 20000.0


@pytest.fixture(scope="module")
def branches(imported: Path) -> Path:
    """A trunk of six steps saved after four; two anneals off it; a run whose second phase starts with no moments."""
    folder = imported / "branches"
    trunk = run_config(
        folder / "trunk", imported / "imported", imported / "a", data=blend(imported, a=1),
        training={"steps": 6}, optimizer={"schedule": "constant", "warmup_steps": 1}, checkpointing={"save_interval": 4},
    )  # fmt: skip
    jobs = [trunk]
    origin = {"checkpoint": None, "branch_from": str(folder / "trunk/checkpoints/step_00000004")}
    for name, share in (("anneal", 0.5), ("other anneal", 1.0)):
        config = run_config(
            folder / name, imported / "imported", imported / "a", data=blend(imported, a=1 - share, b=share),
            training={"steps": None}, model=origin,
            phases=[{"name": "anneal", "steps": 3, "schedule": "sqrt", "min_lr": 0.0}],
        )  # fmt: skip
        jobs.append(config)
    for state in ("keep", "reset"):
        phases = [{"name": "one", "steps": 2}, {"name": "two", "steps": 1, "optimizer_state": state}]
        jobs.append(run_config(
            folder / state, imported / "imported", imported / "a", data=blend(imported, a=1), training={"steps": None},
            optimizer={"schedule": "constant", "warmup_steps": 0}, phases=phases,
        ))  # fmt: skip
    jobs.append(run_config(
        folder / "slow embeddings", imported / "imported", imported / "a", data=blend(imported, a=1),
        training={"steps": 2}, optimizer={"warmup_steps": 0, "embedding_lr_multiplier": 0.0},
    ))  # fmt: skip
    jobs.append(run_config(
        folder / "embeddings left", imported / "imported", imported / "a", data=blend(imported, a=1), model=origin,
        training={"steps": 2}, optimizer={"warmup_steps": 0, "embedding_lr_multiplier": 0.0},
    ))  # fmt: skip
    for stop, weights in ((3, {"a": 1}), (6, {"a": 1, "b": 3})):
        jobs.append(run_config(
            folder / "edited", imported / "imported", imported / "a", data=blend(imported, **weights),
            training={"steps": 6, "stop_after": stop},
        ))  # fmt: skip
    run_jobs(folder, 1, [{"train": {**job, "model": {k: v for k, v in job["model"].items() if v}}} for job in jobs])
    return folder


def test_a_branch_may_give_embeddings_another_learning_rate(branches: Path) -> None:
    before = TorchDistReader(branches / "trunk" / "checkpoints" / "step_00000004")
    last = branches / "embeddings left" / "checkpoints" / "step_00000006"
    after = TorchDistReader(last)
    weights = {key for key in before.tensors if not key.startswith("optimizer.")}
    changed = {key for key in weights if not torch.equal(before.read(key), after.read(key))}
    assert changed == weights - {"embedding.word_embeddings.weight", "output_layer.weight"}
    groups = read_common(last)["optimizer"]["optimizer"]["param_groups"]
    assert {float(group["step"]) for group in groups} == {6.0}


def test_an_optimizer_that_is_not_distributed_refuses_another_learning_rate_of_embeddings() -> None:
    def group(lr_mult: float) -> dict[str, Any]:
        return {"wd_mult": 1.0, "lr_mult": lr_mult, "is_expert_parallel": False, "is_decoupled_lr": False}

    parameters = [{"params": [torch.zeros(1)], **group(1.0)}, {"params": [torch.zeros(1)], **group(0.5)}]
    optimizer = SimpleNamespace(optimizer=torch.optim.AdamW(parameters))
    with pytest.raises(UserError, match=r"step_00000002 was saved with another optimizer\.embedding_lr_multiplier"):
        refuse_missing_groups(optimizer, {"param_groups": [group(1.0)]}, Path("step_00000002"))
    refuse_missing_groups(optimizer, {"optimizer": {"param_groups": [group(0.5), group(1.0)]}}, Path("step_00000002"))


def test_several_anneals_branch_off_one_trunk(branches: Path) -> None:
    trunk = losses(branches / "trunk")
    assert len(trunk) == 6
    for name in ("anneal", "other anneal"):
        records = [record for record in read_json_lines(branches / name / "metrics.jsonl") if "loss" in record]
        assert [record["step"] for record in records] == [5, 6, 7]
        peak = 1e-3
        assert [record["lr"] for record in records] == pytest.approx([peak * (1 - (n / 3) ** 0.5) for n in (1, 2, 3)])
        ledger = read_ledger(branches / name)
        assert [segment.phase for segment in ledger.segments] == ["main", "anneal"]
        assert ledger.segments[1].taken["a"][0].sequences == 32, "goes on where the trunk stood"
    assert losses(branches / "anneal") != losses(branches / "other anneal")
    assert len(losses(branches / "trunk")) == 6, "the trunk is as it was"


def test_embeddings_have_a_learning_rate_of_their_own(branches: Path, imported: Path) -> None:
    before = TorchDistReader(imported / "imported")
    after = TorchDistReader(branches / "slow embeddings" / "checkpoints" / "step_00000002")
    changed = {key for key in before.tensors if not torch.equal(before.read(key), after.read(key))}
    assert changed == set(before.tensors) - {"embedding.word_embeddings.weight", "output_layer.weight"}


def test_an_edited_blend_begins_with_the_next_step(branches: Path) -> None:
    ledger = read_ledger(branches / "edited")
    assert [(segment.first_step, segment.weights) for segment in ledger.segments] == [
        (1, {"a": 1}),
        (4, {"a": 1, "b": 3}),
    ]
    assert ledger.segments[1].taken["a"][0].sequences == 24
    trace = Trace(branches / "edited")
    assert {piece.dataset for step in (1, 2, 3) for piece in trace.step(step)} == {"a"}
    names = [piece.dataset for step in (4, 5, 6) for piece in {p.sample: p for p in trace.step(step)}.values()]
    assert (names.count("a"), names.count("b")) == (6, 18)
    assert len(losses(branches / "edited")) == 6


def moments(run: Path) -> dict[str, torch.Tensor]:
    reader = TorchDistReader(run / "checkpoints" / "step_00000003")
    return {key: reader.read(key) for key in reader.tensors if key.startswith("optimizer.state.exp_avg.")}


def test_moments_are_kept_or_begun_anew(branches: Path) -> None:
    kept, reset = moments(branches / "keep"), moments(branches / "reset")
    assert losses(branches / "keep")[:2] == losses(branches / "reset")[:2]
    assert losses(branches / "keep")[2] == losses(branches / "reset")[2], "the loss of step 3 comes before its update"
    # with none before, the first moment after one step is (1 - beta1) times the clipped gradient, of norm 1 here
    norm = sum(float(tensor.double().square().sum()) for tensor in reset.values()) ** 0.5
    assert norm == pytest.approx(0.1, rel=1e-3)
    assert any(not torch.equal(kept[key], reset[key]) for key in kept)
