"""Processes of bare megatron-core that train and save as Megatron-LM does; for `tests.distributed.run_jobs`.

Nothing of the project is in the model, the optimizer, the loop or the checkpoint: GPTModel, DistributedDataParallel, AdamW
and `dist_checkpointing.save`. A job has `hf` (config.json), `source` (a checkpoint with the first weights), `samples` (a
torch file of tokens, labels and loss mask, each [steps, batch, length]) and `save` (the folder of `--save`); `save_at`;
`lr`, `min_lr`; and may have `tp`, `pp`, `bf16`, `distributed`, `metadata`, `divisible`. Losses go to `save`/losses.json.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from tests.checkpoint.megatron_process import bare_model

MICRO_BATCH = 2


def main(description: Path) -> None:
    from megatron_native.platform import start_platform
    from tests.distributed import leave_groups

    start_platform("cpu")
    for job in json.loads(description.read_text(encoding="utf-8")):
        train(job)
        leave_groups()


def train(job: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer.module import Float16Module

    tp, pp, bf16 = job.get("tp", 1), job.get("pp", 1), job.get("bf16", False)
    parallel_state.initialize_model_parallel(tp, pp)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    torch.manual_seed(1)
    dtype = torch.bfloat16 if bf16 else torch.float32
    bare = bare_model(
        job["hf"], tp, pp, dtype, job.get("divisible", 128) * tp, hidden_dropout=0.0, attention_dropout=0.0,
        attention_softmax_in_fp32=True, masked_softmax_fusion=False, bias_activation_fusion=False,
        bias_dropout_fusion=False, calculate_per_token_loss=True, autocast_dtype=dtype, bf16=bf16,
    )  # fmt: skip
    config, model = bare.config, bare
    bare.load_state_dict(dist_checkpointing.load(bare.sharded_state_dict(), job["source"]), strict=False)
    if bf16:
        model = Float16Module(config, model)
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=job.get("distributed", True), overlap_grad_reduce=False
    )
    model = DistributedDataParallel(config, ddp, model)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam", lr=job["lr"], min_lr=job["min_lr"], weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.95,
            adam_eps=1e-5, clip_grad=1.0, bf16=bf16, params_dtype=dtype,
            use_distributed_optimizer=job.get("distributed", True),
        ),
        [model],
    )  # fmt: skip
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss

    def forward(batches: Any, chunk: Any) -> Any:
        tokens, labels, mask = next(batches)
        length = tokens.shape[1]
        after = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)
        positions = torch.arange(length).expand_as(tokens)
        output = chunk(tokens, positions, after, labels=labels)

        def loss(losses: Any) -> Any:
            total, count = (losses.float() * mask).sum(), mask.sum().to(torch.int)
            return total, count, {"loss": torch.stack([total.detach().double(), count.double()])}

        return output, loss

    samples = torch.load(job["samples"])
    steps, batch, length = samples["tokens"].shape
    replicas, replica = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    losses = []
    for step in range(steps):
        micro_batches = [
            tuple(samples[name][step, first : first + MICRO_BATCH] for name in ("tokens", "labels", "mask"))
            for first in range(replica * MICRO_BATCH, batch, replicas * MICRO_BATCH)
        ]
        model.zero_grad_buffer()
        optimizer.zero_grad()
        reports = get_forward_backward_func()(
            forward_step_func=forward, data_iterator=iter(micro_batches), model=[model],
            num_microbatches=len(micro_batches), seq_length=length, micro_batch_size=MICRO_BATCH, forward_only=False,
        )  # fmt: skip
        for group in optimizer.param_groups:  # linear from lr to min_lr over all the steps
            group["lr"] = job["min_lr"] + (job["lr"] - job["min_lr"]) * (1 - (step + 1) / steps)
            group["weight_decay"] = 0.1 * group["wd_mult"]
        optimizer.step()
        total = torch.zeros(2, dtype=torch.float64)
        if parallel_state.is_pipeline_last_stage():
            total += torch.stack([report["loss"] for report in reports]).sum(0)
            dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        losses.append(float(total[0] / total[1].clamp(min=1)))
        if step + 1 == job["save_at"]:
            save(job, config, bare, optimizer, step + 1, batch, length)
    if parallel_state.is_pipeline_last_stage() and not parallel_state.get_tensor_model_parallel_rank() and not replica:
        (Path(job["save"]) / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
    dist.barrier()


def save(job: dict[str, Any], config: Any, model: Any, optimizer: Any, step: int, batch: int, length: int) -> None:
    """What Megatron-LM's `save_checkpoint` writes for `--ckpt-format torch_dist`."""
    import random
    import signal

    import numpy as np
    import torch
    import torch.distributed as dist
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.dist_checkpointing.mapping import ShardedObject
    from megatron.core.enums import ModelType
    from megatron.core.transformer.enums import AttnBackend

    metadata = job.get("metadata", {"distrib_optim_sharding_type": "fully_reshardable"})
    arguments = Namespace(
        num_layers=config.num_layers, hidden_size=config.hidden_size, ffn_hidden_size=config.ffn_hidden_size,
        num_attention_heads=config.num_attention_heads, group_query_attention=True,
        num_query_groups=config.num_query_groups, kv_channels=config.kv_channels, swiglu=True, rotary_base=10000,
        rotary_percent=1.0, norm_epsilon=config.layernorm_epsilon, normalization="RMSNorm",
        position_embedding_type="rope", use_rope_scaling=False, qk_layernorm=False, num_experts=None,
        untie_embeddings_and_output_weights=not model.share_embeddings_and_output_weights,
        padded_vocab_size=model.vocab_size, seq_length=length, micro_batch_size=MICRO_BATCH, global_batch_size=batch,
        iteration=step, consumed_train_samples=step * batch, consumed_valid_samples=0, skipped_train_samples=0,
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
        params_dtype=config.params_dtype, attention_backend=AttnBackend.auto, model_type=ModelType.encoder_or_decoder,
        exit_signal=signal.SIGTERM, data_path=["0.5", "عربي_text_document"], lr=job["lr"],
    )  # fmt: skip
    generators = [{
        "random_rng_state": random.getstate(), "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(), "cuda_rng_state": torch.cuda.get_rng_state(),
        "rng_tracker_states": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }]  # fmt: skip
    place = [
        (parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_world_size()),
        (parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()),
    ]
    state = {
        "args": arguments,
        "checkpoint_version": 3.0,
        "iteration": step,
        "model": model.sharded_state_dict(metadata=dict(metadata)),
        "opt_param_scheduler": {"max_lr": job["lr"], "min_lr": job["min_lr"], "num_steps": step * batch},
        "num_floating_point_operations_so_far": 1e15,
        "rng_state": ShardedObject(
            "rng_state", generators, tuple(size for _, size in place), tuple(rank for rank, _ in place),
            replica_id=parallel_state.get_data_parallel_rank(),
        ),
    }  # fmt: skip
    state["optimizer"] = optimizer.sharded_state_dict({"model": state["model"]}, metadata=dict(metadata))
    folder = Path(job["save"]) / f"iter_{step:07d}"
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(state, str(folder), ("torch_dist", 1), content_metadata=metadata)
    if dist.get_rank() == 0:
        (folder.parent / "latest_checkpointed_iteration.txt").write_text(str(step))
    dist.barrier()
