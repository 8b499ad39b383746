"""Families read config.json as transformers does, refuse what they would compute wrongly, and write both spellings."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from megatron_native.config.model import ModelConfig, RopeScaling
from megatron_native.errors import UserError
from megatron_native.models.families import (
    FAMILIES,
    export_config,
    family_of,
    model_pieces,
    read_hf_config,
    to_hf_config,
    to_model_config,
)

# As published: LLaMA-3.1-8B (transformers 4's spelling), LLaMA-2-7B (no rope settings at all), Qwen1.5-32B, and below the
# first ones of other families.
LLAMA31_8B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "vocab_size": 128256, "bos_token_id": 128000, "eos_token_id": 128001,
}  # fmt: skip
LLAMA2_7B = {
    "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
    "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
    "torch_dtype": "float16", "vocab_size": 32000,
}  # fmt: skip
QWEN15_32B = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 27392,
    "max_position_embeddings": 32768, "max_window_layers": 35, "model_type": "qwen2", "num_attention_heads": 40,
    "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
LLAMA32_1B = {
    **LLAMA31_8B, "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "tie_word_embeddings": True, "rope_scaling": {**LLAMA31_8B["rope_scaling"], "factor": 32.0},
}  # fmt: skip
QWEN25_7B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 3584,
    "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28,
    "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
    "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
MISTRAL_7B_V01 = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
MISTRAL_7B_V03 = {**MISTRAL_7B_V01, "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768}
MISTRAL_NEMO = {
    **MISTRAL_7B_V03, "head_dim": 128, "hidden_size": 5120, "max_position_embeddings": 128000, "num_hidden_layers": 40,
    "vocab_size": 131072,
}  # fmt: skip
PUBLISHED = {
    "llama3.1": LLAMA31_8B, "llama2": LLAMA2_7B, "llama3.2": LLAMA32_1B, "qwen1.5": QWEN15_32B, "qwen2.5": QWEN25_7B,
    "qwen3": QWEN3_06B, "mistral": MISTRAL_7B_V03, "mistral-nemo": MISTRAL_NEMO,
}  # fmt: skip
every_published = pytest.mark.parametrize("source", PUBLISHED.values(), ids=PUBLISHED.keys())


def test_llama_31_8b_is_read_field_by_field():
    assert to_model_config(LLAMA31_8B) == ModelConfig(
        family="llama", num_layers=32, hidden_size=4096, ffn_hidden_size=14336, num_attention_heads=32,
        num_query_groups=8, kv_channels=128, vocab_size=128256, max_position_embeddings=131072, norm_epsilon=1e-5,
        rotary_base=500000.0, rope_scaling=RopeScaling(), tie_word_embeddings=False, add_qkv_bias=False,
    )  # fmt: skip


def test_llama_2_without_rope_settings_has_base_10000_as_in_transformers():
    config = to_model_config(LLAMA2_7B)
    assert config.rotary_base == 10000.0 == transformers.LlamaConfig(**LLAMA2_7B).rope_parameters["rope_theta"]
    assert config.rope_scaling is None


def test_qwen15_32b_has_qkv_biases_and_its_switched_off_sliding_window_is_accepted():
    config = to_model_config(QWEN15_32B)
    assert (config.family, config.add_qkv_bias, config.rotary_base) == ("qwen2", True, 1000000.0)
    assert (config.num_query_groups, config.kv_channels) == (8, 128)


def test_qwen25_s_switched_off_window_is_accepted_though_it_is_stated():
    config = to_model_config(QWEN25_7B)
    assert (config.family, config.add_qkv_bias, config.num_query_groups, config.kv_channels) == ("qwen2", True, 4, 128)


def test_qwen3_06b_has_norms_of_queries_and_keys_and_heads_wider_than_its_hidden_size_gives():
    config = to_model_config(QWEN3_06B)
    assert (config.family, config.qk_layernorm, config.add_qkv_bias) == ("qwen3", True, False)
    assert (config.kv_channels, config.hidden_size // config.num_attention_heads) == (128, 64)
    assert config.tie_word_embeddings


def test_mistral_nemo_s_heads_are_as_wide_as_stated():
    config = to_model_config(MISTRAL_NEMO)
    assert (config.family, config.kv_channels, config.rotary_base) == ("mistral", 128, 1000000.0)
    assert not config.qk_layernorm and not config.add_qkv_bias


@every_published
def test_the_shape_is_the_one_that_transformers_builds(source):
    """Every weight of transformers' model (on the meta device, so without memory) is a weight of ours, of the same shape."""
    config = to_model_config(source)
    settings = transformers.AutoConfig.for_model(**source)
    with torch.device("meta"):
        state = transformers.AutoModelForCausalLM.from_config(settings).state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    ours = {name: shape for piece in model_pieces(config) for name, shape in zip(piece.hf_names, piece.hf_shapes)}
    assert ours == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_mistral_01_s_window_is_refused_with_the_way_out_and_the_way_out_works():
    with pytest.raises(UserError, match="sliding_window = 4096") as refused:
        to_model_config(MISTRAL_7B_V01)
    assert '"sliding_window": null' in str(refused.value) and '"max_position_embeddings": 4096' in str(refused.value)
    config = to_model_config({**MISTRAL_7B_V01, "sliding_window": None, "max_position_embeddings": 4096})
    assert config.max_position_embeddings == 4096


def test_mistral_without_a_word_about_its_window_has_transformers_default_of_4096():
    silent = {field: value for field, value in MISTRAL_7B_V01.items() if field != "sliding_window"}
    assert transformers.MistralConfig(**silent).sliding_window == 4096
    with pytest.raises(UserError, match="no sliding_window, which stands for 4096"):
        to_model_config(silent)


