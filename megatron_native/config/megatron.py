"""One pure function from a run's configuration to megatron-core's: what the CPU proves is what the GPU runs.

`megatron_configs` decides the model's, the data-parallel wrapper's and the optimizer's configuration. The platforms differ in
one table, `_PLATFORM_DIFFERENCES`; everything else is decided here once. Fields that megatron-core defaults wrongly for
LLaMA-style models are set explicitly. What is under megatron-core is decided in `environment.py` and `user_buffers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.config.user_buffers import overlaps_tensor_parallel

if TYPE_CHECKING:
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.transformer_config import TransformerConfig

PlatformKind = Literal["cpu", "cuda"]
LayerSpec = Literal["transformer_engine", "torch"]

# The only settings in which the CPU differs from CUDA, by megatron-core's TransformerConfig field.
_PLATFORM_DIFFERENCES: dict[PlatformKind, dict[str, Any]] = {
    "cpu": {
        "use_cpu_initialization": True,  # seeded identically for every layout
        "apply_rope_fusion": False,  # a Transformer Engine kernel
        "bias_dropout_fusion": False,  # compiled for GPUs
        "bias_activation_fusion": False,  # compiled for GPUs
        "cross_entropy_loss_fusion": False,  # compiled for GPUs
        "gradient_accumulation_fusion": False,  # a kernel of NVIDIA's Apex
        "deallocate_pipeline_outputs": False,  # gloo reads a tensor that is being sent until the send is waited for
    },
    "cuda": {
        "use_cpu_initialization": True,
        "apply_rope_fusion": True,
        "bias_dropout_fusion": True,
        "bias_activation_fusion": True,
        "cross_entropy_loss_fusion": True,
        "gradient_accumulation_fusion": True,
        "deallocate_pipeline_outputs": True,
    },
}

# megatron-core's own rule makes buckets larger with more processes; this is the size of Megatron-Bridge's recipes.
_BUCKET_PARAMETERS = 128 * 1024 * 1024


@dataclass(frozen=True)
class MegatronConfigs:
    """What megatron-core needs to know of a run."""

    transformer: TransformerConfig
    ddp: DistributedDataParallelConfig
    optimizer: OptimizerConfig
    layer_spec: LayerSpec


def resolve_layer_spec(run: RunConfig, platform: PlatformKind, has_transformer_engine: bool) -> LayerSpec:
    """Which layers: `auto` is Transformer Engine's on CUDA where it is installed, plain torch's elsewhere."""
    if run.layer_spec != "auto":
        return run.layer_spec
    return "transformer_engine" if platform == "cuda" and has_transformer_engine else "torch"


def transformer_fields(
    run: RunConfig, model: ModelConfig, platform: PlatformKind, layer_spec: LayerSpec, has_apex: bool = False
) -> dict[str, Any]:
    """Every field of megatron-core's TransformerConfig that the project decides, by name.

    Pure: no device, no process group, no files, and no Transformer Engine needed to ask what CUDA would get.

    Args:
        run: the run's configuration.
        model: the model's shape.
        platform: where it will run.
        layer_spec: whose layers (`resolve_layer_spec`).
        has_apex: whether NVIDIA's Apex (the gradient accumulation kernel) is installed.
    """
    import torch

    bf16 = run.training.precision != "fp32"
    dtype = torch.bfloat16 if bf16 else torch.float32
    parallel, training = run.parallel, run.training
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    overlap_p2p = interleaved if parallel.overlap_p2p_comm is None else parallel.overlap_p2p_comm
    differences = dict(_PLATFORM_DIFFERENCES[platform])
    differences["gradient_accumulation_fusion"] = differences["gradient_accumulation_fusion"] and has_apex
    if layer_spec == "torch":
        differences["apply_rope_fusion"] = False
    elif training.precision == "fp8" and run.fp8.param_gather:
        differences["use_cpu_initialization"] = False  # Transformer Engine rounds weights where they are made: on the GPU
    if platform == "cuda" and training.mode == "exact":
        differences["cross_entropy_loss_fusion"] = False
    recomputations: dict[str, dict[str, Any]] = {
        "none": {},
        "selective": {"recompute_granularity": "selective", "recompute_modules": list(training.recompute_modules)},
        "full": {
            "recompute_granularity": "full",
            "recompute_method": training.recompute_method,
            "recompute_num_layers": training.recompute_num_layers,
        },
    }
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.kv_channels,
        "add_bias_linear": False,
        "add_qkv_bias": model.add_qkv_bias,
        "qk_layernorm": model.qk_layernorm,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.norm_epsilon,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "init_method_std": model.initializer_range,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bf16": bf16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "autocast_dtype": dtype,
        "masked_softmax_fusion": False,
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
        "pipeline_model_parallel_layout": parallel.pipeline_layout,
        "num_layers_in_first_pipeline_stage": parallel.num_layers_in_first_pipeline_stage,
        "num_layers_in_last_pipeline_stage": parallel.num_layers_in_last_pipeline_stage,
        "account_for_embedding_in_pipeline_split": parallel.account_for_embedding_in_pipeline_split,
        "account_for_loss_in_pipeline_split": parallel.account_for_loss_in_pipeline_split,
        "context_parallel_size": parallel.context_parallel_size,
        "cp_comm_type": parallel.cp_comm_type if parallel.context_parallel_size > 1 else None,
        "sequence_parallel": parallel.sequence_parallel,
        "tp_comm_overlap": overlaps_tensor_parallel(run) and platform == "cuda",
        "defer_embedding_wgrad_compute": parallel.defer_embedding_wgrad_compute
        and differences["gradient_accumulation_fusion"],
        "wgrad_deferral_limit": parallel.wgrad_deferral_limit,
        "deterministic_mode": platform == "cuda" and training.mode == "exact",
        # In a batch of messages between two stages that are each other's next and previous one (PP2), the interleaved
        # schedule would take gradients for activations; unbatched, each direction has a channel of its own.
        "overlap_p2p_comm": overlap_p2p,
        "batch_p2p_comm": not overlap_p2p,
        "calculate_per_token_loss": True,
        "cross_entropy_fusion_impl": "native",
        **recomputations[training.recompute],
        **_fp8_fields(run),
        **differences,
    }


def _fp8_fields(run: RunConfig) -> dict[str, Any]:
    """TransformerConfig's fields about FP8; attention and the output layer stay BF16 in every recipe."""
    if run.training.precision != "fp8":
        return {"fp8": None}
    fp8 = run.fp8
    at_start, at_end = fp8.bf16_at_start(), fp8.bf16_at_end()
    return {
        "fp8": fp8.format,
        "fp8_recipe": fp8.recipe,
        "fp8_param": fp8.param_gather,
        "fp8_margin": fp8.margin,
        "fp8_amax_history_len": fp8.amax_history_len,
        "fp8_amax_compute_algo": fp8.amax_compute_algo,
        "fp8_wgrad": True,
        "fp8_dot_product_attention": False,
        "fp8_multi_head_attention": False,
        "tp_only_amax_red": fp8.tp_only_amax_red,
        "first_last_layers_bf16": at_start + at_end > 0,
        "num_layers_at_start_in_bf16": at_start,
        "num_layers_at_end_in_bf16": at_end,
    }


