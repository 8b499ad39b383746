"""What the plan says a rank holds is what the ranks of a real run hold."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.models.families import to_model_config
from megatron_native.training.plan.memory import RankMemory, rank_memory
from tests.distributed import run_jobs
from tests.tiny_models import SHAPES


@dataclass(frozen=True)
class Case:
    """A layout with settings that differ from those of a run of one process."""

    world_size: int
    parallel: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    shape: str = "llama3.1"
    layers: int = 4
    packed: bool = False

    def run(self, folder: Path) -> dict[str, Any]:
        """The raw configuration."""
        return {
            "run_dir": str(folder), "platform": "cpu", "model": {"hf_config": "unused"},
            "data": {"seq_length": 96, "blend": [{"prefix": "unused"}], "document_boundaries": self.packed},
            "training": {
                "steps": 1, "micro_batch_size": 2, "global_batch_size": 16, "precision": "bf16", **self.training,
            },
            "parallel": self.parallel, "optimizer": self.optimizer,
        }  # fmt: skip

    def model(self) -> ModelConfig:
        """The shape of its tiny model."""
        shape = SHAPES[self.shape]
        return to_model_config({**shape.config, "model_type": shape.model_type, "num_hidden_layers": self.layers})


TP, PP, VPP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"
FULL = {"recompute": "full"}
CASES = {
    "one process, full recomputation": Case(1, {}, FULL),
    "one process, FP32": Case(1, {}, {"precision": "fp32"}),
    "DP2, BF16 gradients": Case(2, {}, optimizer={"grad_reduce_in_fp32": False}),
    "DP2, whole optimizer": Case(2, {"use_distributed_optimizer": False}),
    "TP2, sequence parallel, core attention again": Case(
        2, {TP: 2, "sequence_parallel": True}, {"recompute": "selective", "recompute_modules": ["core_attn"]}
    ),
    "TP2, MLP again": Case(2, {TP: 2}, {"recompute": "selective", "recompute_modules": ["mlp"]}),
    "PP2, full recomputation": Case(2, {PP: 2}, {**FULL, "recompute_num_layers": 2}),
    "PP2, first layer of a stage recomputed": Case(2, {PP: 2}, {**FULL, "recompute_method": "block"}),
    "PP2, three layers first": Case(2, {PP: 2, "num_layers_in_first_pipeline_stage": 3}),
    "PP2 VPP2 by hand": Case(2, {PP: 2, VPP: 2, "pipeline_layout": "Et|t*2|t*2|tL"}, layers=6),
    "TP2 PP2, sequence parallel": Case(4, {TP: 2, PP: 2, "sequence_parallel": True}),
    "TP2 PP2 VPP2, sequence parallel, packed, biases": Case(
        4, {TP: 2, PP: 2, VPP: 2, "sequence_parallel": True}, {"micro_batch_size": 1}, shape="qwen1.5", packed=True
    ),
    "PP2 DP2, tied embeddings": Case(4, {PP: 2, "overlap_grad_reduce": True}, shape="tied-llama"),
    "PP4": Case(4, {PP: 4}),
}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Case → what each rank of its real run says it holds."""
    folder = tmp_path_factory.mktemp("plan")
    for world_size in sorted({case.world_size for case in CASES.values()}):
        jobs = [
            {"run": case.run(folder / name), "model": case.model().model_dump(mode="json"), "out": str(folder / name)}
            for name, case in CASES.items() if case.world_size == world_size
        ]  # fmt: skip
        run_jobs(folder, world_size, jobs, module="tests.training.plan.plan_worker")
    return {
        name: [json.loads((folder / name / f"rank-{rank}.json").read_text()) for rank in range(case.world_size)]
        for name, case in CASES.items()
    }


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[RankMemory]]:
    """Case → the plan of each of its pipeline stages."""
    plans = {}
    for name, case in CASES.items():
        run = RunConfig.model_validate(case.run(tmp_path_factory.getbasetemp()))
        stages = run.parallel.pipeline_model_parallel_size
        plans[name] = [
            rank_memory(run, case.model(), case.world_size, stage, "cpu", "torch") for stage in range(stages)
        ]
    return plans


@pytest.mark.parametrize("name", CASES)
def test_parameters_and_layers_are_those_of_every_rank(name: str, held: Any, planned: Any) -> None:
    for real in held[name]:
        plan = planned[name][real["pipeline_rank"]]
        counts = [_product(shape) for chunk in real["parameters"] for shape in chunk.values()]
        assert plan.parameters == sum(counts)
        assert [list(chunk) for chunk in plan.layers] == real["layers"]


@pytest.mark.parametrize("name", CASES)
def test_weights_gradients_and_optimizer_state_take_what_they_take_on_every_rank(
    name: str, held: Any, planned: Any
) -> None:
    for real in held[name]:
        plan = planned[name][real["pipeline_rank"]]
        assert (plan.weights, plan.gradients) == (real["weights"], real["gradients"])
        # Shares end where a buffer is cut into equal parts, padding included: ranks differ by no more than the padding.
        assert plan.optimizer == pytest.approx(real["optimizer"], rel=0.01)


@pytest.mark.parametrize("name", CASES)
def test_activations_are_those_of_a_step_of_every_rank(name: str, held: Any, planned: Any) -> None:
    for real in held[name]:
        plan = planned[name][real["pipeline_rank"]]
        kept = {part: size for part, size in plan.activations.items() if part != "stage inputs"}
        print(f"{name}, stage {plan.pipeline_rank}: planned {sum(kept.values()):,} bytes, real "
              f"{sum(real['activations'].values()):,}\n  {kept}\n  {real['activations']}")  # fmt: skip
        assert sum(kept.values()) == pytest.approx(sum(real["activations"].values()), rel=0.1)
        assert real["left"] == 0


def _product(shape: list[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
