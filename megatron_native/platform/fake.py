"""A platform with no devices: one rank of a run of any size, whose model has shapes and no storage.

It is what a plan is worked out on: the process group is torch's fake one, which answers every collective without sending,
and what would be on a GPU is on torch's meta device. Several ranks are built one after another in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_native.platform.cpu import CpuSubstitute

META = torch.device("meta")


class _ValuesExist(TorchFunctionMode):
    """Tensors of given values, some of which megatron-core reads again, have values: they are on the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and "device" not in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        return func(*args, **kwargs)


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
    """Attention on meta by the kernel that real devices take.

    Asked on meta, torch chooses its plain formula, whose square of scores no device would keep. The CPU's flash kernel has
    a meta form; what it keeps (query, key, value, output, one sum a row) is what CUDA's keeps too.
    """
    if query.device != META:
        return _attention(query, key, value, **settings)
    attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, **settings)[0]
    return attended


_attention: Any = functional.scaled_dot_product_attention


@contextmanager
def fake_platform(rank: int, world_size: int) -> Iterator[torch.device]:
    """Be rank `rank` of `world_size` processes that are not there; yields the meta device.

    Inside, megatron-core's parallel state can be initialised (groups that the rank is not in are not made, and none is
    gloo's), every new tensor without a device is on meta, and so is every one that is asked for on CUDA. At the end groups,
    parallel state and torch are as they were. It works beside the CPU substitute and on machines with GPUs, which it does
    not touch.

    Raises:
        RuntimeError: a process group is up already; a plan needs a process of its own.
    """
    if dist.is_initialized():
        raise RuntimeError("a process group is up: the fake platform can't stand beside a real one in the same process")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} processes")
    substitute = CpuSubstitute(META)
    substitute.install()
    from megatron.core import parallel_state

    make_group = parallel_state.create_group

    def own_group(ranks: Any = None, **settings: Any) -> Any:
        if ranks is not None and rank not in ranks:
            return dist.GroupMember.NON_GROUP_MEMBER
        return make_group(ranks=ranks, group_desc=settings.get("group_desc"))

    generator, excepthook = torch.get_rng_state(), sys.excepthook  # which a process group prefixes with its rank
    parallel_state.create_group = own_group
    attention: Any = _flash_attention
    functional.scaled_dot_product_attention = attention  # modes of torch don't reach into a backward pass
    try:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        with torch.compiler.set_stance("force_eager"), META, _ValuesExist():
            yield META
    finally:
        parallel_state.create_group = make_group
        functional.scaled_dot_product_attention = _attention
        parallel_state.destroy_model_parallel()
        if dist.is_initialized():
            dist.destroy_process_group()
        substitute.remove()
        torch.set_rng_state(generator)
        sys.excepthook = excepthook
