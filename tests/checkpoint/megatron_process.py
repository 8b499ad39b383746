"""One process of bare megatron-core: loads a checkpoint at a layout and saves it again; for `tests.distributed.run_jobs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def bare_model(hf_folder: str, tp: int, pp: int, dtype: Any, rows_divisible_by: int, **settings: Any) -> Any:
    """This rank's GPTModel of the config.json in a folder, with nothing of the project in it; groups are made already."""
    import torch
    import transformers
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    hf = transformers.AutoConfig.from_pretrained(hf_folder)
    config = TransformerConfig(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        num_attention_heads=hf.num_attention_heads,
        num_query_groups=hf.num_key_value_heads,
        ffn_hidden_size=hf.intermediate_size,
        kv_channels=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=hf.model_type == "qwen2",
        qk_layernorm=hf.model_type == "qwen3",
        normalization="RMSNorm",
        layernorm_epsilon=hf.rms_norm_eps,
        use_cpu_initialization=True,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        gradient_accumulation_fusion=False,
        **settings,
    )
    return GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm),
        vocab_size=-(-hf.vocab_size // rows_divisible_by) * rows_divisible_by,
        max_sequence_length=64,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        position_embedding_type="rope",
        rotary_base=10000,
        share_embeddings_and_output_weights=hf.tie_word_embeddings,
    )


def main(description: Path) -> None:
    """Do the one job of a file: `source` and `target` checkpoints, the `hf` folder, `tp` and `pp`."""
    (job,) = json.loads(description.read_text(encoding="utf-8"))
    source, target, hf_config, tp, pp = (job[name] for name in ("source", "target", "hf", "tp", "pp"))
    from megatron_native.platform import seed_everything, start_platform

    start_platform("cpu")
    import torch
    from megatron.core import dist_checkpointing, parallel_state

    parallel_state.initialize_model_parallel(tp, pp)
    seed_everything(1)
    model = bare_model(hf_config, tp, pp, torch.float32, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    names = list(model.sharded_state_dict())
    loaded = dist_checkpointing.load(model.sharded_state_dict(), source)  # what is not a tensor comes along
    model.load_state_dict({name: loaded[name] for name in names})
    dist_checkpointing.save(model.sharded_state_dict(), target)
