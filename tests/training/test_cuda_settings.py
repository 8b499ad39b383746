"""What CUDA's settings ask of the trainer, as far as no GPU is needed to see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.platform import Platform
from megatron_native.training.cuda_settings import prepare_device, without_effect

CPU = Platform("cpu", torch.device("cpu"), "gloo", 0, 0, 1)
CUDA = Platform("cuda", torch.device("cuda", 0), "nccl", 0, 0, 4)
MODEL = ModelConfig(
    family="llama", num_layers=2, hidden_size=8, ffn_hidden_size=16, num_attention_heads=4, num_query_groups=4, kv_channels=2,
    vocab_size=32, max_position_embeddings=64, norm_epsilon=1e-5, rotary_base=10000.0,
)  # fmt: skip


def run(**sections: Any) -> RunConfig:
    return RunConfig.model_validate({
        "run_dir": "run", "model": {"checkpoint": "imported"}, "data": {"seq_length": 64, "blend": [{"prefix": "tokens"}]},
        "training": {"steps": 1, "global_batch_size": 4, **sections.pop("training", {})}, **sections,
    })  # fmt: skip


@pytest.fixture
def kernels() -> Iterator[None]:
    """Torch's choice of kernels as it was, after the test."""
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    cudnn.deterministic, cudnn.benchmark = before[1:]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("mode", "platform", "exact"), [("exact", CUDA, True), ("fast", CUDA, False), ("exact", CPU, False)]
)
def test_exact_mode_takes_deterministic_kernels_on_cuda(mode: str, platform: Platform, exact: bool) -> None:
    prepare_device(run(training={"mode": mode}), MODEL, platform)
    assert torch.are_deterministic_algorithms_enabled() is exact


def test_tensor_parallel_overlap_asks_for_buffers_on_cuda_only() -> None:
    overlapping = run(parallel={"tensor_model_parallel_size": 4, "sequence_parallel": True, "tp_comm_overlap": True})
    prepare_device(overlapping, MODEL, CPU)
    with pytest.raises(UserError, match="tp_comm_overlap needs Transformer Engine"):
        prepare_device(overlapping, MODEL, CUDA)


def test_what_the_cpu_leaves_out_is_named() -> None:
    assert without_effect(run(), CPU) is None
    given = run(profiling={"nvtx": True}, environment={"NCCL_DEBUG": "INFO"})
    assert without_effect(given, CPU) == "without effect on the CPU: profiling.nvtx, environment"
    assert without_effect(given, CUDA) is None


def test_the_names_are_those_of_settings() -> None:
    every = run(
        parallel={
            "tensor_model_parallel_size": 2, "sequence_parallel": True, "tp_comm_overlap": True,
            "defer_embedding_wgrad_compute": True,
        },
        profiling={"nvtx": True}, environment={"A": "1"},
    )  # fmt: skip
    said = without_effect(every, CPU)
    assert said is not None
    for name in said.removeprefix("without effect on the CPU: ").split(", "):
        value: Any = every
        for part in name.split("."):
            value = getattr(value, part)
        assert value, name
