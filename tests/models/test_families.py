"""Families read config.json as transformers does, refuse what they would compute wrongly, and write both spellings."""

import json

import pytest
import transformers

from megatron_native.config.model import ModelConfig, RopeScaling
from megatron_native.errors import UserError
from megatron_native.models.families import export_config, family_of, read_hf_config, to_hf_config, to_model_config

# As published: LLaMA-3.1-8B (transformers 4's spelling), LLaMA-2-7B (no rope settings at all), Qwen1.5-32B.
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
    ],
)
def test_a_setting_that_would_be_computed_wrongly_is_refused_by_name(base, field, value):
    with pytest.raises(UserError) as refused:
        to_model_config({**base, field: value})
    assert field in str(refused.value)


def test_sliding_layers_are_refused():
    with pytest.raises(UserError, match="sliding_attention"):
        to_model_config({**QWEN15_32B, "layer_types": ["full_attention", "sliding_attention"]})


def test_a_llama3_scaling_with_a_field_missing_is_refused_by_that_name():
    scaling = {key: value for key, value in LLAMA31_8B["rope_scaling"].items() if key != "low_freq_factor"}
    with pytest.raises(UserError, match="low_freq_factor"):
        to_model_config({**LLAMA31_8B, "rope_scaling": scaling})


@pytest.mark.parametrize("source", [LLAMA31_8B, LLAMA2_7B, QWEN15_32B], ids=["llama3.1", "llama2", "qwen1.5"])
def test_an_exported_config_keeps_the_source_and_reads_alike_in_both_spellings(source):
    config = to_model_config(source)
    exported = export_config(source, config, "bfloat16")
    kept = source.keys() - {"torch_dtype", "rope_theta", "rope_scaling"}
    assert {field: exported[field] for field in kept} == {field: source[field] for field in kept}
    assert exported["dtype"] == exported["torch_dtype"] == "bfloat16"
    older = {key: value for key, value in exported.items() if key != "rope_parameters"}
    newer = {key: value for key, value in exported.items() if key not in ("rope_theta", "rope_scaling")}
    assert to_model_config(older) == to_model_config(newer) == to_model_config(exported) == config


@pytest.mark.parametrize("source", [LLAMA31_8B, LLAMA2_7B, QWEN15_32B], ids=["llama3.1", "llama2", "qwen1.5"])
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


@pytest.mark.parametrize("source", [LLAMA31_8B, QWEN15_32B], ids=["llama", "qwen2"])
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