def megatron_configs(
    run: RunConfig, model: ModelConfig, platform: PlatformKind, layer_spec: LayerSpec, has_apex: bool = False
) -> MegatronConfigs:
    """Resolve `run` and `model` to megatron-core's configurations; the arguments are those of `transformer_fields`.

    Pure as well, but megatron-core's own checks want Transformer Engine where its kernels are asked for.
    """
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.transformer_config import TransformerConfig

    return MegatronConfigs(
        transformer=TransformerConfig(**transformer_fields(run, model, platform, layer_spec, has_apex)),
        ddp=DistributedDataParallelConfig(**ddp_fields(run)),
        optimizer=OptimizerConfig(**optimizer_fields(run)),
        layer_spec=layer_spec,
    )


def ddp_fields(run: RunConfig) -> dict[str, Any]:
    """Every field of megatron-core's DistributedDataParallelConfig that the project decides, by name."""
    parallel = run.parallel
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    return {
        "grad_reduce_in_fp32": run.optimizer.grad_reduce_in_fp32,
        "use_distributed_optimizer": parallel.use_distributed_optimizer,
        "overlap_grad_reduce": parallel.overlap_grad_reduce,
        "overlap_param_gather": parallel.overlap_param_gather,
        "align_param_gather": parallel.overlap_param_gather and interleaved,
        "num_distributed_optimizer_instances": parallel.num_distributed_optimizer_instances,
        "reduce_scatter_with_fp32_accumulation": parallel.reduce_scatter_with_fp32_accumulation,
        "pad_buckets_for_high_nccl_busbw": parallel.pad_buckets_for_high_nccl_busbw,
        "bucket_size": _BUCKET_PARAMETERS if parallel.overlap_grad_reduce else None,
        "fp8_param_gather": run.training.precision == "fp8" and run.fp8.param_gather,
        "average_in_collective": False,  # gloo has no averaging collective, and per-token scaling comes later anyway
    }


def optimizer_fields(run: RunConfig) -> dict[str, Any]:
    """Every field of megatron-core's OptimizerConfig that the project decides, by name."""
    import torch

    bf16, adam = run.training.precision != "fp32", run.optimizer
    return {
        "optimizer": "adam",
        "lr": adam.lr,
        "min_lr": adam.min_lr,
        "weight_decay": adam.weight_decay,
        "adam_beta1": adam.adam_beta1,
        "adam_beta2": adam.adam_beta2,
        "adam_eps": adam.adam_eps,
        "clip_grad": adam.clip_grad,
        "bf16": bf16,
        "fp8_recipe": run.fp8.recipe if run.training.precision == "fp8" else None,
        "params_dtype": torch.bfloat16 if bf16 else torch.float32,
        "use_distributed_optimizer": run.parallel.use_distributed_optimizer,
        "overlap_param_gather": run.parallel.overlap_param_gather,
    }


def has_transformer_engine() -> bool:
    """Whether Transformer Engine can be imported here."""
    from importlib.util import find_spec

    return find_spec("transformer_engine") is not None


def has_nvidia_apex() -> bool:
    """Whether NVIDIA's Apex is here: the package of that name on the package index is another project."""
    from importlib.util import find_spec

    return find_spec("fused_weight_gradient_mlp_cuda") is not None
