"""The weight table: names as transformers has them, layout as megatron-core defines it, both ways without loss."""

import pytest
import torch
import transformers

from megatron_native.models.families import model_pieces, to_model_config
from tests.tiny_models import SHAPES

MODELS = {
    "llama": transformers.LlamaForCausalLM,
    "qwen2": transformers.Qwen2ForCausalLM,
    "qwen3": transformers.Qwen3ForCausalLM,
    "mistral": transformers.MistralForCausalLM,
}


def tiny(shape):
    """(our configuration, transformers' state dict of random weights) of a tiny model."""
    described = SHAPES[shape]
    settings = MODELS[described.model_type].config_class(**described.config)
    state = MODELS[described.model_type](settings).state_dict()
    if settings.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    generator = torch.Generator().manual_seed(3)
    return to_model_config(settings.to_dict()), {
        name: torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_name_every_tensor_of_the_transformers_model_once_with_its_shape(shape):
    config, state = tiny(shape)
    named = [
        (name, shape) for piece in model_pieces(config) for name, shape in zip(piece.hf_names, piece.hf_shapes, strict=True)
    ]
    assert len(named) == len({name for name, _ in named})
    assert dict(named) == {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_tile_each_global_tensor_exactly_once(shape):
    config, _ = tiny(shape)
    filled: dict[str, torch.Tensor] = {}
    for piece in model_pieces(config):
        whole = filled.setdefault(piece.key, torch.zeros(piece.global_shape, dtype=torch.int32))
        assert whole.shape == piece.global_shape
        whole[tuple(slice(start, start + extent) for start, extent in zip(piece.offset, piece.shape, strict=True))] += 1
    assert all((whole == 1).all() for whole in filled.values())


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back_is_bit_identical(shape):
    config, state = tiny(shape)
    for piece in model_pieces(config):
        tensors = [state[name] for name in piece.hf_names]
        box = piece.to_megatron(tensors)
        assert tuple(box.shape) == piece.shape
        for before, after in zip(tensors, piece.to_hf(box), strict=True):
            assert torch.equal(before, after) and after.is_contiguous()


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_qkv_rows_go_group_by_group_query_heads_then_key_then_value(part):
    """megatron-core's SelfAttention views linear_qkv's output as [groups, (heads/group + 2) · width]."""
    config, state = tiny("qwen1.5")
    layer, width, per_group = 2, config.kv_channels, config.num_attention_heads // config.num_query_groups
    piece = next(
        piece
        for piece in model_pieces(config)
        if piece.key == f"decoder.layers.self_attention.linear_qkv.{part}" and piece.offset[0] == layer
    )
    q, k, v = (state[f"model.layers.{layer}.self_attn.{name}_proj.{part}"] for name in "qkv")
    rows = []
    for group in range(config.num_query_groups):
        for head in range(group * per_group, (group + 1) * per_group):
            rows.extend(q[head * width + i] for i in range(width))
        rows.extend(k[group * width + i] for i in range(width))
        rows.extend(v[group * width + i] for i in range(width))
    assert torch.equal(piece.to_megatron([q, k, v])[0], torch.stack(rows))


def test_gate_rows_come_before_up_rows_in_fc1():
    config, state = tiny("llama2")
    whole = torch.zeros(config.num_layers, 2 * config.ffn_hidden_size, config.hidden_size)
    for piece in model_pieces(config):
        if piece.key == "decoder.layers.mlp.linear_fc1.weight":
            start = piece.offset[1]
            whole[piece.offset[0], start : start + piece.shape[1]] = piece.to_megatron([state[piece.hf_names[0]]])[0]
    for layer in range(config.num_layers):
        gate, up = (state[f"model.layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up"))
        assert torch.equal(whole[layer], torch.cat([gate, up]))


def test_a_tied_model_has_no_output_layer_and_an_untied_one_has():
    tied = {piece.key for piece in model_pieces(tiny("tied-llama")[0])}
    untied = {piece.key for piece in model_pieces(tiny("llama2")[0])}
    assert untied - tied == {"output_layer.weight"}
