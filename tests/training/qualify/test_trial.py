"""The slice that the ladder trains fits the processes there are and keeps the run's kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_native.config.layout import check_layout
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.training.qualify.ladder import RUNGS, chosen_rungs, why_not
from megatron_native.training.qualify.trial import (
    NO_OVERLAP,
    needed_bytes,
    own_run,
    runs_own_checkpoint,
    shrunk,
    trial_model,
    trial_parallel,
    trial_run,
)

TP, PP, VPP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"
LLAMA3_70B = ModelConfig(
    family="llama", num_layers=80, hidden_size=8192, ffn_hidden_size=28672, num_attention_heads=64, num_query_groups=8,
    kv_channels=128, vocab_size=128256, max_position_embeddings=8192, norm_epsilon=1e-5, rotary_base=500000.0,
)  # fmt: skip
PUBLISHED = {
    TP: 4, PP: 8, VPP: 5, "sequence_parallel": True, "pipeline_layout": "Et*2|(t*2|)*34,t*3|(t*2|)*3,tL",
    "overlap_grad_reduce": True, "overlap_param_gather": True, "tp_comm_overlap": True,
}  # fmt: skip


def run_of(**sections: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "run_dir": "run", "model": {"checkpoint": "checkpoint"}, "data": {"blend": [{"prefix": "tokens"}], "seq_length": 8192},
        "training": {"steps": 100, "global_batch_size": 256, "precision": "fp8"}, "parallel": PUBLISHED,
    }  # fmt: skip
    return RunConfig.model_validate(settings | sections)


@pytest.mark.parametrize(
    ("world_size", "tp", "pp", "copies"),
    [(1, 1, 1, 1), (2, 2, 1, 1), (4, 4, 1, 1), (8, 4, 1, 2), (16, 4, 2, 2), (64, 4, 8, 2)],
)
def test_layouts_shrink_to_the_processes(world_size: int, tp: int, pp: int, copies: int) -> None:
    parallel = trial_parallel(run_of().parallel, world_size)
    assert (parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size) == (tp, pp)
    assert world_size // (tp * pp) == copies
    assert parallel.virtual_pipeline_model_parallel_size == (2 if pp > 1 else None)
    assert parallel.pipeline_layout is None and parallel.sequence_parallel == (tp > 1)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("world_size", [1, 2, 8, 16])
def test_the_slice_is_a_possible_run(platform: Any, world_size: int) -> None:
    short = trial_run(run_of(), LLAMA3_70B, world_size, Path("folder"), platform)
    model = trial_model(LLAMA3_70B, short.parallel, platform)
    check_layout(short, model, world_size)
    assert short.training.precision == "bf16" and not short.parallel.overlap_grad_reduce, "rungs of their own"
    assert model.num_layers >= 4 and model.num_attention_heads // model.num_query_groups > 1
    if platform == "cuda":
        assert model.model_copy(update={"num_layers": 80}) == LLAMA3_70B
    else:
        assert model.hidden_size <= 512 and model.vocab_size <= 512


def test_its_own_checkpoint_is_looked_at_where_its_layout_fits(tmp_path: Path) -> None:
    assert not runs_own_checkpoint(run_of(), 8)
    assert runs_own_checkpoint(run_of(), 64)
    small = run_of(parallel={TP: 4})
    assert runs_own_checkpoint(small, 8)
    own = own_run(small, tmp_path, 8)
    assert own.model == small.model and own.run_dir == tmp_path / "own"
    assert own.parallel == small.parallel.model_copy(update=NO_OVERLAP)
    check_layout(own, LLAMA3_70B, 8)


def test_its_own_checkpoint_is_left_alone_where_the_model_is_too_large() -> None:
    """70.55e9 weights: 2 + 4 bytes and 12 of the optimizer, on one process; with TP4 and 16 copies a quarter of it."""
    alone = needed_bytes(run_of(parallel={}), LLAMA3_70B, 1)
    assert alone == pytest.approx(18 * 70.55e9, rel=0.001)
    assert needed_bytes(run_of(parallel={TP: 4}), LLAMA3_70B, 64) == pytest.approx(
        (6 + 12 / 16) * 70.55e9 / 4, rel=0.001
    )


def test_a_slice_is_shrunk_to_the_memory_of_the_gpu() -> None:
    """One 80 GB GPU can't hold four layers of 70B's width with its vocabulary; eight at TP4 can."""
    for world_size, layers, vocabulary in ((8, 4, 128256), (1, 3, 32064)):
        short = trial_run(run_of(), LLAMA3_70B, world_size, Path("folder"), "cuda")
        slice_ = trial_model(LLAMA3_70B, short.parallel, "cuda")
        small = shrunk(slice_, short, world_size, int(0.7 * 80e9))
        assert (small.num_layers, small.vocab_size) == (layers, vocabulary)
        assert needed_bytes(short, small, world_size) <= 0.7 * 80e9
        assert small.hidden_size == LLAMA3_70B.hidden_size and small.ffn_hidden_size == LLAMA3_70B.ffn_hidden_size


def test_what_cannot_be_tried_says_why() -> None:
    overlaps, fp8, memory = (
        next(rung for rung in RUNGS if rung.name == name) for name in ("overlaps", "fp8", "memory")
    )
    alone = trial_run(run_of(), LLAMA3_70B, 1, Path("folder"), "cpu", overlap=True)
    assert "--nproc" in str(why_not(overlaps, alone, "cpu", 1))
    assert why_not(memory, alone, "cpu", 1) == "CUDA only" and why_not(memory, alone, "cuda", 1) is None
    assert why_not(fp8, alone, "cpu", 1) is None
    exact = run_of(training={"steps": 1, "global_batch_size": 1, "precision": "fp32"})
    plain = trial_run(exact, LLAMA3_70B, 1, Path("folder"), "cpu")
    assert why_not(fp8, plain, "cpu", 1) == "the run is FP32"
    eight = trial_run(run_of(), LLAMA3_70B, 8, Path("folder"), "cuda", overlap=True)
    assert why_not(overlaps, eight, "cuda", 8) is None


def test_rungs_are_chosen_by_name() -> None:
    assert chosen_rungs(None) == RUNGS
    assert [rung.name for rung in chosen_rungs("masters, logits")] == ["logits", "masters"]
    for wrong in ("logit", ""):
        with pytest.raises(Exception, match="logits"):
            chosen_rungs(wrong)