def test_a_window_that_reaches_over_all_positions_hides_none_and_is_accepted():
    assert to_model_config({**MISTRAL_7B_V01, "sliding_window": 32768}).max_position_embeddings == 32768


def test_the_newer_spelling_says_the_same_as_the_older():
    newer = {key: value for key, value in LLAMA31_8B.items() if key not in ("rope_theta", "rope_scaling")}
    newer["rope_parameters"] = {**LLAMA31_8B["rope_scaling"], "rope_theta": 500000.0}
    assert to_model_config(newer) == to_model_config(LLAMA31_8B)


def test_llama_32_factor_32_is_kept():
    scaling = {**LLAMA31_8B["rope_scaling"], "factor": 32.0}
    assert to_model_config({**LLAMA31_8B, "rope_scaling": scaling}).rope_scaling == RopeScaling(factor=32.0)


@pytest.mark.parametrize(
    ("base", "field", "value"),
    [
        (LLAMA31_8B, "attention_bias", True),
        (LLAMA31_8B, "mlp_bias", True),
        (LLAMA31_8B, "hidden_act", "gelu"),
        (LLAMA31_8B, "model_type", "mamba"),
        (LLAMA31_8B, "num_key_value_heads", 5),
        (LLAMA31_8B, "num_hidden_layers", 0),
        (LLAMA31_8B, "hidden_size", "4096"),
        (LLAMA31_8B, "vocab_size", None),
        (LLAMA31_8B, "partial_rotary_factor", 0.5),
        (LLAMA31_8B, "quantization_config", {"quant_method": "gptq"}),
        (LLAMA31_8B, "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        (LLAMA31_8B, "rope_scaling", {"type": "linear", "factor": 2.0}),
        (LLAMA31_8B, "rope_parameters", {"rope_type": "default", "rope_theta": 10000.0}),
        (QWEN15_32B, "use_sliding_window", True),
        (QWEN15_32B, "hidden_act", "relu"),
        (QWEN15_32B, "num_key_value_heads", None),
        (QWEN25_7B, "use_mrope", True),
        (QWEN25_7B, "use_sliding_window", True),
        (QWEN3_06B, "attention_bias", True),
        (QWEN3_06B, "use_sliding_window", True),
        (QWEN3_06B, "head_dim", None),
        (QWEN3_06B, "num_key_value_heads", None),
        (QWEN3_06B, "hidden_act", "gelu"),
        (QWEN3_06B, "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        (MISTRAL_7B_V03, "num_key_value_heads", None),
        (MISTRAL_7B_V03, "hidden_act", "relu"),
        (MISTRAL_7B_V03, "sliding_window", 32767),
        (MISTRAL_7B_V03, "quantization_config", {"quant_method": "awq"}),
    ],
)
def test_a_setting_that_would_be_computed_wrongly_is_refused_by_name(base, field, value):
    with pytest.raises(UserError) as refused:
        to_model_config({**base, field: value})
    assert field in str(refused.value)


@pytest.mark.parametrize("source", [QWEN25_7B, QWEN3_06B, MISTRAL_7B_V03], ids=["qwen2", "qwen3", "mistral"])
def test_sliding_layers_are_refused_and_listed_whole_ones_accepted(source):
    with pytest.raises(UserError, match="sliding_attention"):
        to_model_config({**source, "layer_types": ["full_attention", "sliding_attention"]})
    listed = {**source, "layer_types": ["full_attention"] * source["num_hidden_layers"]}
    assert to_model_config(listed) == to_model_config(source)


def test_a_llama3_scaling_with_a_field_missing_is_refused_by_that_name():
    scaling = {key: value for key, value in LLAMA31_8B["rope_scaling"].items() if key != "low_freq_factor"}
    with pytest.raises(UserError, match="low_freq_factor"):
        to_model_config({**LLAMA31_8B, "rope_scaling": scaling})


@every_published
def test_an_exported_config_keeps_the_source_and_reads_alike_in_both_spellings(source):
    config = to_model_config(source)
    exported = export_config(source, config, "bfloat16")
    kept = source.keys() - {"torch_dtype", "rope_theta", "rope_scaling"}
    assert {field: exported[field] for field in kept} == {field: source[field] for field in kept}
    assert exported["dtype"] == exported["torch_dtype"] == "bfloat16"
    older = {key: value for key, value in exported.items() if key != "rope_parameters"}
    newer = {key: value for key, value in exported.items() if key not in ("rope_theta", "rope_scaling")}
    assert to_model_config(older) == to_model_config(newer) == to_model_config(exported) == config


@every_published
def test_transformers_reads_the_exported_rope_settings_as_the_source_s(source, tmp_path):
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    (tmp_path / "before/config.json").write_text(json.dumps(source))
    (tmp_path / "after/config.json").write_text(
        json.dumps(export_config(source, to_model_config(source), source.get("torch_dtype", "bfloat16")))
    )
    before = transformers.AutoConfig.from_pretrained(tmp_path / "before")
    after = transformers.AutoConfig.from_pretrained(tmp_path / "after")
    assert before.rope_parameters == after.rope_parameters


@every_published
def test_a_config_written_for_a_model_without_a_source_reads_back(source):
    config = to_model_config(source)
    written = to_hf_config(config)
    assert family_of(written).name == config.family
    assert to_model_config(written) == config


def test_a_folder_without_config_or_with_broken_json_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        read_hf_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match=r"config\.json is not readable as JSON"):
        read_hf_config(tmp_path)


def test_the_page_of_families_has_a_row_for_each():
    page = (Path(__file__).resolve().parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| `")}
    for family in FAMILIES.values():
        for model_type in family.model_types:
            assert f"`{family.name}.py`" in rows[f"`{model_type}`"]
