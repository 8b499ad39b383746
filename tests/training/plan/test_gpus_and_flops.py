"""The table of GPUs, and the FLOP formulas against published figures."""

from __future__ import annotations

import pytest

from megatron_native.errors import UserError
from megatron_native.training.plan.flops import layer_matrix_parameters, model_flop_utilisation, token_flops
from megatron_native.training.plan.gpus import GIB, gpu_names, read_gpu
from tests.training.plan.shapes import LLAMA3_8B, LLAMA3_70B


def test_flop_of_a_sequence_of_llama3_70b_in_both_conventions() -> None:
    flops = token_flops(LLAMA3_70B, 8192)
    assert flops.total("full") * 8192 == pytest.approx(3.94e15, rel=0.002)
    assert flops.total("causal") * 8192 == pytest.approx(3.68e15, rel=0.002)


def test_tflops_of_a_published_row_of_llama3_8b() -> None:
    """10,682 tokens/s/GPU are 619 TFLOP/s with full attention and 550 causal."""
    flops = token_flops(LLAMA3_8B, 8192)
    assert 10_682 * flops.total("full") / 1e12 == pytest.approx(619, abs=1)
    assert 10_682 * flops.total("causal") / 1e12 == pytest.approx(550, abs=1)
    assert model_flop_utilisation(10_682, flops.total("causal"), 989.4) == pytest.approx(550 / 989.4, abs=0.002)


def test_matrices_of_all_layers_are_the_model_but_for_embeddings_and_norms() -> None:
    """LLaMA3-8B has 8,030,261,248 parameters, of which two embeddings and 65 norms are no layer matrices."""
    others = 2 * 128256 * 4096 + 65 * 4096
    assert 32 * layer_matrix_parameters(LLAMA3_8B) == 8_030_261_248 - others


def test_every_gpu_says_where_its_figures_are_from() -> None:
    for name in gpu_names():
        gpu = read_gpu(name)
        assert gpu.source["rates"] and gpu.source["memory_gib"]
        assert "choice" in str(gpu.source) or "calibrated" in str(gpu.source) or "those of" in str(gpu.source)
        assert 0 < gpu.usable_bytes < gpu.memory_gib * GIB


def test_links_inside_a_node_and_between() -> None:
    gpu = read_gpu("h100-80g")
    inside, port = 450e9 * 0.8, 50e9 * 0.8
    assert gpu.link_bytes_s(8, 1) == inside
    assert gpu.link_bytes_s(2, 4) == inside  # ranks 0 and 4 of a node
    assert gpu.link_bytes_s(2, 8) == port  # one GPU in each of two nodes
    assert gpu.link_bytes_s(16, 4) == 2 * port  # two members a node: the ring enters through two ports
    assert gpu.link_bytes_s(16, 1) == 8 * port


def test_a_gpu_that_is_not_there_and_one_without_fp8() -> None:
    with pytest.raises(UserError, match="did you mean h100-80g"):
        read_gpu("h100-80gb")
    with pytest.raises(UserError, match="has no FP8"):
        _ = read_gpu("a100-80g").fp8_flops
