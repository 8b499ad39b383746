"""Settings that mean something on CUDA alone: what the trainer does for them there, and what is said of them on the CPU."""

from __future__ import annotations

import torch

from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.config.user_buffers import user_buffers
from megatron_native.platform import Platform
from megatron_native.training.user_buffers import make_user_buffers


def prepare_device(run: RunConfig, model: ModelConfig, platform: Platform) -> None:
    """On CUDA: deterministic kernels in mode `exact`, and the buffers of tensor-parallel overlap. Collective.

    After the parallel state is up and before the model is built. Never run on a GPU.

    Raises:
        UserError: Transformer Engine can't make the buffers.
    """
    if platform.name != "cuda":
        return
    if run.training.mode == "exact":
        # cuBLAS, NCCL and Transformer Engine follow environment variables, which are set before the device is touched.
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    buffers = user_buffers(run, model)
    if buffers is not None:
        make_user_buffers(buffers)


def without_effect(run: RunConfig, platform: Platform) -> str | None:
    """A line about the settings that this platform does nothing with; None where there are none.

    On the CPU everything is exact and nothing is fused, so `training.mode` needs no word.
    """
    if platform.name == "cuda":
        return None
    parallel = run.parallel
    settings = {
        "parallel.tp_comm_overlap": parallel.tp_comm_overlap,
        "parallel.defer_embedding_wgrad_compute": parallel.defer_embedding_wgrad_compute,
        "profiling.nvtx": run.profiling.nvtx,
        "environment": bool(run.environment),
    }
    named = [name for name, given in settings.items() if given]
    return f"without effect on the CPU: {', '.join(named)}" if named else None
