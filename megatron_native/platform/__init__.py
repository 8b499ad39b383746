"""Where the code runs: one description of device, backend and place among the processes.

`start_platform` is called once a process, before megatron-core is used; it reads torchrun's environment, or stands
alone as one process of one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from megatron_native.errors import UserError

if TYPE_CHECKING:
    import torch

PlatformName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Platform:
    """A process's place: what it computes on and which of how many it is."""

    name: Literal["cpu", "cuda"]
    device: torch.device
    backend: str
    """torch.distributed backend: `gloo` on the CPU, `nccl` on CUDA."""
    rank: int
    local_rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes what is written once."""
        return self.rank == 0


def start_platform(
    name: PlatformName = "auto", timeout_minutes: float = 30, cuda_environment: Mapping[str, str] | None = None
) -> Platform:
    """Choose the platform, install the CPU substitute where it is the CPU, and join the process group.

    Args:
        name: `auto` takes CUDA where a device is visible.
        timeout_minutes: how long a collective may wait for the slowest rank.
        cuda_environment: variables to set, where they are unset, before a CUDA device is touched.

    Raises:
        UserError: CUDA is asked for and no device is visible, or more processes than devices were started.
    """
    from megatron_native.platform.quiet import silence_libraries

    silence_libraries()
    import torch
    import torch.distributed as dist

    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UserError(
            "platform is 'cuda' but torch sees no CUDA device: run where there is one, or set platform=cpu (gloo)."
        )
    chosen: Literal["cpu", "cuda"] = "cuda" if name == "cuda" or (name == "auto" and has_cuda) else "cpu"
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if chosen == "cpu":
        from megatron_native.platform import cpu

        if has_cuda:
            raise UserError(
                "platform is 'cpu' on a machine with CUDA devices: hide them with CUDA_VISIBLE_DEVICES= to run on "
                "the CPU, or set platform=cuda."
            )
        cpu.install()
        device, backend = torch.device("cpu"), "gloo"
    else:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank} of this node has no GPU: {torch.cuda.device_count()} are visible; start as "
                "many processes a node as it has GPUs."
            )
        for key, value in (cuda_environment or {}).items():
            os.environ.setdefault(key, value)
        torch.cuda.set_device(local_rank)
        device, backend = torch.device("cuda", local_rank), "nccl"
    if not dist.is_initialized():
        timeout = timedelta(minutes=timeout_minutes)
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    return Platform(chosen, device, backend, rank, local_rank, world_size)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy, torch and megatron-core's model-parallel generators (after parallel state is up)."""
    import numpy as np
    import torch
    from megatron.core import tensor_parallel

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def stop_platform() -> None:
    """Leave the process group and take megatron-core's parallel state down."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
