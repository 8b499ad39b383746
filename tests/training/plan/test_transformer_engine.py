"""The rules for Transformer Engine's layers, against hand calculations and against what plain torch is measured to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import resolve_phases
from megatron_native.config.run import RunConfig
from megatron_native.models.families import to_model_config
from megatron_native.training.plan.layer_time import is_fp8_layer
from megatron_native.training.plan.memory import NCCL_ALLOWANCE, rank_memory
from megatron_native.training.plan.transformer_engine import TransformerEngineRules
from tests.tiny_models import SHAPES
from tests.training.conftest import run_config

TP, PP, VPP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"
LLAMA3_70B = ModelConfig(
    family="llama", num_layers=80, hidden_size=8192, ffn_hidden_size=28672, num_attention_heads=64, num_query_groups=8,
    kv_channels=128, vocab_size=128256, max_position_embeddings=8192, norm_epsilon=1e-5, rotary_base=500000.0,
)  # fmt: skip


def run_of(**sections: Any) -> RunConfig:
    """A BF16 run of one sequence of 8192 tokens a micro-batch."""
    sections["training"] = {
        "precision": "bf16", "micro_batch_size": 1, "global_batch_size": 1024, **sections.get("training", {})
    }  # fmt: skip
    config = run_config(Path("run"), Path("unused"), Path("unused"), **sections)
    return RunConfig.model_validate({**config, "platform": "cuda", "data": {**config["data"], "seq_length": 8192}})


def rules_of(run: RunConfig) -> TransformerEngineRules:
    return TransformerEngineRules(run, LLAMA3_70B, resolve_phases(run)[0])


SHARDED = {TP: 8, PP: 4, VPP: 5, "sequence_parallel": True}


def test_a_layer_in_bf16_keeps_what_its_modules_save() -> None:
    kept = rules_of(run_of(parallel=SHARDED)).layer(40, 0, 4).kept
    # By hand, a rank's 1024 tokens outside of the matrices and 8192 inside, 8 heads, 1 group, 3584 of the feed-forward width.
    assert kept == {
        "norms": 2 * 1024 * (8192 * 2 + 4),  # two inputs, an inverse deviation a token
        "qkv": 1024 * 8192 * 2,  # its normalised input
        "attention core": 8192 * (8 + 1 + 1 + 8) * 128 * 2 + 8192 * 8 * 4,  # q, k, v, output; a sum a row and head
        "projection": 0,  # the attention's output, kept already
        "fc1": 1024 * 8192 * 2,
        "activation": 8192 * 2 * 3584 * 2,  # gate and up
        "fc2": 8192 * 3584 * 2,
    }


def test_in_fp8_inputs_of_products_take_a_byte_and_layers_at_the_ends_stay_bf16() -> None:
    run = run_of(parallel=SHARDED, training={"precision": "fp8"}, fp8={"bf16_layers": [7]})
    rules = rules_of(run)
    plain, fp8 = rules.layer(0, 0, 4).kept, rules.layer(40, 0, 4).kept
    assert [number for number in range(80) if not is_fp8_layer(run, LLAMA3_70B, number)] == [0, 7, 79]
    assert (fp8["qkv"], fp8["fc1"], fp8["fc2"]) == (plain["qkv"] // 2, plain["fc1"] // 2, plain["fc2"] // 2)
    assert (plain["projection"], fp8["projection"]) == (0, 8192 * 8 * 128)  # a copy beside the attention's output
    assert fp8["activation"] == plain["activation"]


@pytest.mark.parametrize(
    ("training", "kept", "recomputed"),
    [
        ({"recompute": "full"}, 4 * 1024 * 8192 * 2, "a layer"),
        ({"recompute": "full", "recompute_num_layers": 4}, 1024 * 8192 * 2, "four layers"),
        ({"recompute": "selective", "recompute_modules": ["mlp"]}, None, "an MLP"),
    ],
)
def test_recomputation_keeps_inputs_and_makes_the_rest_again(
    training: dict[str, Any], kept: int | None, recomputed: str
) -> None:
    whole = rules_of(run_of(parallel=SHARDED)).layer(40, 0, 4).kept
    layers = [rules_of(run_of(parallel=SHARDED, training=training)).layer(number, number, 4) for number in range(4)]
    mlp = whole["fc1"] + whole["activation"] + whole["fc2"]
    again = {"a layer": sum(whole.values()), "four layers": 4 * sum(whole.values()), "an MLP": mlp}[recomputed]
    assert sum(sum(layer.kept.values()) for layer in layers) == (kept or 4 * (sum(whole.values()) - mlp))
    assert max(layer.recomputed for layer in layers) == again


def test_context_parallelism_splits_every_sequence() -> None:
    one, two = (
        rules_of(run_of(parallel={**SHARDED, "context_parallel_size": size})).layer(40, 0, 4) for size in (1, 2)
    )
    assert two.kept == {name: size // 2 for name, size in one.kept.items()}


@pytest.mark.parametrize("parallel", [{}, {TP: 2}, {TP: 2, "sequence_parallel": True}], ids=str)
def test_where_both_keep_the_same_the_rules_say_what_plain_torch_is_measured_to_keep(parallel: dict[str, Any]) -> None:
    run = run_of(parallel=parallel, training={"global_batch_size": 1})
    model = to_model_config({**SHAPES["llama2"].config, "model_type": "llama"})
    by_rule = rank_memory(run, model, parallel.get(TP, 1), 0, "cuda", "transformer_engine")
    measured = rank_memory(run, model, parallel.get(TP, 1), 0, "cuda", "torch")
    for part in ("embedding", "qkv", "fc1", "activation", "fc2", "output layer", "logits and loss"):
        assert by_rule.activations[part] == measured.activations[part], part
    assert by_rule.weights == measured.weights
    assert by_rule.communication["NCCL (allowance)"] == NCCL_ALLOWANCE


def test_fp8_weights_take_two_bytes_more_beside_bf16_and_none_in_its_place() -> None:
    model = to_model_config({**SHAPES["llama2"].config, "model_type": "llama"})
    one = {"training": {"global_batch_size": 1}}
    plain = rank_memory(run_of(**one), model, 1, 0)
    one["training"]["precision"] = "fp8"
    beside = rank_memory(run_of(**one, fp8={"first_layers_bf16": 2}), model, 1, 0)
    instead = rank_memory(run_of(**one, fp8={"param_gather": True}), model, 1, 0)
    # By hand: one layer of four is FP8; its matrices are 3 · 128² + 128² and 2 · 192 · 128 + 192 · 128.
    assert beside.weights - plain.weights == 2 * (4 * 128**2 + 3 * 192 * 128)
    assert instead.weights == plain.weights
    assert (beside.gradients, beside.optimizer) == (plain.gradients, plain.optimizer)


def test_deferred_gradients_of_the_output_layer_wait_on_the_last_stage() -> None:
    settings = {**SHARDED, VPP: None, "defer_embedding_wgrad_compute": True}
    run = run_of(parallel={**settings, "wgrad_deferral_limit": 3})
    without, some = rules_of(run).deferred(1), rules_of(run).deferred(64)
    # By hand: [8192, 128256 / 8] gradients and [1024, 8192] inputs in BF16.
    assert without == (8192 * 16032 + 1024 * 8192) * 2
    assert some == 3 * without
    assert rules_of(run_of(parallel=settings)).deferred(64) == 64 * without


def test_one_rank_of_llama3_70b_on_512_gpus() -> None:
    run = run_of(parallel={**SHARDED, "overlap_grad_reduce": True, "overlap_param_gather": True})
    stages = [rank_memory(run, LLAMA3_70B, 512, stage) for stage in range(4)]
    # The model card's 70,553,706,496 parameters; norms are whole on each of the eight tensor-parallel ranks.
    norms = (2 * 80 + 1) * 8192
    assert sum(stage.parameters for stage in stages) * 8 - 7 * norms == 70_553_706_496
    assert [stage.in_flight for stage in stages] == [(8, 4, 4, 4, 3), (5, 4, 4, 4, 4), (4, 4, 4, 4, 3), (4, 4, 4, 4, 1)]
    for stage in stages:
        assert stage.gradients == 2 * stage.weights  # FP32 beside BF16
        assert stage.optimizer * 16 == pytest.approx(
            12 * stage.parameters, rel=0.01
        )  # shared by 16 data-parallel ranks
        assert stage.largest[0] == "activations"
        print(f"stage {stage.pipeline_rank}: {stage.total / 2**30:.1f} GiB")
