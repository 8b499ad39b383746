"""What the ladder trains: a slice of the run's model, in a layout that fits the processes there are.

On CUDA the slice has the model's true widths and few layers; on the CPU it is a toy of the same proportions. All of this is
pure: `trial_files.py` makes the files.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from megatron_native.config.layout import data_parallel_size, model_parallel_size
from megatron_native.config.model import ModelConfig
from megatron_native.config.parallel import ParallelSection
from megatron_native.config.precision import Fp8Section
from megatron_native.config.run import RunConfig
from megatron_native.training.plan.checkpoint_size import stored_parameters

STEPS = 6
"""Steps of every short run of the ladder."""

NO_OVERLAP = {"overlap_grad_reduce": False, "overlap_param_gather": False, "tp_comm_overlap": False}
"""What overlaps by a setting, switched off."""

_LAYERS = 4
_TOY = {"kv_channels": 16, "groups": 2, "heads_a_group": 4, "vocab_size": 512, "seq_length": 64}
_LONGEST = 4096
_SMALLEST_VOCABULARY = 8192
_LR, _MIN_LR = 1e-3, 1e-4


def trial_parallel(wanted: ParallelSection, world_size: int) -> ParallelSection:
    """The run's layout, made as much smaller as it takes to fit `world_size` processes.

    Tensor parallelism comes first, then two copies of the model where there is room, whose communication can overlap, then
    the other kinds. Uneven stages and layouts by hand become even stages.
    """
    tp = math.gcd(wanted.tensor_model_parallel_size, world_size)
    room = world_size // tp // (2 if world_size // tp % 2 == 0 else 1)
    cp = math.gcd(wanted.context_parallel_size, room)
    pp = math.gcd(wanted.pipeline_model_parallel_size, room // cp)
    return wanted.model_copy(
        update={
            "tensor_model_parallel_size": tp,
            "context_parallel_size": cp,
            "pipeline_model_parallel_size": pp,
            "virtual_pipeline_model_parallel_size": 2
            if wanted.virtual_pipeline_model_parallel_size and pp > 1
            else None,
            "pipeline_layout": None,
            "num_layers_in_first_pipeline_stage": None,
            "num_layers_in_last_pipeline_stage": None,
            "account_for_embedding_in_pipeline_split": False,
            "account_for_loss_in_pipeline_split": False,
            "sequence_parallel": wanted.sequence_parallel and tp > 1,
            "tp_comm_overlap": wanted.tp_comm_overlap and tp > 1,
            "overlap_p2p_comm": None,
            "num_distributed_optimizer_instances": 1,
            "use_distributed_optimizer": True,
        }
    )


def trial_model(model: ModelConfig, parallel: ParallelSection, platform: Literal["cpu", "cuda"]) -> ModelConfig:
    """The slice: few layers of the model's width on CUDA, a toy on the CPU."""
    chunks = parallel.pipeline_model_parallel_size * (parallel.virtual_pipeline_model_parallel_size or 1)
    layers = math.ceil(_LAYERS / chunks) * chunks
    if platform == "cuda":
        return model.model_copy(update={"num_layers": layers})
    groups = max(_TOY["groups"], parallel.tensor_model_parallel_size)
    heads = groups * min(_TOY["heads_a_group"], model.num_attention_heads // model.num_query_groups)
    hidden = heads * _TOY["kv_channels"]
    return model.model_copy(
        update={
            "num_layers": layers,
            "hidden_size": hidden,
            "ffn_hidden_size": 2 * hidden,
            "num_attention_heads": heads,
            "num_query_groups": groups,
            "kv_channels": _TOY["kv_channels"],
            "vocab_size": min(model.vocab_size, _TOY["vocab_size"]),
        }
    )


def shrunk(model: ModelConfig, run: RunConfig, world_size: int, memory_bytes: int) -> ModelConfig:
    """The slice with so few layers, and then so small a vocabulary, that building it takes at most `memory_bytes` a rank.

    Three layers stay, so that one lies between the first and the last.
    """
    parallel = run.parallel
    chunks = parallel.pipeline_model_parallel_size * (parallel.virtual_pipeline_model_parallel_size or 1)
    fewest = math.ceil(3 / chunks) * chunks
    while needed_bytes(run, model, world_size) > memory_bytes:
        if model.num_layers > fewest:
            model = model.model_copy(update={"num_layers": model.num_layers - chunks})
        elif model.vocab_size > _SMALLEST_VOCABULARY:
            model = model.model_copy(update={"vocab_size": model.vocab_size // 2})
        else:
            break
    return model


def trial_run(
    run: RunConfig,
    model: ModelConfig,
    world_size: int,
    folder: Path,
    platform: Literal["cpu", "cuda"],
    overlap: bool = False,
) -> RunConfig:
    """The configuration of a short run of the slice over `world_size` processes; its files lie in `folder`.

    Layout, precision, optimizer and data settings are the run's, but for FP8, which is BF16 here (a rung compares the two), and
    for overlaps, which are off unless `overlap` says that they are the run's.
    """
    parallel = trial_parallel(run.parallel, world_size)
    if not overlap:
        parallel = parallel.model_copy(update=NO_OVERLAP)
    copies = data_parallel_size(run.model_copy(update={"parallel": parallel}), world_size)
    longest = min(
        run.data.seq_length, model.max_position_embeddings, _LONGEST if platform == "cuda" else _TOY["seq_length"]
    )
    multiple = 2 * parallel.tensor_model_parallel_size * parallel.context_parallel_size
    settings: dict[str, Any] = {
        "run_dir": folder / "run",
        "platform": platform,
        "layer_spec": run.layer_spec,
        "seed": run.seed,
        "model": {"checkpoint": folder / "checkpoint", "import_gate": False},
        "data": {
            "blend": [{"prefix": folder / "tokens"}],
            "seq_length": max(multiple, longest // multiple * multiple),
            "document_boundaries": run.data.document_boundaries,
            "verify": "off",
        },
        "parallel": parallel.model_dump(),
        "training": {
            **run.training.model_dump(exclude={"steps", "stop_after"}),
            "steps": STEPS,
            "micro_batch_size": 1,
            "global_batch_size": copies * 2 * parallel.pipeline_model_parallel_size,
            "precision": "bf16" if run.training.precision == "fp8" else run.training.precision,
        },
        "fp8": run.fp8.model_dump() | {"bf16_layers": []} | _bf16_ends(run.fp8),
        "optimizer": {
            **run.optimizer.model_dump(),
            "lr": _LR,
            "min_lr": _MIN_LR,
            "schedule": "cosine",
            "warmup_steps": 0,
            "embedding_lr_multiplier": 1.0,
        },
        "checkpointing": {"asynchronous": run.checkpointing.asynchronous},
        "logging": {"tensorboard": False},
        "environment": run.environment,
    }
    return RunConfig.model_validate(settings)


def _bf16_ends(fp8: Fp8Section) -> dict[str, int]:
    """At most one layer at each end in BF16, so that some are in FP8."""
    return {"first_layers_bf16": min(1, fp8.bf16_at_start()), "last_layers_bf16": min(1, fp8.bf16_at_end())}


def runs_own_checkpoint(run: RunConfig, world_size: int) -> bool:
    """Whether the run's own checkpoint can be looked at: there is one, and its layout fits the processes."""
    return run.model.checkpoint is not None and world_size % model_parallel_size(run) == 0


def needed_bytes(run: RunConfig, model: ModelConfig, world_size: int) -> int:
    """About what a rank needs to build the whole model with its optimizer: weights, gradients, its share of the masters' state.

    The largest pipeline stage is taken to have twice its share.
    """
    parallel = run.parallel
    parameters = stored_parameters(model, parallel.tensor_model_parallel_size)
    split = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    copies = world_size // split if parallel.use_distributed_optimizer else 1
    stages = 2 if parallel.pipeline_model_parallel_size > 1 else 1
    weight = 4 if run.training.precision == "fp32" else 2
    return int(stages * parameters * (weight + 4 + 12 / max(1, copies)) / split)


def own_run(run: RunConfig, folder: Path, world_size: int) -> RunConfig:
    """The run itself, for the rungs that look at its own checkpoint: one batch, nothing written to its folder."""
    settings = run.model_dump()
    settings |= {
        "run_dir": folder / "own",
        "phases": [],
        "preset": None,
        "evaluation": {},
        "logging": {"tensorboard": False},
    }
    settings["training"] |= {
        "steps": 1,
        "stop_after": None,
        "micro_batch_size": 1,
        "global_batch_size": data_parallel_size(run, world_size) * run.parallel.pipeline_model_parallel_size,
        "precision": "bf16" if run.training.precision == "fp8" else run.training.precision,
    }
    settings["data"] |= {"blend": [{"prefix": folder / "tokens"}], "verify": "off"}
    settings["optimizer"] |= {"warmup_steps": 0}
    settings["parallel"] |= NO_OVERLAP
    return RunConfig.model_validate(settings)
